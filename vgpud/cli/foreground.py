"""A daemon in the foreground of a program: its event loop, its signals and its announcement."""

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
    """Run until SIGTERM or SIGINT; call `announce` once every socket is listening.

    On SIGHUP, the configuration's file is read again. Without a file, SIGHUP ends the daemon, as it
    should when a terminal is closed.
    """
    gc.freeze()  # imported modules stay, so collections need not visit them
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
        _log.warning("not announced error=%s", error)  # Serving does not depend on it.
