"""vgpud: the host back-end of a virtio-GPU device over vhost-user, for non-coherent DMA."""

from __future__ import annotations

from typing import Final

__version__: Final = "0.1.0"
