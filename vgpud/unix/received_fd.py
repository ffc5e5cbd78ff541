"""Descriptors that another process has sent."""

from __future__ import annotations

import os
from contextlib import suppress
from functools import partial

from vgpud.unix.closer import Closer
from vgpud.unix.fd import Fd
from vgpud.unix.file_kind import FileKind, file_kind


class ReceivedFd(Fd):
    """The owner of a descriptor that another process has sent, of any kind of file.

    `close` never waits: `closer` closes what may take long.
    """

    __slots__ = ("_kind", "closer")

    def __init__(self, fd: int, closer: Closer) -> None:
        super().__init__(fd)
        self.closer = closer
        self._kind: FileKind | None = None

    @property
    def kind(self) -> FileKind:
        """The kind of file. Raises ValueError once the descriptor is closed or taken."""
        if self._kind is None:
            self._kind = file_kind(self)
        return self._kind

    def close(self) -> None:
        """Close the descriptor, now or soon; a second call does nothing."""
        if self.closed:
            return
        if self.kind is FileKind.EVENTFD:
            super().close()
        else:
            self.closer.run(partial(_close, self.take()))


class Discard:
    """Closes descriptors that nothing has a use for, in a thread, without a look at each."""

    def __init__(self) -> None:
        self._closer = Closer()
        # Each is written by one thread only.
        self._passed = 0
        self._closed = 0

    @property
    def waiting(self) -> int:
        """How many descriptors are open still."""
        return self._passed - self._closed

    def close(self, fds: list[Fd]) -> None:
        """Close descriptors soon; the list is empty afterwards."""
        if fds:
            numbers = [fd.take() for fd in fds]
            fds.clear()
            self._passed += len(numbers)
            self._closer.run(partial(self._close, numbers))

    def _close(self, numbers: list[int]) -> None:
        for number in numbers:
            _close(number)
            self._closed += 1


def _close(fd: int) -> None:
    with suppress(OSError):  # of its filesystem
        os.close(fd)
