"""A daemon in the foreground of a program: its loop, its signals, and who hears that it listens.

Owns signals; the daemon and what is said are the program's.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import signal
from collections.abc import Callable

from vgpud.daemon.daemon import Daemon
from vgpud.errors import HostError

_log = logging.getLogger(__name__)


def run_daemon(daemon: Daemon, announce: Callable[[], None]) -> None:
    """Run until SIGTERM or SIGINT; `announce` is called once every socket is listening.

    SIGHUP has a configuration's file read anew, if there is one; else it ends us, as it would if a
    terminal were closed.
    """
    gc.freeze()  # what has been imported stays: no collection need look at it
    gc.enable()
    asyncio.run(_run(daemon, announce))


async def _run(daemon: Daemon, announce: Callable[[], None]) -> None:
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, daemon.stop)
    loop.add_signal_handler(
        signal.SIGHUP, daemon.request_reload if daemon.reloadable else daemon.stop
    )
    async with asyncio.TaskGroup() as group:
        announcer = group.create_task(_announce(daemon, announce))
        await daemon.run()
        announcer.cancel()


async def _announce(daemon: Daemon, announce: Callable[[], None]) -> None:
    await daemon.wait_listening()
    try:
        announce()
    except HostError as error:
        _log.warning("not announced error=%s", error)  # Guests do not need to be told.
