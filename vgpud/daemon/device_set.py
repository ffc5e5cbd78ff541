"""The set of devices that are served, each with its listening socket and its task.

Devices are added and removed while the daemon runs; the reloader decides which.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Final

from vgpud.daemon.device_server import DeviceServer
from vgpud.unix.activation import Activated
from vgpud.unix.listener import Listener
from vgpud.unix.socket_place import SocketPlace

log = logging.getLogger(__name__)

PATIENCE: Final = 10.0
"""Seconds that a removed device may take to end, which takes milliseconds."""


class DeviceSet(Mapping[str, DeviceServer]):
    """The devices by name, in the configuration's order; changes as devices come and go."""

    def __init__(self, servers: Iterable[DeviceServer], activated: Activated) -> None:
        self._servers = {server.name: server for server in servers}
        self._activated = activated
        self._listeners: dict[str, Listener] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._leaving: dict[asyncio.Task[None], DeviceServer] = {}

    def __getitem__(self, name: str) -> DeviceServer:
        return self._servers[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._servers)

    def __len__(self) -> int:
        return len(self._servers)

    def served(self) -> list[DeviceServer]:
        """Return all devices, including removed ones that have not ended yet."""
        return [*self._servers.values(), *self._leaving.values()]

    def path(self, name: str) -> Path | None:
        """Return where front-ends connect to a device, or None if it has no listening socket."""
        listener = self._listeners.get(name)
        return listener.path if listener is not None else None

    def open(
        self, places: Mapping[str, SocketPlace], leaving: Iterable[str] = ()
    ) -> dict[str, Listener]:
        """Open sockets for devices of these names, all or none of them.

        A socket of a device in `leaving` is shared with it, so that the path never lacks a socket;
        its file stays as it is.
        Raises ConfigError or HostError.
        """
        shared = {self._listeners[name].path: self._listeners[name] for name in leaving}
        opened = {}
        with ExitStack() as undo:
            for name, place in places.items():
                former = shared.get(place.path)
                if former is not None:
                    opened[name] = former.share()
                    undo.callback(former.unshare, opened[name])
                else:
                    opened[name] = Listener.open(place, name, self._activated)
                    undo.callback(opened[name].close)
            undo.pop_all()
        return opened

    def start(
        self, server: DeviceServer, listener: Listener, group: asyncio.TaskGroup
    ) -> asyncio.Task[None]:
        """Serve a device from now on; it replaces one of the same name that is not served yet."""
        self._servers[server.name] = server
        self._listeners[server.name] = listener
        task = group.create_task(server.serve(listener.sock), name=server.name)
        self._tasks[server.name] = task
        return task

    def order(self, names: Sequence[str]) -> None:
        """Set the order of the devices."""
        servers = {name: self._servers[name] for name in names}
        self._servers.clear()
        self._servers.update(servers)

    async def remove(self, names: Sequence[str]) -> None:
        """End these devices and their sessions, while the others continue.

        A device that does not end in time, because a thread of it hangs, is not waited for.
        """
        ending = {self._tasks.pop(name): self._servers.pop(name) for name in names}
        listeners = [self._listeners.pop(name) for name in names]
        self._leaving.update(ending)
        with ExitStack() as closing:
            for listener in listeners:
                closing.callback(listener.close)
            for task in ending:
                task.add_done_callback(self._left)
                task.cancel()
            if not ending:
                return
            _, late = await asyncio.wait(ending, timeout=PATIENCE)
        for task in late:
            name = ending[task].name
            log.error("device does not end device=%s seconds=%.0f: it hangs", name, PATIENCE)

    def _left(self, task: asyncio.Task[None]) -> None:
        self._leaving.pop(task).removed()

    def stop(self) -> None:
        """End all devices; their task group waits for that."""
        for task in self._tasks.values():
            task.cancel()

    def close(self) -> None:
        """Close and remove all sockets, after the devices have ended."""
        for listener in self._listeners.values():
            listener.close()
        for server in self._servers.values():
            server.close()
