"""Kernel objects that are represented by a file descriptor, and end when that is closed."""

from __future__ import annotations

import io
from types import TracebackType
from typing import Protocol, Self


class FdOwner(Protocol):
    """The owner of a descriptor: a `unix.fd.Fd`, or a Python file object."""

    def fileno(self) -> int:
        """Return the descriptor; it stays the owner's."""

    def close(self) -> None:
        """Close it; a second call does nothing."""


def own(fd: int) -> FdOwner:
    """Return an owner of a new descriptor, which warns (ResourceWarning) if it is never closed."""
    return io.FileIO(fd, "r+")


class Owned:
    """A kernel object that is represented by a descriptor."""

    __slots__ = ("_fd",)

    def __init__(self, fd: FdOwner) -> None:
        self._fd = fd

    def fileno(self) -> int:
        """Return the descriptor; it stays this object's."""
        return self._fd.fileno()

    def close(self) -> None:
        """Close the descriptor; a second call does nothing."""
        self._fd.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()
