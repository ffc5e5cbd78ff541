"""A second kind of device in fifty lines: a virtio entropy device on `vhost`, whose bytes a
test can foretell. Source: virtio 1.3, 5.4 "Entropy Device"."""

from __future__ import annotations

import asyncio
import socket
import threading
from itertools import count
from pathlib import Path
from types import TracebackType
from typing import Self

from vgpud.unix.stream_socket import StreamSocket
from vgpud.vhost.device import Device
from vgpud.vhost.session import Session
from vgpud.vhost.split_ring import Chain
from vgpud.vhost.virtqueue import Virtqueue


class ToyRng(Device):
    """Fills each buffer with one number, the next higher one each time."""

    name = "rng0"
    queues = ("requests",)

    def __init__(self) -> None:
        self.numbers = count(1)

    async def start_queue(self, index: int, queue: Virtqueue) -> None:
        def fill(chain: Chain, request: bytes) -> None:
            room = sum(length for _, length in chain.writable)
            queue.complete(chain, bytes([next(self.numbers) % 256]) * room)

        queue.start(fill)


class RngServer:
    """Serves one front-end at a time on a socket at `path`, on a thread of its own."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()))
        self._listening = threading.Event()

    def __enter__(self) -> Self:
        self._thread.start()
        assert self._listening.wait(5)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._loop.call_soon_threadsafe(self._task.cancel)
        self._thread.join(5)
        assert not self._thread.is_alive()

    async def _serve(self) -> None:
        self._loop, task = asyncio.get_running_loop(), asyncio.current_task()
        assert task is not None
        self._task = task
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(self._path))
            listener.listen()
            listener.setblocking(False)
            self._listening.set()
            try:
                while True:
                    connection, _ = await self._loop.sock_accept(listener)
                    await Session(StreamSocket(connection), ToyRng()).run()
            except asyncio.CancelledError:
                return
