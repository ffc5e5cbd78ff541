"""Blob resources: their memory, their place in the window of the guest, and their plans."""
