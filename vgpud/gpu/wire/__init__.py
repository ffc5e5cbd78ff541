"""The virtio-GPU device's own wire format: commands, responses, config space, and the DMA context.

Specification: virtio 1.3, 5.7 "GPU Device".
"""
