"""Facts about this host, each found by reading what the kernel says or by trying."""
