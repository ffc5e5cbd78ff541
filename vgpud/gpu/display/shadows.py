"""The shadows of one display: a copy of what it was sent of each scanout, charged to the guest.

A shadow must never have pixels that the display does not show. So each is dropped when its
scanout's size is sent, because the display discards its contents then.
"""

from __future__ import annotations

from vgpud.errors import OutOfMemory
from vgpud.gpu.display.shadow import Shadow
from vgpud.gpu.quota import Charge, Quota


class Shadows:
    """The shadows, at most one for each scanout, made when it is first needed."""

    def __init__(self, quota: Quota) -> None:
        self._quota = quota
        self._sizes: dict[int, tuple[int, int]] = {}
        self._held: dict[int, tuple[Shadow | None, Charge]] = {}

    def begin(self, scanout_id: int, width: int, height: int) -> None:
        """Drop a scanout's shadow: it has a new size, 0 x 0 if off, and nothing of it was sent."""
        held = self._held.pop(scanout_id, None)
        if held is not None:
            held[1].release()
        self._sizes[scanout_id] = width, height

    def of(self, scanout_id: int) -> Shadow | None:
        """Return a scanout's shadow.

        None if the scanout is off, or if there was no memory for a shadow of this size when it was
        first needed: then all of the damage has to be sent.
        """
        held = self._held.get(scanout_id)
        if held is None:
            held = self._held[scanout_id] = self._make(*self._sizes.get(scanout_id, (0, 0)))
        return held[0]

    def clear(self) -> None:
        """Drop all shadows, and make no new ones."""
        for scanout_id in list(self._sizes):
            self.begin(scanout_id, 0, 0)

    def _make(self, width: int, height: int) -> tuple[Shadow | None, Charge]:
        none = Charge(self._quota, 0)
        if width == 0 or height == 0:
            return None, none
        try:
            charge = self._quota.charge(Shadow.size(width, height))
        except OutOfMemory:
            return None, none
        try:
            return Shadow(width, height), charge
        except MemoryError:
            charge.release()
            return None, none
