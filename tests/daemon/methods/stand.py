"""The methods of the control API, called as the server would call them, in a daemon that runs."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from tests.support.daemon_thread import DaemonThread
from tests.support.until import until
from vgpud.control.call import Caller, Reply
from vgpud.control.methods import METHODS
from vgpud.control.models import Event
from vgpud.control.rpc import RpcError
from vgpud.daemon.device_server import DeviceServer
from vgpud.daemon.methods.blobs import BlobMethods
from vgpud.daemon.methods.devices import DeviceMethods
from vgpud.daemon.methods.slots import SlotMethods
from vgpud.gpu.device import GpuDevice

CALLER = Caller("", 1, 0, 0)
PATIENCE = 10.0


class Methods:
    """Calls by name; keeps the daemon's events from now on."""

    def __init__(self, daemon: DaemonThread) -> None:
        self._daemon = daemon
        devices = daemon.daemon.devices
        self._handlers = {
            **DeviceMethods(devices).handlers(),
            **BlobMethods(devices).handlers(),
            **SlotMethods(devices).handlers(),
        }
        self.events: list[Event] = []
        server = next(iter(devices.values()))
        server._events.listen(self.events.append)

    def call(self, method: str, **params: Any) -> Any:
        """The result, checked against the method's model; raises RpcError, VgpudError."""
        result = self.run(self.start(method, **params))
        value = result.value if isinstance(result, Reply) else result
        assert METHODS[method].result.model_validate_json(value.model_dump_json()) == value
        assert isinstance(result, Reply) == (METHODS[method].fd is not None)
        return result

    async def start(self, method: str, **params: Any) -> Any:
        """The same on the daemon's own loop, unchecked."""
        asked = METHODS[method].params.model_validate(params)
        result = self._handlers[method](asked, CALLER)
        return await result if inspect.isawaitable(result) else result

    def run(self, work: Any) -> Any:
        """Has a coroutine run in the daemon."""
        return asyncio.run_coroutine_threadsafe(work, self._daemon._loop).result(PATIENCE)

    def live(self, device: str) -> GpuDevice:
        """What serves a device's front-end."""
        live = self._daemon.daemon.devices[device].live
        assert live is not None
        return live

    def kinds(self) -> list[str]:
        """Of the events so far."""
        return [event.kind for event in self.events]


def kind_of(error: RpcError) -> str:
    """`data.kind` of an error -32000."""
    assert isinstance(error.data, dict)
    return str(error.data["kind"])


@contextmanager
def refused_as_guest(code: int, text: str) -> Iterator[None]:
    """Expects an error of kind guest, with the code that a guest's command would get."""
    with pytest.raises(RpcError, match=text) as caught:
        yield
    assert caught.value.data == {"kind": "guest", "code": code}


def wait_gone(server: DeviceServer) -> None:
    """Until a device's session has ended."""
    until(lambda: not server.connected)
