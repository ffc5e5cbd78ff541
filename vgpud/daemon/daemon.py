"""The daemon: it composes devices, control server and reloader, and runs them in one task group.

It has what lives as long as the daemon; what lives as long as a session is in `device_server`.
"""

from __future__ import annotations

import asyncio
import logging
import os
import resource
import socket
import time
from collections.abc import Coroutine, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path

from vgpud import __version__
from vgpud.coherency.slot_policy import SlotOwner
from vgpud.control.agent_calls import AgentCalls
from vgpud.control.agent_link import SocketLink
from vgpud.control.call import Caller, Handler
from vgpud.control.client_directory import ClientDirectory
from vgpud.control.events import Events
from vgpud.control.models import DaemonInfo, DeviceSummary, Reloaded
from vgpud.control.params import Nothing
from vgpud.control.server import ControlServer
from vgpud.daemon import logs
from vgpud.daemon.config import Config
from vgpud.daemon.device_server import DeviceServer
from vgpud.daemon.device_set import DeviceSet
from vgpud.daemon.gpu_watch import GpuWatch
from vgpud.daemon.log_limit import UNLIMITED
from vgpud.daemon.methods.agents import AgentMethods
from vgpud.daemon.methods.blobs import BlobMethods
from vgpud.daemon.methods.devices import DeviceMethods, describe
from vgpud.daemon.methods.metrics import MetricsMethods
from vgpud.daemon.methods.slots import SlotMethods, slots_of
from vgpud.daemon.notify import Notifier
from vgpud.daemon.openmetrics import DeviceFigures
from vgpud.daemon.reloader import Reloader
from vgpud.daemon.status import ServiceStatus
from vgpud.errors import ConfigError
from vgpud.gpu.blobs.buffers import gpu_of
from vgpud.gpu.spec import DeviceSpec
from vgpud.memory.addresses import Gpa
from vgpud.memory.render_nodes import HostGpu, RenderNodes
from vgpud.slots.agent import Grant
from vgpud.slots.owner import TrackedSlots
from vgpud.unix.activation import CONTROL, Activated
from vgpud.unix.directory_owners import untrusted
from vgpud.unix.file_names import shown
from vgpud.unix.socket_file import CLIENTS, make_directory
from vgpud.unix.socket_place import SocketPlace

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ConnectedAgent:
    """A VMM's slot agent: its socket, the guest-physical address of the window, and its slots."""

    sock: socket.socket
    window: Gpa
    numbers: range


