"""Facts about this host, found by reading the kernel's files or by trying."""
