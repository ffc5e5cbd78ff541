"""A front-end's end of the back-end channel that answers when it is told to, for tests."""

from __future__ import annotations

import asyncio
import gc
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from tests.support.until import until_async
from vgpud.memory import memfd
from vgpud.slots.front_end import FrontEndSlots
from vgpud.unix.fd import Fd
from vgpud.unix.stream_socket import StreamSocket
from vgpud.vhost.back_end_channel import BackEndChannel
from vgpud.vhost.wire.back_end_channel import (
    ConfigChange,
    FrontEndResponder,
    ReceivedBackEndMessage,
    ShmemMap,
)

PATIENCE = 5.0
SHMID = 1
SIZE = 0x4000


class Vmm:
    """The front-end's end of one channel."""

    def __init__(self, slots: FrontEndSlots, *, reply_ack: bool = True) -> None:
        ours, theirs = socket.socketpair()
        self.link = BackEndChannel(StreamSocket(ours), reply_ack=reply_ack)
        slots.connect(self.link)
        self.socket = StreamSocket(theirs)
        self.channel = FrontEndResponder()
        self.unanswered: list[ReceivedBackEndMessage] = []

    async def request(self) -> tuple[object, list[Fd]]:
        """The next request and its descriptors, which are closed already."""
        fds: list[Fd] = []
        while (received := self.channel.next_request()) is None:
            data, more = await self.socket.recv(self.channel.bytes_wanted)
            assert data, "the channel has ended"
            self.channel.receive_data(data)
            fds += more
        for fd in fds:
            fd.close()
        if received.need_reply:
            self.unanswered.append(received)
        return received.message, fds

    async def answer(self, status: int = 0) -> None:
        """Answers the oldest request that wants it."""
        await self.socket.send(self.channel.reply(self.unanswered.pop(0), status))

    async def finish_map(self) -> None:
        """Answer the oldest request, a map, and show that it is done by receiving the next."""
        await self.answer()
        await self.catch_up()

    async def catch_up(self) -> None:
        """Receive and answer what is sent to see that a map is done."""
        assert await self.request() == (ConfigChange(), [])
        if self.unanswered:
            await self.answer()

    async def nothing(self) -> None:
        """Makes sure that nothing comes for a while."""
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.02):
                await self.socket.recv(1)


@asynccontextmanager
async def connected(*, reply_ack: bool = True) -> AsyncIterator[tuple[FrontEndSlots, Vmm]]:
    """A channel that is served, until the VMM closes it; then nothing may be left of it."""
    slots = FrontEndSlots(SHMID)
    vmm = Vmm(slots, reply_ack=reply_ack)
    try:
        async with asyncio.timeout(PATIENCE):
            serving = asyncio.create_task(vmm.link.run())
            try:
                yield slots, vmm
                vmm.socket.close()
                await serving
            finally:
                serving.cancel()
                await asyncio.wait([serving])
    finally:
        vmm.socket.close()
        slots.connect(None)


def run(test: Callable[[Fd], Awaitable[None]]) -> None:
    """Runs a test with a memory file; afterwards no descriptor may be open that was not before."""

    async def whole() -> None:
        before = open_fds()
        with memfd.create("blob", SIZE) as fd:
            await test(fd)
        gc.collect()  # what a failed test left behind
        await until_async(lambda: open_fds() <= before)

    asyncio.run(whole())


def open_fds() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


def mapping(offset: int) -> ShmemMap:
    return ShmemMap(SHMID, 0x1000, offset, 0x2000, writable=True)


async def start_map(slots: FrontEndSlots, vmm: Vmm, fd: Fd, offset: int) -> asyncio.Task[None]:
    task = asyncio.create_task(slots.map(fd, 0x1000, offset, 0x2000))
    message, fds = await vmm.request()
    assert message == mapping(offset)
    assert len(fds) == 1
    return task
