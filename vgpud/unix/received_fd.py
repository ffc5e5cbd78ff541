"""Descriptors that another process has sent."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterable
from contextlib import suppress
from functools import partial

from vgpud.unix.closer import Closer
from vgpud.unix.fd import Fd
from vgpud.unix.file_kind import FileKind, file_kind


class ReceivedFd(Fd):
    """The owner of a descriptor that another process has sent, of any kind of file.

    `close` never waits: `closer` closes it, of whatever kind it is. Even an eventfd may wait: for
    the lock of each epoll instance that the sender has registered it in.
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
        """Close the descriptor, soon; a second call does nothing."""
        close_all([self])


def close_all(fds: Iterable[Fd]) -> None:
    """Close descriptors, those that were received soon; closed or taken ones are left out.

    A closer is called once for all of its descriptors, because a message may have hundreds.
    """
    numbers: dict[Closer, list[int]] = {}
    for fd in fds:
        if not isinstance(fd, ReceivedFd):
            fd.close()
        elif not fd.closed:
            numbers.setdefault(fd.closer, []).append(fd.take())
    for closer, of_closer in numbers.items():
        closer.run(partial(_close, of_closer))


def close_socket(sock: socket.socket, closer: Closer | None = None) -> None:
    """End the connection of a socket of any kind, and close it soon; a second call does nothing.

    Descriptors may be in it, or in connections that it has not accepted, which nobody has received.
    The peer notices at once, and not only when they are closed.
    """
    if sock.fileno() == -1:
        return
    with suppress(OSError):  # it is not connected
        sock.shutdown(socket.SHUT_RDWR)
    ReceivedFd(sock.detach(), Closer() if closer is None else closer).close()


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
            _close([number])
            self._closed += 1


def _close(numbers: list[int]) -> None:
    for number in numbers:
        with suppress(OSError):  # of its filesystem
            os.close(number)
