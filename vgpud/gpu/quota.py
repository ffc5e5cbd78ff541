"""The quota: how much memory one guest can make the daemon allocate, and the charges for it.

Only the numbers: nothing is allocated here.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from vgpud.errors import OutOfMemory


@dataclass(slots=True)
class Quota:
    """A device's `memory_limit`, and how much of it is charged, in bytes."""

    limit: int
    used: int = 0

    def charge(self, size: int) -> Charge:
        """Charge `size` bytes; raise `OutOfMemory` if that would exceed the limit."""
        if size > self.limit - self.used:
            raise OutOfMemory(
                f"{size} bytes asked for, {self.limit - self.used} left of {self.limit}",
            )
        self.used += size
        return Charge(self, size)


@dataclass(slots=True)
class Charge:
    """One holder's part of a quota, until `release`."""

    _quota: Quota = field(repr=False)
    size: int

    def grow(self, size: int) -> None:
        """Charge `size` bytes more; raise `OutOfMemory` if that would exceed the limit."""
        self.size += self._quota.charge(size).size

    def shrink(self, size: int) -> None:
        """Release `size` bytes."""
        assert size <= self.size
        self._quota.used -= size
        self.size -= size

    def release(self) -> None:
        """Release all bytes; a second call does nothing."""
        self._quota.used -= self.size
        self.size = 0
