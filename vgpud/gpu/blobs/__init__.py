"""Blob resources: their memory, their placement in the guest's window, and their plans."""
