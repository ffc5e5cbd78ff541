"""Synchronous effects on the host: file descriptors, mappings, guest memory, the DMA engine."""
