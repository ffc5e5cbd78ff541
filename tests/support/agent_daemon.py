"""A control socket with devices whose slots are an agent's, in a thread."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Coroutine
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

from vgpud.client import Client
from vgpud.coherency.slot_policy import GuestPat, Layout, SlotOwner
from vgpud.control.access import AccessList
from vgpud.control.call import Caller
from vgpud.control.events import Events
from vgpud.control.models import DaemonInfo, Event
from vgpud.control.params import Nothing
from vgpud.control.server import ControlServer
from vgpud.daemon.device_server import DeviceServer
from vgpud.daemon.methods.agents import AgentMethods
from vgpud.gpu.spec import DeviceSpec, PreferredMode
from vgpud.slots.agent import AgentSlots

T = TypeVar("T")
FLAG = 8


def spec(name: str, slots: SlotOwner) -> DeviceSpec:
    return DeviceSpec(
        name=name,
        window=1 << 20,
        memory_limit=16 << 20,
        outputs=(PreferredMode(640, 480),),
        guest_pat=GuestPat.AUTO,
        rules=(),
        layout=Layout.WINDOW,
        slots=slots,
    )


class AgentDaemon:
    """A daemon with gpu0, whose slots are an agent's, and gpu1, whose are the front-end's."""

    slots: AgentSlots

    def __init__(self, path: Path) -> None:
        self.path = path
        self.events: list[Event] = []
        self._ready = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._main()))

    def __enter__(self) -> Self:
        self._thread.start()
        assert self._ready.wait(10)
        with Client(self.path) as client:
            client.call("daemon.info")  # so that all that serves is open
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(10)
        assert not self._thread.is_alive()

    @property
    def kinds(self) -> list[str]:
        return [event.kind for event in self.events]

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(20)

    def start(self, work: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    async def _main(self) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        events = Events()
        events.listen(self.events.append)
        owners = {"gpu0": SlotOwner.AGENT, "gpu1": SlotOwner.FRONTEND}
        devices = {
            name: DeviceServer(spec(name, owner), events=events) for name, owner in owners.items()
        }
        assert devices["gpu0"].agent is not None
        self.slots = devices["gpu0"].agent
        handlers = {"daemon.info": _info}
        with ControlServer(self.path, handlers, access=AccessList(), events=events) as server:
            server.add(AgentMethods(devices, server).handlers())
            serving = asyncio.create_task(server.run())
            self._ready.set()
            await self._stop.wait()
            for device in devices.values():
                device.close()
            serving.cancel()
            with suppress(asyncio.CancelledError):
                await serving


def _info(params: Nothing, caller: Caller) -> DaemonInfo:
    return DaemonInfo(
        version="0", pid=os.getpid(), uptime_s=0, config_file=None, log_level="info", devices=()
    )
