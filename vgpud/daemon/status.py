"""The daemon's status for the service manager: readiness, a status line and the watchdog."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Iterator

from vgpud.control.events import Events
from vgpud.control.models import Event
from vgpud.daemon.device_set import DeviceSet
from vgpud.daemon.notify import Notifier
from vgpud.daemon.watchdog import Watchdog


class ServiceStatus:
    """The reporter of the daemon's status: it sends the status line whenever that changes."""

    def __init__(self, notifier: Notifier, devices: DeviceSet, events: Events) -> None:
        self.reload_rejected = False
        """Whether the last reload was rejected."""
        self._notifier = notifier
        self._devices = devices
        self._events = events
        self._watchdog = Watchdog(notifier, devices.served)
        self._changed = asyncio.Event()
        self._sent = ""

    def tasks(self) -> Iterator[Coroutine[None, None, None]]:
        """Return what has to run while the daemon does; nothing without a service manager."""
        if self._notifier.wanted:
            self._events.listen(self._note)
            yield self._watchdog.run(self._changed.set)
            yield self._follow()

    async def ready(self) -> None:
        """Report that the daemon serves, also after a reload."""
        self._sent = self._text()
        await self._notifier.ready(self._sent)

    async def reloading(self) -> None:
        """Report that the configuration is being read again."""
        await self._notifier.reloading()

    async def stopping(self) -> None:
        """Report that the daemon is stopping."""
        await self._notifier.stopping()

    def close(self) -> None:
        """Close the socket to the service manager."""
        self._notifier.close()

    async def _follow(self) -> None:
        while True:
            await self._changed.wait()
            self._changed.clear()
            if (text := self._text()) != self._sent:
                self._sent = text
                await self._notifier.status(text)

    def _note(self, event: Event) -> None:
        if event.kind.startswith("device."):
            self._changed.set()

    def _text(self) -> str:
        connected = sum(device.connected for device in self._devices.values())
        count = len(self._devices)
        text = f"{count} {'device' if count == 1 else 'devices'}, {connected} connected"
        if silent := sorted(self._watchdog.silent):
            text = f"{', '.join(silent)} does not answer; {text}"
        return f"{text}; the last reload was rejected" if self.reload_rejected else text
