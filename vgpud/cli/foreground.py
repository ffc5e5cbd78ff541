"""A daemon in the foreground of a program: its event loop, its signals and its announcement."""

from __future__ import annotations

import asyncio
import logging
import signal
from collections.abc import Callable
from functools import partial

from vgpud.daemon import garbage
from vgpud.daemon.daemon import Daemon
from vgpud.errors import HostError

_log = logging.getLogger(__name__)


def run_daemon(daemon: Daemon, announce: Callable[[], None]) -> None:
    """Run until SIGTERM or SIGINT; call `announce` once every socket is listening.

    On SIGHUP, the configuration's file is read again. Without a file, SIGHUP ends the daemon, as it
    should when a terminal is closed.
    """
    garbage.begin()
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
        collector = group.create_task(garbage.collect_after_changes(partial(_sessions, daemon)))
        await daemon.run()
        announcer.cancel()
        collector.cancel()


def _sessions(daemon: Daemon) -> list[tuple[int, bool]]:
    """Return how many sessions each device has had, and whether one is under way."""
    return [
        (device.counters.sessions, device.live is not None) for device in daemon.devices.values()
    ]


async def _announce(daemon: Daemon, announce: Callable[[], None]) -> None:
    await daemon.wait_listening()
    try:
        announce()
    except HostError as error:
        _log.warning("not announced error=%s", error)  # Serving does not depend on it.
