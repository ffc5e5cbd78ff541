"""The watchdog: keep-alive messages to the service manager, only while every device answers.

The watchdog runs on the event loop, so a loop that hangs sends no keep-alive either. Source:
sd_watchdog_enabled(3).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable
from typing import Protocol

from vgpud.daemon.notify import Notifier

log = logging.getLogger(__name__)


class WatchedDevice(Protocol):
    """A device that the watchdog checks."""

    @property
    def name(self) -> str:
        """The device's name."""
        ...

    async def alive(self) -> bool:
        """Return whether the device works; may never return."""
        ...


class Watchdog:
    """A task that sends a keep-alive twice per watchdog interval while all `devices` answer.

    A device that does not answer is logged and reported in the status line, and no keep-alive is
    sent until all answer again: the service manager ends the daemon and starts it again.
    """

    def __init__(self, notifier: Notifier, devices: Callable[[], Iterable[WatchedDevice]]) -> None:
        self.silent: frozenset[str] = frozenset()
        """The devices that do not answer."""
        self._notifier = notifier
        self._devices = devices

    async def run(self, changed: Callable[[], None]) -> None:
        """Watch until cancelled, or return at once if the service manager wants no keep-alive.

        `changed` is called when `silent` has changed.
        """
        allowed = self._notifier.watchdog
        if allowed is None:
            return
        while True:
            before = self.silent
            await self._ask(allowed / 4)
            if self.silent != before:
                changed()
            if self.silent:  # `_ask` has waited for them already
                await asyncio.sleep(allowed / 20)
            else:
                await self._notifier.alive()
                await asyncio.sleep(allowed / 2)

    async def _ask(self, patience: float) -> None:
        """Ask all devices at the same time, each for at most `patience` seconds."""
        async with asyncio.TaskGroup() as group:
            asked = {
                device.name: group.create_task(_answers(device, patience))
                for device in self._devices()
            }
        silent = frozenset(name for name, task in asked.items() if not task.result())
        for name in sorted(silent - self.silent):
            log.error("device hangs device=%s seconds=%.1f: it does not answer", name, patience)
        for name in sorted((self.silent - silent) & asked.keys()):
            log.warning("device answers again device=%s", name)
        self.silent = silent


async def _answers(device: WatchedDevice, patience: float) -> bool:
    try:
        async with asyncio.timeout(patience):
            return await device.alive()
    except TimeoutError:
        return False
