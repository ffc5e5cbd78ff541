"""Memory is freed when its last user ends, and not when the garbage collector runs."""

from __future__ import annotations

import asyncio
import gc
import os
import socket
import threading
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from random import Random
from typing import Any

import pytest

from tests.gpu import driver as d
from tests.gpu import nonsense
from tests.gpu.executor_stand import A, Gate, run_steps, work
from tests.gpu.machine import LIMIT, MIB, Machine, Ram, cancel
from tests.hostile.siege import RogueRing, entries
from tests.support.front_end import FrontEnd
from tests.support.garbage import BUFFERS, no_garbage
from tests.support.ring_driver import GuestRam
from tests.support.until import until
from vgpud.coherency.slot_policy import Layout
from vgpud.errors import Interrupted, OutOfRange, VgpudError
from vgpud.gpu.compose import compose
from vgpud.gpu.device import GpuDevice
from vgpud.gpu.environment import Environment
from vgpud.gpu.errors import InvalidParameter
from vgpud.gpu.executor import Executor
from vgpud.gpu.operations import Operations
from vgpud.gpu.wire import commands as c
from vgpud.gpu.wire.command_codec import Command, encode
from vgpud.gpu.wire.header import Rect
from vgpud.gpu.wire.protocol import CONTROL_QUEUE, CURSOR_QUEUE
from vgpud.memory.addresses import Gpa, Uva
from vgpud.unix.stream_socket import StreamSocket
from vgpud.vhost.session import Session
from vgpud.vhost.split_ring import Chain
from vgpud.vhost.wire import messages as m


class Answers:
    """Stands for the ring of a queue."""

    def __init__(self) -> None:
        self.count = 0

    def complete(self, chain: Chain, response: bytes, *, publish: bool = True) -> None:
        self.count += 1

    def publish(self) -> None:
        pass

    def forget_unanswered(self) -> None:
        pass


class Driven:
    """A device with its threads and timelines, whose commands come without a ring."""

    def __init__(self, layout: Layout, window: int = MIB, limit: int = LIMIT) -> None:
        with Machine(layout, window=window, limit=limit) as machine:
            spec = machine.spec
        self.ram = Ram()
        self.device: GpuDevice = compose(spec, Environment())
        self.device.set_memory(self.ram.memory.table)
        self.answers = Answers()
        for queue in self.device._queues.values():
            queue.queue = self.answers  # type: ignore[assignment]

    async def do(self, command: Command) -> None:
        """Executes a command until it is answered."""
        before = self.answers.count
        waiting = self.begin(command)
        if waiting is not None:
            await waiting
        while self.answers.count == before:  # noqa: ASYNC110
            await asyncio.sleep(0.0005)

    def begin(self, command: Command) -> Coroutine[Any, Any, None] | None:
        cursor = type(command).__name__ in {"UpdateCursor", "MoveCursor"}
        queue = self.device._queues[CURSOR_QUEUE if cursor else CONTROL_QUEUE]
        return queue.handle(Chain(0, (), ()), encode(command))

    def close(self) -> None:
        self.device.close()
        self.ram.close()


def drive(main: Callable[[Driven], Coroutine[Any, Any, None]], layout: Layout, **more: int) -> None:
    async def whole() -> None:
        driven = Driven(layout, **more)
        try:
            async with asyncio.timeout(60):
                await main(driven)
        finally:
            driven.close()

    asyncio.run(whole())


@pytest.mark.parametrize("layout", Layout)
def test_no_command_and_no_error_leaves_garbage(layout: Layout) -> None:
    async def main(driven: Driven) -> None:
        random = Random(5)
        for command in [nonsense.command(random) for _ in range(50)]:
            await driven.do(command)  # imports, caches
        with no_garbage():
            for _ in range(1500):
                await driven.do(nonsense.command(random))
            await driven.device.reset()

    drive(main, layout)


def resident() -> int:
    pages = Path("/proc/self/statm").read_text().split()[1]
    return int(pages) * os.sysconf("SC_PAGESIZE")


@contextmanager
def grows_less_than(limit: int) -> Iterator[None]:
    gc.collect()
    gc.disable()
    try:
        before = resident()
        yield
        assert resident() - before < limit
    finally:
        gc.enable()


SIZE = 32 * MIB


def test_a_bad_packet_after_long_work_keeps_no_memory() -> None:
    async def main(driven: Driven) -> None:
        fills = [d.fill(1, 0, SIZE, n) for n in range(7)]
        await driven.do(d.ctx_create())
        with grows_less_than(3 * SIZE):
            for _ in range(10):
                await driven.do(d.create_blob(1, SIZE))
                await driven.do(d.ctx_attach(1))
                await driven.do(d.submit(*fills, tail=b"bad!"))
                await driven.do(d.unref(1))

    drive(main, Layout.WINDOW, window=2 * SIZE, limit=4 * SIZE)


