"""How much memory one guest can make the daemon allocate, and who holds how much of it.

Pure bookkeeping: nothing is allocated here. Imports nothing but errors and protocol numbers.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from vgpud.errors import OutOfMemory


@dataclass(slots=True)
class Quota:
    """A device's `memory_limit` in bytes, and what of it is taken."""

    limit: int
    used: int = 0

    def charge(self, size: int) -> Charge:
        """Take `size` bytes; raise `OutOfMemory` if that would exceed the limit."""
        if size > self.limit - self.used:
            raise OutOfMemory(
                f"{size} bytes asked for, {self.limit - self.used} left of {self.limit}",
            )
        self.used += size
        return Charge(self, size)


@dataclass(slots=True)
class Charge:
    """One holder's share of a quota, given back once, by `release`."""

    _quota: Quota = field(repr=False)
    size: int

    def grow(self, size: int) -> None:
        """Take `size` bytes more; raise `OutOfMemory` as `Quota.charge` does."""
        self.size += self._quota.charge(size).size

    def shrink(self, size: int) -> None:
        """Give `size` bytes back."""
        assert size <= self.size
        self._quota.used -= size
        self.size -= size

    def release(self) -> None:
        """Give the bytes back; a second call does nothing."""
        self._quota.used -= self.size
        self.size = 0
