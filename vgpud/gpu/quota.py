"""The quota: how much memory one guest can make the daemon allocate, and the charges for it.

Only the numbers: nothing is allocated here.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from vgpud.errors import OutOfMemory


class Quota:
    """A device's `memory_limit`, and how much of it is charged, in bytes."""

    def __init__(self, limit: int) -> None:
        self.used = 0
        self._limit = limit
        self._checked = True
        self._refusals = 0
        self._last_refusal = ""

    @property
    def limit(self) -> int:
        """The limit; setting it forgets refusals."""
        return self._limit

    @limit.setter
    def limit(self, limit: int) -> None:
        if limit != self._limit:
            self._limit = limit
            self.forget_refusals()

    @property
    def problem(self) -> str | None:
        """What was refused for want of memory since `forget_refusals`, as a sentence."""
        if not self._refusals:
            return None
        times = "once" if self._refusals == 1 else f"{self._refusals} times, the last time"
        return (
            f"memory was refused {times}: {self._last_refusal}; raise memory_limit, now"
            f" {self._limit >> 10} KiB, if the host has more memory, or use smaller outputs"
        )

    def note_refusal(self, reason: str) -> None:
        """Note that something was refused, or went without its memory."""
        self._refusals += 1
        self._last_refusal = reason

    def forget_refusals(self) -> None:
        """Forget what was refused: there is a new driver, or limit."""
        self._refusals = 0

    def charge(self, size: int) -> Charge:
        """Charge `size` bytes; raise `OutOfMemory` if that would exceed the limit."""
        if size > self._limit - self.used and self._checked:
            raise OutOfMemory(
                f"{size} bytes asked for, {self._limit - self.used} left of {self._limit}",
            )
        return self.charge_regardless(size)

    def charge_regardless(self, size: int) -> Charge:
        """Charge `size` bytes, also over the limit: for what the guest has not asked for."""
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
        if self.used > self._limit:
            raise OutOfMemory(f"{self.used} bytes are needed, the limit is {self._limit}")


@dataclass(slots=True)
class Charge:
    """One holder's part of a quota, until `release`."""

    _quota: Quota = field(repr=False)
    size: int

    def grow(self, size: int) -> None:
        """Charge `size` bytes more; raise `OutOfMemory` if that would exceed the limit."""
        self.size += self._quota.charge(size).size

    def resize(self, size: int) -> None:
        """Charge `size` bytes instead; raise `OutOfMemory` if that would exceed the limit."""
        if size > self.size:
            self.grow(size - self.size)
        else:
            self.shrink(self.size - size)

    def shrink(self, size: int) -> None:
        """Release `size` bytes."""
        assert size <= self.size
        self._quota.used -= size
        self.size -= size

    def release(self) -> None:
        """Release all bytes; a second call does nothing."""
        self._quota.used -= self.size
        self.size = 0
