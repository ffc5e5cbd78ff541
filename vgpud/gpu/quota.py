"""The quota: how much memory one guest can make the daemon allocate, and the charges for it.

Only the numbers: nothing is allocated here.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from vgpud.errors import OutOfMemory


@dataclass(slots=True)
class Quota:
    """A device's `memory_limit`, and how much of it is charged, in bytes."""

    limit: int
    used: int = 0
    _checked: bool = field(default=True, repr=False)

    def charge(self, size: int) -> Charge:
        """Charge `size` bytes; raise `OutOfMemory` if that would exceed the limit."""
        if size > self.limit - self.used and self._checked:
            raise OutOfMemory(
                f"{size} bytes asked for, {self.limit - self.used} left of {self.limit}",
            )
        self.used += size
        return Charge(self, size)

    @contextmanager
    def checked_at_end(self) -> Iterator[None]:
        """Check the limit at the end of the block only, for what takes more memory for a while.

        Raises `OutOfMemory` if it is exceeded then; everything stays charged.
        """
        self._checked = False
        try:
            yield
        finally:
            self._checked = True
        if self.used > self.limit:
            raise OutOfMemory(f"{self.used} bytes are needed, the limit is {self.limit}")


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