def test_a_reset_during_a_long_transfer_keeps_no_memory() -> None:
    async def main(driven: Driven) -> None:
        pages = [(1 << 32, 256 * 1024)] * (SIZE // (256 * 1024))
        with grows_less_than(3 * SIZE):
            for _ in range(10):
                await driven.do(d.create_2d(1, 1024, SIZE // 4096))
                await driven.do(d.attach_backing(1, *pages))
                waiting = driven.begin(d.transfer(1, Rect(0, 0, 1024, SIZE // 4096)))
                assert waiting is not None
                copying = asyncio.create_task(waiting)
                await asyncio.sleep(0.005)
                copying.cancel()
                await asyncio.wait([copying])
                del copying, waiting
                await driven.device.reset()

    drive(main, Layout.WINDOW, limit=4 * SIZE)


def executing(main: Callable[[Executor], Coroutine[Any, Any, None]]) -> None:
    async def whole() -> None:
        executor = Executor("test")
        async with asyncio.timeout(20):
            with suppress(ZeroDivisionError):
                await main(executor)
        executor.close()
        for thread in threading.enumerate():
            if thread.name.startswith("test-dma"):
                await asyncio.to_thread(thread.join)

    with no_garbage():
        asyncio.run(whole())


def fail() -> None:
    raise OutOfRange("no")


@pytest.mark.parametrize("cost", [0, 1 << 30])
def test_work_that_fails_leaves_no_garbage(cost: int) -> None:
    async def main(executor: Executor) -> None:
        ended = asyncio.Event()
        executor.submit(A, work(fail, cost=cost), lambda _: ended.set())
        await ended.wait()

    executing(main)


def test_a_copy_that_fails_leaves_no_garbage() -> None:
    async def main(executor: Executor) -> None:
        with suppress(OutOfRange):
            await executor.run_in_thread(run_steps(fail))

    executing(main)


@pytest.mark.parametrize("fails", [False, True])
def test_a_copy_that_is_cancelled_leaves_no_garbage(fails: bool) -> None:
    async def main(executor: Executor) -> None:
        gate = Gate()
        steps = run_steps(gate, fail) if fails else run_steps(gate)
        copying = asyncio.create_task(executor.run_in_thread(steps))
        await gate.reached()
        copying.cancel()
        await asyncio.sleep(0.01)
        gate.open.set()
        await asyncio.wait([copying])

    executing(main)


def test_an_end_while_work_runs_leaves_no_garbage() -> None:
    async def main(executor: Executor) -> None:
        gate = Gate()
        executor.submit(A, work(gate, gate), lambda _: None)
        copying = asyncio.create_task(executor.run_in_thread(run_steps(gate, gate)))
        await gate.reached()
        executor.close()
        copying.cancel()
        gate.open.set()
        await asyncio.wait([copying])

    executing(main)


async def refuse() -> None:
    raise InvalidParameter("no")


async def forever() -> None:
    await asyncio.Event().wait()


@pytest.mark.parametrize("operation", [refuse, forever], ids=lambda one: one.__name__)
def test_an_operation_that_fails_or_is_stopped_leaves_no_garbage(
    operation: Callable[[], Coroutine[Any, Any, None]],
) -> None:
    async def main() -> None:
        operations = Operations()
        async with asyncio.TaskGroup() as tasks:
            asyncio.get_running_loop().call_later(
                0.01, lambda: tasks.create_task(operations.stop("the end"))
            )
            with suppress(InvalidParameter, Interrupted):
                await operations.run(operation(), tasks)

    with no_garbage():
        asyncio.run(main())


def test_a_command_that_is_cancelled_leaves_no_garbage() -> None:
    with Machine() as machine:
        machine.all(d.ctx_create(), d.create_blob(1, MIB // 2))
        machine.patience.pausing = True
        with no_garbage():
            waiting = machine.start(d.map_blob(1, 0))
            waiting.send(None)
            cancel(waiting)
            del waiting
        with suppress(VgpudError):
            machine.patience.pausing = False


def session_end(end: Callable[[RogueRing], None]) -> None:
    """Serves one session in a thread, until a front-end has ended it."""
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    with Machine() as machine:
        spec = machine.spec

    async def serve() -> None:
        with suppress(BaseExceptionGroup):
            await Session(StreamSocket(ours), compose(spec, Environment())).run()

    thread = threading.Thread(target=lambda: asyncio.run(serve()))
    thread.start()
    fe = FrontEnd(theirs, GuestRam(((0, 64 * MIB),))).handshake(event_idx=False)
    try:
        end(RogueRing(fe))
    finally:
        with suppress(OSError, AssertionError):
            fe.close()
        thread.join()


def goes(ring: RogueRing) -> None:
    ring.context()


def breaks_the_ring(ring: RogueRing) -> None:
    ring.offer(ring.driver.size)
    until(lambda: ring.broken, 5)


def breaks_the_protocol(ring: RogueRing) -> None:
    ring.fe.send(m.SetVringNum(9, 1))
    assert ring.fe.hung_up()


def truncates_its_memory(ring: RogueRing) -> None:
    os.ftruncate(ring.ram.regions[0].fd, 0)
    ring.kick()
    assert ring.fe.hung_up()


def sends_a_bad_table(ring: RogueRing) -> None:
    region = ring.ram.regions[0]
    table = m.MemRegion(Gpa(region.gpa), region.size, Uva(region.uva), region.offset)
    ring.fe.send(m.SetMemTable((table, table)), [region.fd, region.fd])
    assert ring.fe.hung_up()


def goes_during_a_transfer(ring: RogueRing) -> None:
    ring.run(c.ResourceCreate2D, 1, 1, 1, 4 * MIB)
    ring.run(c.ResourceAttachBacking, 1, entries(24 * MIB, 16 * MIB))
    ring.offer(ring.command(c.TransferToHost2D, Rect(0, 0, 1, 4 * MIB), 0, 1))


@pytest.mark.parametrize(
    "end",
    [
        goes,
        breaks_the_ring,
        breaks_the_protocol,
        truncates_its_memory,
        sends_a_bad_table,
        goes_during_a_transfer,
    ],
    ids=lambda end: end.__name__,
)
def test_the_end_of_a_session_leaves_no_buffer(end: Callable[[RogueRing], None]) -> None:
    session_end(end)  # imports, caches
    with no_garbage(BUFFERS):
        session_end(end)
