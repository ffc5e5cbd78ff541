"""A virtqueue with real guest memory, rings and eventfds around it, and handlers to put on it."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any

from tests.support.ring_driver import Driver, GuestRam
from tests.support.until import until_async
from vgpud.memory.addresses import Gpa, Uva
from vgpud.native.ring import FastPath
from vgpud.unix.fd import Fd
from vgpud.vhost.memory_table import MemoryTable
from vgpud.vhost.ring_views import RingAddress
from vgpud.vhost.split_ring import F_EVENT_IDX, F_INDIRECT_DESC, Chain
from vgpud.vhost.virtqueue import Virtqueue
from vgpud.vhost.wire.messages import MemRegion

PATIENCE = 5.0
REGION = 1 << 20


class Handler:
    """Takes what comes, and answers with what came, turned round, unless told to wait."""

    queue: Virtqueue

    def __init__(self) -> None:
        self.seen: list[bytes] = []
        self.held: list[Chain] = []
        self.hold = False  # answer later, through `held`
        self.wait: asyncio.Event | None = None  # have the queue wait for the answer
        self.busy = 0.0  # seconds that each takes
        self._more = asyncio.Event()

    def __call__(self, chain: Chain, request: bytes) -> Coroutine[Any, Any, None] | None:
        self.seen.append(request)
        self._more.set()
        time.sleep(self.busy)
        if self.wait is not None:
            return self._answer_when(self.wait, chain, request)
        if self.hold:
            self.held.append(chain)
        else:
            self.queue.complete(chain, request[::-1])
        return None

    async def _answer_when(self, event: asyncio.Event, chain: Chain, request: bytes) -> None:
        await event.wait()
        self.queue.complete(chain, request[::-1])

    async def number(self, count: int) -> list[bytes]:
        """Waits until so many requests have come; returns them."""
        while len(self.seen) < count:
            self._more.clear()
            await self._more.wait()
        return self.seen


class QueueStand:
    """One queue and its driver; `start` says everything that a front-end says of a ring."""

    def __init__(self, tasks: asyncio.TaskGroup, *, size: int, features: int, base: int) -> None:
        self.ram = GuestRam(((0, REGION), (REGION, REGION)))
        self.driver = Driver(
            self.ram,
            0,
            size=size,
            indirect=bool(features & F_INDIRECT_DESC),
            event_idx=bool(features & F_EVENT_IDX),
            arena=REGION // 4,
        )
        self.memory = MemoryTable()
        self.handler = Handler()
        self.fast_path: Callable[[], FastPath | None] | None = None
        self.queue = self.handler.queue = Virtqueue("gpu0", "test", tasks)
        self.share(2)
        driver = self.driver
        driver._avail_idx = driver._decided_idx = driver._used_idx = base
        for index in (driver.avail + 2, driver.used + 2):
            self.ram.store_u16(index, base)
        self.queue.features = features
        self.queue.set_num(size)
        self.queue.set_base(base)
        self.queue.set_address(self.address)
        self.queue.set_kick(self.fd(driver.kick))
        self.queue.set_call(self.fd(driver.call))
        self.queue.set_err(self.fd(driver.err))
        self.queue.set_enabled(True)

    @staticmethod
    def fd(number: int) -> Fd:
        return Fd(os.dup(number))

    @property
    def address(self) -> RingAddress:
        at, driver = self.ram.user_address, self.driver
        return RingAddress(at(driver.desc), at(driver.avail), at(driver.used))

    def share(self, regions: int) -> None:
        """Shares that many of the guest's two regions."""
        self.memory = self.memory.with_regions(
            [
                (MemRegion(Gpa(r.gpa), r.size, Uva(r.uva), r.offset), Fd(os.dup(r.fd)))
                for r in self.ram.regions[:regions]
            ]
        )
        self.queue.set_memory(self.memory)

    def start(self) -> None:
        self.queue.start(self.handler, self.fast_path)

    async def answer(self, head: int, patience: float = PATIENCE) -> bytes:
        """What the device wrote for a chain, waited for as a driver does: by its interrupt."""
        return await asyncio.to_thread(self.driver.wait, head, patience)

    async def command(self, request: bytes, room: int = 64) -> bytes:
        return await self.answer(self.driver.submit(request, room))

    def broken(self) -> bool:
        """Whether the device has said by err that it gave the ring up."""
        try:
            return os.eventfd_read(self.driver.err) > 0
        except BlockingIOError:
            return False

    async def gave_up(self) -> None:
        """Waits until it has."""
        await until_async(lambda: not self.queue.running)
        assert self.broken()

    def close(self) -> None:
        self.queue.close()
        self.driver.close()
        self.ram.close()


@asynccontextmanager
async def standing(
    *, size: int = 8, features: int = F_EVENT_IDX | F_INDIRECT_DESC, base: int = 0
) -> AsyncIterator[QueueStand]:
    """A stand that ends as a session does: the queue is stopped, then its tasks must have ended."""
    async with asyncio.timeout(PATIENCE):
        stand = None
        try:
            async with asyncio.TaskGroup() as tasks:
                stand = QueueStand(tasks, size=size, features=features, base=base)
                yield stand
                await stand.queue.stop()
        finally:
            if stand is not None:
                stand.close()


def run(test: Callable[[], Awaitable[None]]) -> None:
    """Runs a coroutine to its end."""

    async def whole() -> None:
        await test()

    asyncio.run(whole())
