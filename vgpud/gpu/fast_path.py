"""The fast path of the control queue: C code that executes small TRANSFER_TO_HOST commands as it
takes their chains.

It knows some images: `gpu.images` enters an image after a transfer to it, and it is removed before
anything of it changes.
"""

from __future__ import annotations

from vgpud.gpu.guest_memory import GuestMemory
from vgpud.gpu.wire.protocol import ResourceId
from vgpud.memory.extents import PLAIN, Extents
from vgpud.native.ring import FastPath
from vgpud.native.transfers import TransferTable


class TransferFastPath:
    """The images of one device that the fast path knows, and their backing in the guest's
    `memory`."""

    __slots__ = ("_images", "_mark", "_memory")

    def __init__(self, memory: GuestMemory) -> None:
        self._images = TransferTable()
        self._memory = memory
        self._mark = memory.mark()

    def __len__(self) -> int:
        return len(self._images)

    def refuse_3d(self) -> None:
        """Leave TRANSFER_TO_HOST_3D to the slow path, because the device has no renderer."""
        self._images.with_3d = False

    def enter(
        self, resource_id: ResourceId, width: int, height: int, pixels: Extents, backing: Extents
    ) -> None:
        """Enter an image, its size in pixels, unless it is entered already."""
        if resource_id in self._images or pixels.access != PLAIN or backing.access != PLAIN:
            return
        if self.ready() is None:
            self._mark = self._memory.mark()
        self._images.add(resource_id, width, height, pixels.spans, backing.spans, (pixels, backing))

    def remove(self, resource_id: ResourceId) -> None:
        """Remove an image, if it is entered."""
        self._images.remove(resource_id)

    def clear(self) -> None:
        """Remove all images."""
        self._images.clear()

    def ready(self) -> FastPath | None:
        """Return the fast path for one batch of commands, or None if it has no images; a new memory
        table removes all."""
        if not self._memory.is_current(self._mark):
            self._images.clear()
        if not len(self._images):
            return None
        self._images.begin_batch()
        return self._images.fast_path

    @property
    def served(self) -> int:
        """The number of commands that the last batch has executed."""
        return self._images.fast_path.served

    def collect(self) -> tuple[int, int, int]:
        """Return how many TRANSFER_TO_HOST_2D and _3D were executed since the last call, and how
        many of them were fenced."""
        return self._images.collect()
