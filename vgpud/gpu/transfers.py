"""Images of a guest's that small rectangles are moved to natively, as their commands are taken.

Owns which images those are. Whoever executes commands enters an image when it has moved a rectangle
to it by itself, and takes it out before anything about it changes.
"""

from __future__ import annotations

from vgpud.gpu.wire.protocol import ResourceId
from vgpud.memory.extents import PLAIN, Extents
from vgpud.native import transfers
from vgpud.vhost.guest_memory import GuestMemory


class Transfers(transfers.Transfers):
    """The images of one device, in host memory, with their backing in `memory`."""

    __slots__ = ("_generation", "_memory")

    def __init__(self, memory: GuestMemory) -> None:
        super().__init__()
        self._memory = memory
        self._generation = memory.generation

    def enter(
        self, resource_id: ResourceId, width: int, height: int, pixels: Extents, backing: Extents
    ) -> None:
        """Enters an image, its size in pixels; nothing is done if it is there."""
        if resource_id in self or pixels.access != PLAIN or backing.access != PLAIN:
            return
        if self.now() is None:
            self._generation = self._memory.generation
        self.add(resource_id, width, height, pixels.spans, backing.spans, (pixels, backing))

    def now(self) -> Transfers | None:
        """This, unless it is empty; a new memory table empties it."""
        if self._generation != self._memory.generation:
            self.clear()
        return self if len(self) else None
