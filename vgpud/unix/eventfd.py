"""Eventfds: the kicks and calls of the rings.

A front-end can send any file as an eventfd, so each is read and written as a file: one that is no
eventfd raises PeerError, and never blocks. O_NONBLOCK is not enough for that: the front-end shares
it, and can clear it at any time. Source: eventfd(2); the vhost-user specification,
VHOST_USER_SET_VRING_KICK, CALL and ERR.
"""

from __future__ import annotations

import errno
import os
import select

from vgpud.errors import HostError, PeerError
from vgpud.unix.fd import Fd

_ONE = (1).to_bytes(8, "little")


def create() -> Fd:
    """Return a new eventfd, non-blocking, with a count of zero. Raises HostError."""
    try:
        return Fd(os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK))
    except OSError as error:
        raise HostError("eventfd", error, "raise the limit of open files") from error


def adopt(fd: Fd) -> Fd:
    """Make a front-end's eventfd non-blocking, and return it.

    To be called before the first use. Raises PeerError.
    """
    try:
        os.set_blocking(fd.fileno(), False)
    except OSError as error:
        raise PeerError(f"can't use a file as an eventfd: {error.strerror}") from error
    return fd


def signal(fd: Fd) -> None:
    """Add one to the count; a full count stays as it is, since it signals already.

    Raises PeerError.
    """
    try:
        poll = select.poll()  # a write has no flag to not block
        poll.register(fd.fileno(), select.POLLOUT)
        if poll.poll(0):
            os.write(fd.fileno(), _ONE)
    except BlockingIOError:
        pass
    except OSError as error:
        raise PeerError(f"can't signal an eventfd: {error.strerror}") from error


def drain(fd: Fd) -> int:
    """Reset the count to 0 and return what it was. Raises PeerError."""
    try:
        count = _read(fd.fileno())
    except BlockingIOError:
        return 0
    except OSError as error:
        raise PeerError(f"can't read an eventfd: {error.strerror}") from error
    if len(count) != 8:
        raise PeerError(f"an eventfd gave {len(count)} bytes instead of 8")
    return int.from_bytes(count, "little")


def _read(fd: int) -> bytes:
    count = bytearray(8)
    try:
        return bytes(count[: os.preadv(fd, [count], -1, os.RWF_NOWAIT)])
    except OSError as error:
        if error.errno != errno.EOPNOTSUPP:  # Linux before 5.12, or another kind of file
            raise
        return os.read(fd, 8)
