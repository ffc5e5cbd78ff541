"""The daemon: devices, the control socket, one task group, and an orderly end.

The composition root. Owns what lives as long as the daemon does; what lives as long as a front-end
is in `serve`.
"""

from __future__ import annotations

import asyncio
import logging
import os
import resource
import socket
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from vgpud import __version__
from vgpud.config import Config
from vgpud.errors import HostError
from vgpud.policy.slots import SlotTable
from vgpud.serve.agent_slots import AgentSlots
from vgpud.serve.control.server import ControlServer, DaemonInfo, DeviceInfo
from vgpud.serve.device_server import DeviceServer
from vgpud.serve.unix_socket import listen
from vgpud.wire.vhost_user.protocol import Gpa

log = logging.getLogger(__name__)

RUNTIME_DIR_MODE = 0o755  # who may connect is the sockets' own business


@dataclass(frozen=True, slots=True)
class Agent:
    """A VMM's slot agent: its socket, the guest-physical address of the device's window, and the
    numbers of the memory slots that are granted."""

    sock: socket.socket
    window: Gpa
    numbers: range


class Daemon:
    """Serves the devices of a configuration; with `connection`, its first device on a socket
    already connected. `agent` sets the first device's memory slots."""

    def __init__(
        self,
        config: Config,
        *,
        connection: socket.socket | None = None,
        agent: Agent | None = None,
    ) -> None:
        first, *rest = config.device_specs()
        self._slots = None
        if agent is not None:
            self._slots = AgentSlots(agent.sock, SlotTable(agent.numbers, base=agent.window))
        servers = [DeviceServer(first, self._slots), *map(DeviceServer, rest)]
        self.devices = {server.name: server for server in servers}
        self._config = config
        self._connection = connection
        self._started = time.monotonic()
        self._listening = asyncio.Event()
        self._stopping = asyncio.Event()

    async def run(self) -> None:
        """Serves until `stop`, or until the one connection that was given ends.

        Raises `ConfigError` or `HostError` where a socket can't be had; whatever was opened is
        closed and removed.
        """
        _raise_fd_limit()
        with ExitStack() as cleanup:
            if self._slots is not None:
                cleanup.callback(self._slots.close)
            control = self._open_control(cleanup)
            listeners = self._open_listeners(cleanup) if self._connection is None else {}
            async with asyncio.TaskGroup() as group:
                tasks = [
                    group.create_task(self.devices[name].serve(listener), name=name)
                    for name, listener in listeners.items()
                ]
                if control is not None:
                    tasks.append(group.create_task(control.run(), name="control"))
                if self._connection is not None:
                    tasks.append(group.create_task(self._serve_connection(self._connection)))
                self._listening.set()
                await self._stopping.wait()
                for task in tasks:
                    task.cancel()
        log.info("stopped")

    def stop(self) -> None:
        """Ends `run`; front-ends see their connections close."""
        self._stopping.set()

    async def wait_listening(self) -> None:
        """Returns once front-ends can connect to every device."""
        await self._listening.wait()

    async def _serve_connection(self, connection: socket.socket) -> None:
        device = next(iter(self.devices.values()))
        await device.serve_connection(connection)
        self.stop()

    def _open_listeners(self, cleanup: ExitStack) -> dict[str, socket.socket]:
        listeners = {}
        for name in self.devices:
            path = self._config.socket_path(name)
            _make_directory(path.parent)
            listeners[name] = listen(path)
            cleanup.callback(_remove, path)
            cleanup.callback(listeners[name].close)
        return listeners

    def _open_control(self, cleanup: ExitStack) -> ControlServer | None:
        path = self._config.control_path
        if path is None:
            return None
        _make_directory(path.parent)
        return cleanup.enter_context(ControlServer(path, {"daemon.info": self._info}))

    def _info(self) -> DaemonInfo:
        return DaemonInfo(
            version=__version__,
            pid=os.getpid(),
            uptime_s=round(time.monotonic() - self._started, 3),
            devices=tuple(self._device_info(device) for device in self.devices.values()),
        )

    def _device_info(self, device: DeviceServer) -> DeviceInfo:
        path = str(self._config.socket_path(device.name)) if self._connection is None else None
        return DeviceInfo(name=device.name, socket=path, connected=device.connected)


def _make_directory(path: Path) -> None:
    try:
        path.mkdir(mode=RUNTIME_DIR_MODE, parents=True, exist_ok=True)
    except OSError as error:
        advice = "set daemon.runtime_dir to a directory that this user can write to"
        raise HostError(f"making {path}", error, advice) from error


def _remove(path: Path) -> None:
    try:
        path.unlink()
    except OSError as error:
        log.debug("socket not removed path=%s: %s", path, error.strerror)


def _raise_fd_limit() -> None:
    """Takes all descriptors that the system allows: a guest with a mapping a blob needs one for
    each of them."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
