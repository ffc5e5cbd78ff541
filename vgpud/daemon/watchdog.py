"""Signs of life for the service manager, sent only while every device answers.

Owns when one is due and what is said about a device that does not answer. That the event loop runs
needs no proof of its own: this runs on it. Source: sd_watchdog_enabled(3).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable
from typing import Protocol

from vgpud.daemon.notify import Notifier

log = logging.getLogger(__name__)


class Device(Protocol):
    """What can be asked whether it works."""

    @property
    def name(self) -> str:
        """What to call it."""
        ...

    async def alive(self) -> bool:
        """Whether it works; may take for ever."""
        ...


class Watchdog:
    """Tells `notifier` twice in the time that it allows, unless one of `devices` does not answer.

    Then that is logged and told, and nothing more comes until all answer again: the service manager
    ends us, and starts us anew.
    """

    def __init__(self, notifier: Notifier, devices: Callable[[], Iterable[Device]]) -> None:
        self.silent: frozenset[str] = frozenset()
        """The devices that do not answer."""
        self._notifier = notifier
        self._devices = devices

    async def run(self, changed: Callable[[], None]) -> None:
        """Watch until cancelled; at once done if no sign of life is wanted. `changed` is called
        when `silent` has changed."""
        allowed = self._notifier.watchdog
        if allowed is None:
            return
        while True:
            before = self.silent
            await self._ask(allowed / 4)
            if self.silent != before:
                changed()
            if self.silent:  # which were waited for already
                await asyncio.sleep(allowed / 20)
            else:
                await self._notifier.alive()
                await asyncio.sleep(allowed / 2)

    async def _ask(self, patience: float) -> None:
        """Ask all of them at a time, each for `patience` seconds at most."""
        async with asyncio.TaskGroup() as group:
            asked = {
                device.name: group.create_task(_answers(device, patience))
                for device in self._devices()
            }
        silent = frozenset(name for name, task in asked.items() if not task.result())
        for name in sorted(silent - self.silent):
            log.error("device hangs device=%s seconds=%.1f: no sign of life", name, patience)
        for name in sorted((self.silent - silent) & asked.keys()):
            log.warning("device answers again device=%s", name)
        self.silent = silent


async def _answers(device: Device, patience: float) -> bool:
    try:
        async with asyncio.timeout(patience):
            return await device.alive()
    except TimeoutError:
        return False
