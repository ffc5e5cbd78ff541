"""The virtio-GPU device's own wire format: commands, responses, config space, and the DMA context.

Bytes to values and back, no I/O: nothing here may import os, socket, asyncio, cffi or mmap, nor
any other layer but `vgpud.errors`. Specification: virtio 1.3, 5.7 "GPU Device".
"""
