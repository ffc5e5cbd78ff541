"""Eventfds of this process, such as the doorbells of its own virtual machines.

Those that a front-end has sent are `vhost.ring_eventfd`'s. Source: eventfd(2).
"""

from __future__ import annotations

import os
from contextlib import suppress

from vgpud.errors import HostError
from vgpud.unix.fd import Fd


def create() -> Fd:
    """Return a new eventfd, non-blocking, with a count of zero. Raises HostError."""
    try:
        return Fd(os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK))
    except OSError as error:
        raise HostError("eventfd", error, "raise the limit of open files") from error


def signal(fd: Fd) -> None:
    """Add one to the count; a full count stays as it is, since it signals already."""
    with suppress(BlockingIOError):
        os.eventfd_write(fd.fileno(), 1)


def drain(fd: Fd) -> int:
    """Reset the count to 0 and return what it was."""
    try:
        return os.eventfd_read(fd.fileno())
    except BlockingIOError:
        return 0
