"""File descriptors and unix sockets."""
