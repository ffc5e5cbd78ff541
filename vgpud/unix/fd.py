"""The owner of a file descriptor, which closes it exactly once."""

from __future__ import annotations

import fcntl
import os
import resource
import warnings
from types import TracebackType
from typing import Self

_GONE = -1

RESERVE = 64
"""Descriptors that guests' requests must leave free: front-ends, rings and sockets need them."""


class Fd:
    """The owner of a file descriptor; `take()` ends the ownership, `close()` closes it.

    It has `fileno()`, so it can be passed as a file. An owner that is garbage-collected while the
    descriptor is open closes it with a ResourceWarning.
    """

    __slots__ = ("_fd",)

    def __init__(self, fd: int) -> None:
        # First, so that __del__ works even if the check fails.
        self._fd = _GONE
        if fd < 0:
            raise ValueError(f"not a file descriptor: {fd}")
        self._fd = fd

    def fileno(self) -> int:
        """Return the descriptor, which this object still owns.

        Raises ValueError once it is closed or taken.
        """
        if self._fd == _GONE:
            raise ValueError("the file descriptor is closed or was taken")
        return self._fd

    @property
    def closed(self) -> bool:
        """Whether the descriptor was closed or taken."""
        return self._fd == _GONE

    def take(self) -> int:
        """Return the descriptor, which the caller owns from now on.

        Raises ValueError once it is closed or taken.
        """
        fd = self.fileno()
        self._fd = _GONE
        return fd

    def dup(self) -> Fd:
        """Return an owner of a close-on-exec duplicate; raises OSError as fcntl(2) does."""
        return Fd(fcntl.fcntl(self.fileno(), fcntl.F_DUPFD_CLOEXEC, 0))

    def close(self) -> None:
        """Close the descriptor; a second call does nothing."""
        fd, self._fd = self._fd, _GONE
        if fd != _GONE:
            # Linux frees the number even where close() reports an error: never try again.
            os.close(fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def __del__(self) -> None:
        if self._fd != _GONE:
            warnings.warn(f"file descriptor {self._fd} was never closed", ResourceWarning, 2)
            self.close()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {'closed' if self.closed else self._fd}>"


class SharedFd(Fd):
    """A descriptor that several values refer to: closed with the last of them, without a warning.

    For what lives as long as a mapping does, which is released by reference as well.
    """

    __slots__ = ()

    def __del__(self) -> None:
        self.close()


def in_reserve(fd: Fd) -> bool:
    """Return whether the process has so few descriptors left that this one should be closed.

    The kernel assigns the lowest free number, so a high one means that all lower ones are in use.
    """
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return soft != resource.RLIM_INFINITY and fd.fileno() >= soft - RESERVE
