"""Reloading: the configuration's file is read again while the daemon runs, and changes are applied.

`daemon.reload` computes the changes. A file with a fault changes nothing.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence

from vgpud.control.access import AccessList
from vgpud.control.events import Events
from vgpud.control.models import Reloaded
from vgpud.control.server import ControlServer
from vgpud.daemon import logs
from vgpud.daemon.config import Config
from vgpud.daemon.device_server import DeviceServer
from vgpud.daemon.device_set import DeviceSet
from vgpud.daemon.log_limit import UNLIMITED
from vgpud.daemon.reload import ConfigChanges, difference
from vgpud.daemon.status import ServiceStatus
from vgpud.errors import ConfigError, VgpudError
from vgpud.gpu.spec import DeviceSpec
from vgpud.unix.socket_place import SocketPlace

log = logging.getLogger(__name__)


class Reloader:
    """The owner of the configuration in force, `config`, which applies a new one to the daemon.

    `make_device` makes a device that is not served yet. `check_devices` raises ConfigError for a
    device that is not possible. `log_level` overrides the configuration's.
    """

    def __init__(
        self,
        config: Config,
        devices: DeviceSet,
        *,
        make_device: Callable[[DeviceSpec], DeviceServer],
        check_devices: Callable[[Sequence[DeviceSpec], Config], None],
        status: ServiceStatus,
        events: Events,
        log_level: str | None,
    ) -> None:
        self.config = config
        self.stopping = False
        """Whether the daemon is stopping, so that nothing may be started any more."""
        self._devices = devices
        self._make_device = make_device
        self._check_devices = check_devices
        self._status = status
        self._events = events
        self._log_level = log_level
        self._control: ControlServer | None = None
        self._requested = asyncio.Event()
        self._one_at_a_time = asyncio.Lock()

    @property
    def log_level(self) -> str:
        """The level in force."""
        return self._log_level or self.config.daemon.log_level

    def access(self) -> AccessList:
        """Return the grants of the control socket's callers."""
        return AccessList(*self.config.access_rules())

    def request(self) -> None:
        """Have the file read again soon; the outcome is logged."""
        self._requested.set()

    def open(self, tasks: asyncio.TaskGroup, control: ControlServer | None) -> None:
        """Set the task group for added devices, and the server whose access list is updated."""
        self._tasks, self._control = tasks, control

    async def run(self) -> None:
        """Reload on request, until cancelled."""
        while True:
            await self._requested.wait()
            self._requested.clear()
            try:
                await self.reload()
            except VgpudError:
                continue  # `reload` has logged it
            except Exception:
                log.exception("reload failed")  # a bug here must not end what is served

    async def reload(self) -> Reloaded:
        """Read the file, and apply what can change while the daemon runs.

        Raises ConfigError with every fault, or HostError for a socket that can't be opened; then
        nothing has changed.
        """
        async with self._one_at_a_time:
            await self._status.reloading()
            try:
                changes = await self._read()
                await self._apply(changes, *await self._look_up(changes))
                self._status.reload_rejected = False
            except VgpudError as error:
                self._status.reload_rejected = True
                self._report_rejected(str(error))
                raise
            finally:
                if not self.stopping:
                    await self._status.ready()
        return Reloaded(
            applied=changes.applied,
            next_connection=changes.next_connection,
            restart=changes.restart,
        )

    async def _read(self) -> ConfigChanges:
        path = self.config.path
        if path is None:
            raise ConfigError("no file to read again: start with --config FILE to have one")
        if path.exists() and not path.is_file():
            raise ConfigError(f"{path}: is not a regular file, which is read at the start only")
        # In a thread, because parsing a long file would block the event loop.
        config = await asyncio.to_thread(Config.load, path)
        try:
            changes = difference(self.config, config, log_level=self._log_level)
        except ConfigError as error:
            raise ConfigError(f"{path}: {error}".replace("\n", f"\n{path}: ")) from error
        self._check_devices([*changes.added, *changes.changed], config)
        config.log_warnings()
        return changes

    async def _look_up(
        self, changes: ConfigChanges
    ) -> tuple[AccessList | None, dict[str, SocketPlace]]:
        """Return the new grants, if they change, and the sockets' places of added devices.

        The names in them are looked up in a thread, because the system's databases may be slow.
        """
        rules, config = changes.config.access_rules(), changes.config
        names = [spec.name for spec in changes.added]
        places = await asyncio.to_thread(
            lambda: {name: config.socket_place(name).looked_up() for name in names}
        )
        access = None
        if self._control is not None and rules != self.config.access_rules():
            access = await asyncio.to_thread(AccessList, *rules)
            # Last, so that no caller comes between this and the change.
            await self._control.prepare(access)
        return access, places

    async def _apply(
        self, changes: ConfigChanges, access: AccessList | None, places: dict[str, SocketPlace]
    ) -> None:
        """Apply changes: first those that can fail, then those that can't."""
        if self.stopping:
            raise ConfigError("the daemon is stopping")
        listeners = self._devices.open(places, changes.removed)
        for spec in changes.added:
            server = self._make_device(spec)
            self._devices.start(server, listeners[spec.name], self._tasks)
            server.added()
        former_level = self.log_level
        self.config = changes.config
        if self._control is not None and access is not None:
            self._control.access = access
        if self.log_level != former_level:
            logs.set_level(self.log_level)
        for spec in changes.changed:
            self._devices[spec.name].reconfigure(spec)
        await self._devices.remove(changes.removed)
        self._devices.order([table.name for table in changes.config.device])
        for line in changes.lines or ("nothing has changed",):
            log.info("configuration reloaded: %s", line, extra=UNLIMITED)
        self._events.publish(
            "config.reloaded",
            f"the configuration was read again: {len(changes.lines)} changes",
            applied=list(changes.applied),
            next_connection=list(changes.next_connection),
            restart=list(changes.restart),
        )

    def _report_rejected(self, message: str) -> None:
        faults = message.splitlines()
        for fault in faults:
            log.error("configuration rejected: %s", fault, extra=UNLIMITED)
        self._events.publish(
            "config.rejected", f"the new configuration was rejected: {message}", faults=[*faults]
        )
