"""What is a file descriptor at bottom, and goes when that is closed."""

from __future__ import annotations

import io
from types import TracebackType
from typing import Protocol, Self


class FdOwner(Protocol):
    """Who owns a descriptor: a `unix.fd.Fd`, or a file of Python's own."""

    def fileno(self) -> int:
        """Return the descriptor, which stays the owner's."""

    def close(self) -> None:
        """Close it; a second call does nothing."""


def own(fd: int) -> FdOwner:
    """Return an owner of a new descriptor; one that is dropped while open gives a
    ResourceWarning."""
    return io.FileIO(fd, "r+")


class Owned:
    """Something that is a descriptor, and goes when that is closed."""

    __slots__ = ("_fd",)

    def __init__(self, fd: FdOwner) -> None:
        self._fd = fd

    def fileno(self) -> int:
        """Return the descriptor, which stays ours."""
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
