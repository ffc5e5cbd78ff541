"""Eventfds: the kicks and calls of the rings.

A front-end can send any file as an eventfd, so each is read and written as a file: one that is no
eventfd raises PeerError, and never blocks. Source: eventfd(2); the vhost-user specification,
VHOST_USER_SET_VRING_KICK, CALL and ERR.
"""

from __future__ import annotations

import os

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

    To be called before the first use: a front-end may send a blocking eventfd, and a write to one
    whose count is full would block the whole daemon. Raises PeerError.
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
        os.write(fd.fileno(), _ONE)
    except BlockingIOError:
        pass
    except OSError as error:
        raise PeerError(f"can't signal an eventfd: {error.strerror}") from error


def drain(fd: Fd) -> int:
    """Reset the count to 0 and return what it was. Raises PeerError."""
    try:
        count = os.read(fd.fileno(), 8)
    except BlockingIOError:
        return 0
    except OSError as error:
        raise PeerError(f"can't read an eventfd: {error.strerror}") from error
    if len(count) != 8:
        raise PeerError(f"an eventfd gave {len(count)} bytes instead of 8")
    return int.from_bytes(count, "little")
