"""A control server in a thread with a loop of its own, so that tests may block like any client."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from vgpud.control.access import AccessList
from vgpud.control.call import Caller, Handlers, Reply
from vgpud.control.events import Events
from vgpud.control.models import DaemonInfo, DeviceSummary, Done, Screenshot
from vgpud.control.params import Nothing, OfBlob, TakeScreenshot
from vgpud.control.server import ControlServer
from vgpud.errors import HostError
from vgpud.unix.fd import Fd

INFO = DaemonInfo(
    version="1.2.3",
    pid=42,
    uptime_s=0.5,
    config_file=None,
    log_level="info",
    devices=(DeviceSummary(name="gpu0", socket="/run/gpu0.sock", connected=True),),
)
CALL = b'{"jsonrpc":"2.0","method":"daemon.info","id":%d}'


def info(params: Nothing, caller: Caller) -> DaemonInfo:
    return INFO


def broken(params: OfBlob, caller: Caller) -> Done:
    raise HostError("opening the lid", OSError(13, "Permission denied"))


def screenshot(params: TakeScreenshot, caller: Caller) -> Reply:
    fd = Fd(os.memfd_create("picture", os.MFD_CLOEXEC))
    os.write(fd.fileno(), b"\x89PNG")
    shot = Screenshot(
        device=params.device, scanout=params.scanout, width=1, height=1, format="png", size=4
    )
    return Reply(shot, fd)


HANDLERS: Handlers = {"daemon.info": info, "blob.destroy": broken, "device.screenshot": screenshot}


def make_server(where: Path | socket.socket, access: AccessList | None = None) -> ControlServer:
    return ControlServer(where, HANDLERS, access=access or AccessList(), events=Events())


class Running:
    """A server, and its loop to do things on."""

    def __init__(self, server: ControlServer, events: Events) -> None:
        self.server = server
        self.events = events
        self.loop = asyncio.get_running_loop()

    def do(self, function: Callable[[], Any]) -> Any:
        """What the function returns, called on the loop."""

        async def call() -> Any:
            return function()

        return asyncio.run_coroutine_threadsafe(call(), self.loop).result(5)


@contextmanager
def serving(
    where: Path | socket.socket, handlers: Handlers = HANDLERS, access: AccessList | None = None
) -> Iterator[Running]:
    """Asserts at the end that the server still runs."""
    ready = threading.Event()
    ends: list[Any] = []

    async def main() -> None:
        events = Events()
        server = ControlServer(where, handlers, access=access or AccessList(), events=events)
        with server:
            task = asyncio.ensure_future(server.run())
            ends.extend([Running(server, events), task])
            ready.set()
            await asyncio.wait([task])
        if not task.cancelled():
            task.result()

    thread = threading.Thread(target=asyncio.run, args=(main(),))
    thread.start()
    assert ready.wait(5)
    running, task = ends
    try:
        yield running
    finally:
        alive = not task.done()
        running.loop.call_soon_threadsafe(task.cancel)
        thread.join(5)
        assert alive
        assert not thread.is_alive()


def client(own: Path | str, server: Path | None = None) -> socket.socket:
    """A bound socket, connected if it is told to whom."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    sock.settimeout(5)
    sock.bind(os.fspath(own))
    if server is not None:
        sock.connect(os.fspath(server))
    return sock


def ask(sock: socket.socket, message: bytes) -> Any:
    sock.send(message)
    return json.loads(sock.recv(1 << 20))


def call(sock: socket.socket, method: str, *values: object, **params: object) -> Any:
    """The answer, with "result" or "error"."""
    value = {"jsonrpc": "2.0", "method": method, "id": 1, "params": params or list(values)}
    return ask(sock, json.dumps(value).encode())
