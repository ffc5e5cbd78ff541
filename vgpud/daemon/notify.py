"""Notifications to the service manager: READY, STATUS, RELOADING, STOPPING and WATCHDOG.

A service manager that can't be reached is no reason to fail. It is logged once. Source:
sd_notify(3), systemd.service(5).
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import MutableMapping
from typing import Final

import asyncio_dgram

log = logging.getLogger(__name__)

PATIENCE: Final = 1.0
"""Seconds to wait for room in the service manager's queue."""
MAX_STATUS: Final = 200
"""Characters. It is one line of `systemctl status`."""


class Notifier:
    """A socket to the service manager at `address`; without one, every method does nothing."""

    def __init__(self, address: str | None, watchdog: float | None = None) -> None:
        self.watchdog = watchdog
        """Seconds within which it wants the next keep-alive; None if it wants none."""
        self._address = address
        self._stream: asyncio_dgram.DatagramClient | None = None
        self._failed = False

    @classmethod
    def from_environment(cls, environment: MutableMapping[str, str]) -> Notifier:
        """Return the notifier of the service manager that started this process.

        Its variables are removed from `environment`, because they are not for child processes.
        Faults in them are logged; nothing is raised.
        """
        address = environment.pop("NOTIFY_SOCKET", "")
        usec = environment.pop("WATCHDOG_USEC", "")
        pid = environment.pop("WATCHDOG_PID", "")
        if address and address[0] not in "@/":
            log.warning("service manager not notified reason=no-unix-socket socket=%s", address)
            address = ""
        mine = not pid or pid == str(os.getpid())
        watchdog = int(usec) / 1e6 if address and mine and usec.isdecimal() else 0.0
        return cls(address or None, watchdog or None)

    @property
    def wanted(self) -> bool:
        """Whether there is a service manager to notify."""
        return self._address is not None

    async def ready(self, status: str) -> None:
        """Send that everything is served, at the start or after `reloading`, with a status line."""
        await self._send(f"READY=1\n{_status(status)}")

    async def status(self, status: str) -> None:
        """Send a status line, which `systemctl status` shows."""
        await self._send(_status(status))

    async def reloading(self) -> None:
        """Send that the configuration is being read again."""
        now = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
        await self._send(f"RELOADING=1\nMONOTONIC_USEC={now}")

    async def stopping(self) -> None:
        """Send that the daemon is stopping."""
        await self._send("STOPPING=1\nSTATUS=Stopping")

    async def alive(self) -> None:
        """Send a keep-alive to the service manager's watchdog."""
        await self._send("WATCHDOG=1")

    def close(self) -> None:
        """Close the socket; datagrams that were not sent yet are lost."""
        if self._stream is not None:
            # Its own close() waits until all is sent, which may never be.
            self._stream._transport.abort()  # type: ignore[attr-defined]  # noqa: SLF001
            self._stream = None

    async def _send(self, text: str) -> None:
        if self._address is None:
            return
        try:
            async with asyncio.timeout(PATIENCE):
                try:
                    await self._send_by(self._stream, text)
                except (OSError, asyncio_dgram.TransportClosed):
                    if self._stream is None:
                        raise
                    self.close()  # the service manager may have been restarted
                    await self._send_by(None, text)
        except (OSError, TimeoutError, asyncio_dgram.TransportClosed) as error:
            self.close()  # the next notification connects again
            if not self._failed:
                self._failed = True
                reason = str(error) or "it does not read"
                log.warning("service manager not notified socket=%s: %s", self._address, reason)
        else:
            self._failed = False

    async def _send_by(self, stream: asyncio_dgram.DatagramClient | None, text: str) -> None:
        if stream is None:
            path = self._address
            assert path is not None
            if path[0] == "@":  # an abstract address, unix(7)
                path = f"\0{path[1:]}"
            stream = self._stream = await asyncio_dgram.connect(path)
        await stream.send(text.encode())
        _ = stream.exception  # raises the error, if sending failed


def _status(text: str) -> str:
    return f"STATUS={' '.join(text.split())[:MAX_STATUS]}"
