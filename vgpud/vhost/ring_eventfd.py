"""The eventfds that a front-end sends for a ring: its kicks, and the calls and errors to it.

A front-end can send any file as an eventfd: one that is no eventfd raises PeerError. None ever
makes this process wait, whatever the front-end does with it: O_NONBLOCK is shared with it, and it
can clear that at any time. Source: the vhost-user specification, VHOST_USER_SET_VRING_KICK,
CALL and ERR; eventfd(2).
"""

from __future__ import annotations

import errno
import os
import select

from vgpud.errors import PeerError
from vgpud.native import eventfd
from vgpud.unix.fd import Fd


def signal(fd: Fd) -> None:
    """Add one to the count; a full count signals already. Raises PeerError."""
    try:
        eventfd.signal(fd.fileno())
    except OSError as error:
        raise PeerError(f"can't signal an eventfd: {error.strerror}") from error


def drain(fd: Fd) -> int:
    """Reset the count to 0 and return what it was. Raises PeerError."""
    count = bytearray(8)
    try:
        size = _read(fd.fileno(), count)
    except BlockingIOError:
        return 0
    except OSError as error:
        raise PeerError(f"can't read an eventfd: {error.strerror}") from error
    if size != len(count):
        raise PeerError(f"an eventfd gave {size} bytes instead of {len(count)}")
    return int.from_bytes(count, "little")


def _read(fd: int, count: bytearray) -> int:
    try:
        return os.preadv(fd, [count], -1, os.RWF_NOWAIT)
    except OSError as error:
        if error.errno != errno.EOPNOTSUPP:
            raise
    # Linux before 5.12, or another kind of file. Only this process reads an eventfd of kicks.
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    if not poll.poll(0):
        raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
    return os.readv(fd, [count])
