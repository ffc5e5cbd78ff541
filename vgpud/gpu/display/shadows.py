"""The shadows of one display: what it has been sent of each scanout, charged to the guest.

Owns their sizes and lifetime. A shadow must never claim what the display does not show: it lives
from one word about the scanout's size to the next.
"""

from __future__ import annotations

from vgpud.errors import OutOfMemory
from vgpud.gpu.display.shadow import Shadow
from vgpud.gpu.quota import Charge, Quota


class Shadows:
    """At most one for each scanout, made when it is first asked for."""

    def __init__(self, quota: Quota) -> None:
        self._quota = quota
        self._sizes: dict[int, tuple[int, int]] = {}
        self._held: dict[int, tuple[Shadow | None, Charge]] = {}

    def begin(self, scanout_id: int, width: int, height: int) -> None:
        """A scanout has a new size, 0 x 0 if it is off, and nothing was sent of it."""
        held = self._held.pop(scanout_id, None)
        if held is not None:
            held[1].release()
        self._sizes[scanout_id] = width, height

    def of(self, scanout_id: int) -> Shadow | None:
        """A scanout's shadow.

        None if it is off, or if there was no memory for a shadow of this size when it was first
        asked for: all of the damage is to be sent then.
        """
        held = self._held.get(scanout_id)
        if held is None:
            held = self._held[scanout_id] = self._make(*self._sizes.get(scanout_id, (0, 0)))
        return held[0]

    def clear(self) -> None:
        """Forgets all, for good."""
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
