"""A VMM's end of the display socket that reads and answers when it is told to, for tests."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress

import numpy as np
from numpy.typing import NDArray

from tests.gpu.display.front_end_messages import DisplayRequestReader, encode_reply
from vgpud.gpu.display import messages as display
from vgpud.gpu.display.channel import DisplayChannel
from vgpud.gpu.display.reading import Budget
from vgpud.gpu.display.shadow import Shadow
from vgpud.gpu.quota import Quota
from vgpud.gpu.wire.header import Rect
from vgpud.gpu.wire.protocol import ScanoutId
from vgpud.memory.extents import Extents
from vgpud.unix.stream_socket import StreamSocket

PATIENCE = 5.0
EDID = display.DisplayFeature.EDID
S0, S1 = ScanoutId(0), ScanoutId(1)


class Screen:
    """The device's side: what the scanouts hold, and what was read of them."""

    def __init__(self) -> None:
        self.pictures: dict[int, NDArray[np.uint8]] = {}
        self.reads: list[tuple[int, Rect]] = []
        self.dearness = 1

    def show(self, scanout_id: int, width: int, height: int) -> None:
        self.pictures[scanout_id] = np.zeros((height, width, 4), np.uint8)

    def fill(self, scanout_id: int, value: int) -> None:
        self.pictures[scanout_id][:] = value

    def update(self, scanout_id: int, rect: Rect, shadow: Shadow) -> NDArray[np.uint8] | None:
        picture = self.pictures.get(scanout_id)
        self.reads.append((scanout_id, rect))
        if picture is None or picture.shape[:2] != (shadow.height, shadow.width):
            return None
        stride = 4 * picture.shape[1]
        contents = Extents.from_array(picture)
        return shadow.take(rect, contents, rect.y * stride + 4 * rect.x, stride, (0, 1, 2, 3))

    def xrgb(self, scanout_id: int, rect: Rect) -> NDArray[np.uint8] | None:
        self.reads.append((scanout_id, rect))
        picture = self.pictures.get(scanout_id)
        if picture is None:
            return None
        part = picture[rect.y : rect.y + rect.height, rect.x : rect.x + rect.width]
        return part if part.shape[:2] == (rect.height, rect.width) else None

    def cost(self, scanout_id: int, rect: Rect) -> int:
        return rect.width * rect.height * self.dearness // 2

    async def prepare(self, scanout_id: int) -> None:
        pass


class Vmm:
    """The other end of the socket, which reads only when it is told to.

    Once greeted, it answers requests for its features by itself, and counts them in `woken`.
    """

    def __init__(self, sock: socket.socket) -> None:
        self.socket = StreamSocket(sock)
        self.reader = DisplayRequestReader()
        self.features: int | None = None
        self.woken = 0

    async def next(self, patience: float | None = None) -> tuple[display.DisplayRequest, bytes]:
        """The next request; TimeoutError if for `patience` seconds not even a part of it comes."""
        limit = patience
        while True:
            while (found := self.reader.next_request()) is None:
                async with asyncio.timeout(limit):
                    data, _ = await self.socket.recv(1 << 20)
                assert data, "the display was closed"
                self.reader.receive_data(data)
                limit = None
            if self.features is None or found[0] != display.DisplayGetProtocolFeatures():
                return found
            self.woken += 1
            await self.answer(display.DisplayFeatures(self.features))
            limit = patience

    async def greet(self, features: int = EDID) -> None:
        assert await self.next() == (display.DisplayGetProtocolFeatures(), b"")
        await self.answer(display.DisplayFeatures(features))
        assert await self.next() == (display.DisplaySetProtocolFeatures(features & EDID), b"")
        self.features = features

    async def answer(self, reply: display.DisplayReply) -> None:
        await self.socket.send(encode_reply(reply))

    async def all(self, patience: float = 0.05) -> list[tuple[display.DisplayRequest, bytes]]:
        """Everything that comes until nothing has come for `patience` seconds."""
        found = []
        with suppress(TimeoutError):
            while True:
                found.append(await self.next(patience))
        return found

    async def ended(self) -> None:
        """Reads on until the channel closes the socket."""
        while (await self.socket.recv(1 << 20))[0]:
            pass


@asynccontextmanager
async def connected(
    *, greet: bool = True, quota: Quota | None = None
) -> AsyncIterator[tuple[DisplayChannel, Vmm, Screen]]:
    """A channel that runs until its VMM closes the socket."""
    ours, theirs = socket.socketpair()
    screen = Screen()
    vmm = Vmm(theirs)
    channel = DisplayChannel("gpu0", StreamSocket(ours), screen, quota or Quota(1 << 30))
    running = asyncio.create_task(channel.run())
    try:
        async with asyncio.timeout(PATIENCE):
            if greet:
                await vmm.greet()
            yield channel, vmm, screen
            vmm.socket.close()
            await running
    finally:
        running.cancel()
        await asyncio.wait([running])
        vmm.socket.close()


async def flush(channel: DisplayChannel, scanout_id: int, rect: Rect) -> None:
    """Flushes a blob as a guest does, and returns when the command is answered."""
    channel.damage(scanout_id, rect)
    if not channel.settle(scanout_id, Budget()):
        await channel.finish_settling(scanout_id)


def run(test: Callable[[], Awaitable[None]]) -> None:
    async def whole() -> None:
        await test()

    asyncio.run(whole())