class Daemon:
    """A server of the devices of a configuration.

    With `connection`, only the first device is served, on that connected socket. `agent` sets the
    first device's memory slots. `slots` sets those of the devices that it names, in a VM of this
    process (`slots = "local"`). `notifier` and `activated` are from the service manager, the latter
    stays the caller's to close. `log_level` overrides the configuration's. Raises ConfigError for a
    device with `slots = "local"` that `slots` lacks.
    """

    def __init__(
        self,
        config: Config,
        *,
        connection: socket.socket | None = None,
        agent: ConnectedAgent | None = None,
        slots: Mapping[str, TrackedSlots] | None = None,
        notifier: Notifier | None = None,
        activated: Activated | None = None,
        log_level: str | None = None,
    ) -> None:
        self._connection = connection
        self._agent = agent
        self._slots = slots or {}
        self._activated = activated or Activated()
        self.events, self._nodes = Events(), RenderNodes()
        first, *rest = config.device_specs()
        if agent is not None:
            first = replace(first, slots=SlotOwner.AGENT)
        self._check_slots([first, *rest], config)
        self.devices = DeviceSet(map(self._device, [first, *rest]), self._activated)
        self._status = ServiceStatus(notifier or Notifier(None), self.devices, self.events)
        self._reloader = Reloader(
            config,
            self.devices,
            make_device=self._device,
            check_devices=self._check_slots,
            status=self._status,
            events=self.events,
            log_level=log_level,
        )
        self._control: ControlServer | None = None
        self._started = time.monotonic()
        self._listening = asyncio.Event()
        self._stopping = asyncio.Event()

    async def run(self) -> None:
        """Serve until `stop`, or until the one connection that was given ends.

        Raises `ConfigError` or `HostError` if a socket can't be opened. All that was opened is
        closed and removed.
        """
        _raise_fd_limit()
        with ExitStack() as cleanup:
            cleanup.callback(self._status.close)
            cleanup.callback(self.devices.close)
            self._connect_agent()
            self._control = self._open_control(cleanup)
            places = {} if self._connection is not None else self._places(self.devices)
            listeners = self.devices.open(places)
            self._activated.log_unused(self._wanted(), UNLIMITED)
            self._log_untrusted_directories(places)
            async with asyncio.TaskGroup() as group:
                self._reloader.open(group, self._control)
                for name, listener in listeners.items():
                    self.devices.start(self.devices[name], listener, group)
                tasks = [group.create_task(task) for task in self._background()]
                await asyncio.sleep(0)  # lets each task begin, so that it has opened its sockets
                self._listening.set()
                await self._status.ready()
                await self._stopping.wait()
                await self._status.stopping()
                self.devices.stop()
                for task in tasks:
                    task.cancel()
        log.info("stopped")

    def stop(self) -> None:
        """End `run`; front-ends see their connections close."""
        self._reloader.stopping = True
        self._stopping.set()

    async def reload(self) -> Reloaded:
        """Read the configuration's file again and apply it; raises ConfigError or HostError."""
        return await self._reloader.reload()

    def request_reload(self) -> None:
        """Have the configuration's file read again; the outcome is logged."""
        self._reloader.request()

    @property
    def has_listened(self) -> bool:
        """Whether all sockets were opened."""
        return self._listening.is_set()

    async def wait_listening(self) -> None:
        """Wait until front-ends can connect to every device."""
        await self._listening.wait()

    # Tasks

    def _background(self) -> Iterator[Coroutine[None, None, None]]:
        if self._control is not None:
            yield self._control.run()
        if self._connection is not None:
            yield self._serve_connection(self._connection)
        yield GpuWatch(self.events, nodes=self._nodes, users=self._users_of).run()
        yield self._reloader.run()
        yield from self._status.tasks()
        yield logs.report_suppressed()

    async def _serve_connection(self, connection: socket.socket) -> None:
        device = next(iter(self.devices.values()))
        await device.serve_connection(connection)
        self.stop()

    # Composition

    def _device(self, spec: DeviceSpec) -> DeviceServer:
        return DeviceServer(
            spec, events=self.events, slots=self._slots.get(spec.name), nodes=self._nodes
        )

    def _check_slots(self, specs: Sequence[DeviceSpec], config: Config) -> None:
        where = config.path or "configuration"
        faults = [
            f'{where}: device {spec.name}: slots = "local": this process has no VM; it is for VMMs'
            " that have vgpud as a library, Daemon(config, slots={...}). Use"
            ' "frontend" or "agent"'
            for spec in specs
            if spec.slots is SlotOwner.LOCAL and spec.name not in self._slots
        ]
        if faults:
            raise ConfigError("\n".join(faults))

    def _connect_agent(self) -> None:
        if self._agent is None:
            return
        slots = next(iter(self.devices.values())).agent
        assert slots is not None, "a device whose slots are an agent's"
        agent = AgentCalls(SocketLink(self._agent.sock), count(1))
        slots.connect(agent, Grant(self._agent.numbers, self._agent.window))

    def _open_control(self, cleanup: ExitStack) -> ControlServer | None:
        if (path := self._reloader.config.control_path) is None:
            return None
        passed = self._activated.find(path, CONTROL, socket.SOCK_DGRAM)
        if passed is None:
            make_directory(path.parent)
        devices = DeviceMethods(self.devices)
        cleanup.callback(devices.close)
        handlers: dict[str, Handler] = {
            "daemon.info": self._info,
            "config.reload": self._reload,
            **devices.handlers(),
            **BlobMethods(self.devices).handlers(),
            **SlotMethods(self.devices).handlers(),
        }
        where = path if passed is None else passed
        clients = _client_directory(path.parent / CLIENTS)
        if clients is not None:
            cleanup.enter_context(clients)
            if passed is None:  # else a client may soon start the daemon again
                cleanup.callback(clients.remove)
        server = ControlServer(
            where,
            handlers,
            access=self._reloader.access(),
            events=self.events,
            clients=clients,
        )
        cleanup.enter_context(server)
        server.add(AgentMethods(self.devices, server).handlers())
        metrics = MetricsMethods(self._figures, self.events, lambda: server.subscribers)
        server.add(metrics.handlers())
        return server

    def _figures(self) -> Iterator[DeviceFigures]:
        for device in [*self.devices.values()]:  # others may go meanwhile
            slots = {device.slot_owner: slots_of(device).length}
            yield DeviceFigures(device.counters, describe(device), slots)

    def _places(self, names: Iterable[str]) -> dict[str, SocketPlace]:
        return {name: self._reloader.config.socket_place(name) for name in names}

    def _wanted(self) -> Iterator[tuple[Path, str, socket.SocketKind]]:
        if self._reloader.config.control_path is not None:
            yield self._reloader.config.control_path, CONTROL, socket.SOCK_DGRAM
        for name, place in self._places(self.devices).items():
            yield place.path, name, socket.SOCK_STREAM

    def _log_untrusted_directories(self, places: Mapping[str, SocketPlace]) -> None:
        paths = [place.path for place in places.values()]
        if (control := self._reloader.config.control_path) is not None:
            paths.append(control)
        found = {reason: None for path in paths for reason in untrusted(path.parent)}
        for reason in found:
            text = "others may replace the daemon's sockets: %s; choose another runtime_dir"
            log.warning(text, reason, extra=UNLIMITED)

    def _users_of(self, gpu: HostGpu) -> list[str]:
        return [
            name for name, device in self.devices.items() if gpu_of(device.spec, self._nodes) == gpu
        ]

    # Methods of the control API

    @property
    def reloadable(self) -> bool:
        """Whether there is a file that can be read again."""
        return self._reloader.config.path is not None

    def _info(self, params: Nothing, caller: Caller) -> DaemonInfo:
        return DaemonInfo(
            version=__version__,
            pid=os.getpid(),
            uptime_s=round(time.monotonic() - self._started, 3),
            config_file=shown(self._reloader.config.path) if self._reloader.config.path else None,
            log_level=self._reloader.log_level,
            devices=tuple(
                DeviceSummary(
                    name=name,
                    socket=shown(path) if (path := self.devices.path(name)) else None,
                    connected=device.connected,
                )
                for name, device in self.devices.items()
                if caller.observes(name)
            ),
        )

    async def _reload(self, params: Nothing, caller: Caller) -> Reloaded:
        log.info("reload requested pid=%d uid=%d", caller.pid, caller.uid)
        # What has begun is completed, since half of a configuration must not remain.
        return await asyncio.shield(asyncio.ensure_future(self.reload()))


def _client_directory(path: Path) -> ClientDirectory | None:
    try:
        return ClientDirectory(path)
    except OSError as error:
        text = "clients in other namespaces can't be answered path=%s error=%s"
        log.warning(text, path, error.strerror)
        return None


def _raise_fd_limit() -> None:
    """Raise the limit of descriptors to the maximum: each blob may need one, for its mapping."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
