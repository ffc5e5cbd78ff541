"""The end of a session whose front-end has truncated the memory that it shared.

A sparse file whose filesystem has no page left for it, as on a small /dev/shm, looks the same.
Threads that copy find zeros there, and could write as many as the memory was large, all private to
this process. So the session does not wait until a queue finds out. Source: `native/mapping.c`.
"""

from __future__ import annotations

import asyncio
import fcntl
from collections.abc import Callable

from vgpud.errors import PeerError
from vgpud.native.mapping import FAULT_EVENT
from vgpud.unix import eventfd
from vgpud.unix.fd import Fd


async def end_when_truncated(faulted: Callable[[], bool]) -> None:
    """Call `faulted` whenever any mapping of this process has faulted; raise PeerError if it
    returns True. Returns if that can't be watched: then the queues have to find out."""
    event = _event()
    if event is None:
        return
    loop = asyncio.get_running_loop()
    signalled = asyncio.Event()
    with event:
        loop.add_reader(event.fileno(), _drain, event, signalled)
        try:
            while not faulted():
                await signalled.wait()
                signalled.clear()
        finally:
            loop.remove_reader(event.fileno())
    raise truncated()


def _event() -> Fd | None:
    """Return a duplicate, because the loop watches each descriptor for one session only."""
    try:
        return Fd(fcntl.fcntl(FAULT_EVENT, fcntl.F_DUPFD_CLOEXEC, 0))
    except OSError:
        return None


def _drain(event: Fd, signalled: asyncio.Event) -> None:
    # The loop has collected the events of all sessions before the first of them comes here.
    eventfd.drain(event)
    signalled.set()


def truncated() -> PeerError:
    """Return the error that ends the session."""
    return PeerError(
        "the front-end truncated the memory that it shared, or the filesystem of that is full"
    )
