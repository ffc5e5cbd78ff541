"""Queues whose guest or front-end breaks the rules: the ring stops, or the session; nothing else.

Every test here ends as a session does, with a stop and a task group: that must not hang either.
"""

from __future__ import annotations

import asyncio
import gc
import os
from collections import deque
from collections.abc import Callable
from dataclasses import replace

import pytest

from tests.support.until import until_async
from tests.vhost.queue_stand import REGION, QueueStand, run, standing
from vgpud.errors import PeerError
from vgpud.unix.fd import Fd
from vgpud.vhost.memory_table import MemoryTable
from vgpud.vhost.split_ring import Chain

NOWHERE = 1 << 40


def bad_head(stand: QueueStand) -> None:
    stand.driver.make_available(99)


def index_too_far_ahead(stand: QueueStand) -> None:
    stand.ram.store_u16(stand.driver.avail + 2, stand.driver._avail_idx + stand.driver.size + 1)
    stand.driver.notify()


def request_outside_of_memory(stand: QueueStand) -> None:
    describe(stand, (NOWHERE, 16, 0, 0))


def request_over_the_end_of_memory(stand: QueueStand) -> None:
    describe(stand, (2 * REGION - 8, 16, 0, 0))


def head_again(stand: QueueStand) -> None:
    stand.handler.hold = True
    describe(stand, (0, 16, 0, 0))
    stand.driver.make_available(0)


def answer_outside_of_memory(stand: QueueStand) -> None:
    describe(stand, (0, 16, 1, 1), (NOWHERE, 64, 2, 0))


def answer_that_wraps(stand: QueueStand) -> None:
    describe(stand, (0, 16, 1, 1), ((1 << 64) - 8, 64, 2, 0))


def describe(stand: QueueStand, *descriptors: tuple[int, int, int, int]) -> None:
    for at, (addr, length, flags, following) in enumerate(descriptors):
        data = addr.to_bytes(8, "little") + length.to_bytes(4, "little")
        data += flags.to_bytes(2, "little") + following.to_bytes(2, "little")
        stand.ram.write(stand.driver.desc + 16 * at, data)
    stand.driver.make_available(0)


BAD = pytest.mark.parametrize(
    "misbehave",
    [
        bad_head,
        index_too_far_ahead,
        request_outside_of_memory,
        request_over_the_end_of_memory,
        head_again,
        answer_outside_of_memory,
        answer_that_wraps,
    ],
)


@BAD
def test_a_bad_ring_stops_alone(
    misbehave: Callable[[QueueStand], None], caplog: pytest.LogCaptureFixture
) -> None:
    async def test() -> None:
        async with standing() as stand, standing() as other:
            stand.start()
            other.start()
            assert await stand.command(b"good") == b"doog"
            misbehave(stand)
            await stand.gave_up()
            assert not stand.broken()  # said once
            assert await other.command(b"well") == b"llew"
            # A guest that kicks on is not heard, and costs nothing.
            stand.driver.notify()
            await asyncio.sleep(0.01)
            assert not stand.broken()

    run(test)
    assert len(caplog.records) == 1
    assert "queue stopped device=gpu0 queue=test: " in caplog.text


@BAD
def test_a_new_driver_makes_a_broken_ring_good(misbehave: Callable[[QueueStand], None]) -> None:
    async def test() -> None:
        async with standing() as stand:
            stand.start()
            misbehave(stand)
            await stand.gave_up()
            await stand.queue.stop()
            stand.driver.reset()
            stand.handler.hold = False
            stand.queue.set_base(0)
            stand.start()
            assert await stand.command(b"good") == b"doog"
            assert await stand.queue.stop() == 1

    run(test)


def test_no_err_descriptor_is_no_matter() -> None:
    async def test() -> None:
        async with standing() as stand:
            stand.queue.set_err(None)
            stand.start()
            bad_head(stand)
            async with asyncio.timeout(1):
                while stand.queue.running:  # noqa: ASYNC110
                    await asyncio.sleep(0)

    run(test)


@pytest.mark.parametrize("wrong", ["num", "alignment", "nowhere"])
def test_a_ring_that_cannot_be_is_not_started(wrong: str) -> None:
    async def test() -> None:
        async with standing() as stand:
            address = stand.address
            if wrong == "num":
                stand.queue.set_num(3)
            elif wrong == "alignment":
                stand.queue.set_address(replace(address, used=address.used + 1))
            else:
                stand.queue.set_address(replace(address, desc=NOWHERE))
            stand.start()
            assert not stand.queue.running
            assert stand.broken()
            stand.queue.set_num(stand.driver.size)
            stand.queue.set_address(address)
            stand.start()
            assert await stand.command(b"good") == b"doog"

    run(test)


@pytest.mark.parametrize("waits", [False, True])
def test_memory_that_loses_the_ring_stops_it(waits: bool) -> None:
    async def test() -> None:
        async with standing() as stand:
            if waits:
                stand.handler.wait = asyncio.Event()
            stand.start()
            stand.driver.submit(b"one", 8)
            await stand.handler.number(1)
            stand.queue.set_memory(MemoryTable())
            assert not stand.queue.running
            assert stand.broken()
            await asyncio.sleep(0.01)
            stand.driver.notify()
            assert stand.handler.seen == [b"one"]

    run(test)


async def _held_back(stand: QueueStand, count: int) -> None:
    """Leaves answers to be written at the next start, into memory that goes meanwhile."""
    stand.driver._buffers = REGION  # in the second region
    stand.driver._arena_end = 2 * REGION
    stand.handler.hold = True
    stand.start()
    for number in range(count):
        stand.driver.submit(b"%d" % number, 8)
    await stand.handler.number(count)
    await stand.queue.stop()
    for chain in stand.handler.held:
        stand.queue.complete(chain, b"late")
    stand.share(1)


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.timeout(10)
def test_answers_held_back_that_have_no_memory_any_more(count: int) -> None:
    async def test() -> None:
        async with standing(features=0, size=16) as stand:
            await _held_back(stand, count)
            finished = Bounded(stand.queue._finished)
            stand.queue._finished = finished
            stand.start()
            assert not stand.queue.running
            assert stand.broken()
            await asyncio.sleep(0.01)  # nor does a task go on without a ring
            # A guest that starts afresh has a queue that works.
            stand.queue.forget_unanswered()
            stand.driver.reset()
            stand.queue.set_base(0)
            stand.handler.hold = False
            stand.start()
            assert await stand.command(b"good") == b"doog"

    run(test)


class Bounded(deque[tuple[Chain, bytes]]):
    """A queue that fails the test instead of growing without end."""

    def append(self, item: tuple[Chain, bytes]) -> None:
        assert len(self) < 100, "the list of answers grows while it is gone through"
        super().append(item)


def test_a_new_size_while_the_ring_runs_is_no_bug_of_ours() -> None:
    """SET_VRING_NUM then SET_MEM_TABLE: the ring stops or goes on as it was; it never raises."""

    async def test() -> None:
        async with standing(size=8) as stand:
            stand.start()
            for _ in range(3):
                assert await stand.command(b"good") == b"doog"
            stand.queue.set_num(2)
            stand.queue.set_memory(stand.memory)
            for _ in range(3):
                head = stand.driver.submit(b"good", 8)
                if stand.queue.running:
                    assert await stand.answer(head) == b"doog"
                else:
                    assert stand.broken()

    run(test)


# -- A front-end that breaks the rules: its session ends ------------------------------------------


def a_file(_: QueueStand) -> Fd:
    return Fd(os.memfd_create("no-eventfd", os.MFD_CLOEXEC))


def a_pipe_that_ended(_: QueueStand) -> Fd:
    ours, theirs = os.pipe()
    os.close(theirs)
    return Fd(ours)


def a_pipe(stand: QueueStand) -> Fd:
    ours, theirs = os.pipe()
    os.write(theirs, b"short")
    stand.driver.kick, theirs = theirs, stand.driver.kick
    os.close(theirs)
    return Fd(ours)


def session(prepare: Callable[[QueueStand], None]) -> list[BaseException]:
    """Serves a ring until the session ends by itself; the errors that it ended with."""
    complaints: list[object] = []
    errors: list[BaseException] = []

    async def test() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _, said: complaints.append(said))
        try:
            async with standing() as stand:
                prepare(stand)
                stand.start()
                stand.driver.notify()
                await asyncio.sleep(1)
        except* PeerError as group:
            errors.extend(group.exceptions)

    run(test)
    assert complaints == []
    return errors


@pytest.mark.parametrize("make", [a_file, a_pipe_that_ended, a_pipe])
def test_a_kick_that_is_no_eventfd(make: Callable[[QueueStand], Fd]) -> None:
    (error,) = session(lambda stand: stand.queue.set_kick(make(stand)))
    assert isinstance(error, PeerError)


@pytest.mark.parametrize("make", [a_pipe_that_ended])
def test_a_call_that_is_no_eventfd(make: Callable[[QueueStand], Fd]) -> None:
    def prepare(stand: QueueStand) -> None:
        stand.queue.set_call(make(stand))
        describe(stand, (0, 16, 0, 0))

    (error,) = session(prepare)
    assert isinstance(error, PeerError)


@pytest.mark.parametrize("waits", [False, True])
def test_memory_that_is_truncated(waits: bool) -> None:
    def prepare(stand: QueueStand) -> None:
        if waits:
            stand.handler.wait = asyncio.Event()
        describe(stand, (REGION, 16, 1, 1), (REGION + 64, 64, 2, 0))
        os.ftruncate(stand.ram.regions[1].fd, 0)

    (error,) = session(prepare)
    assert isinstance(error, PeerError)
    assert "truncated" in str(error)
    assert "or the filesystem of that is full" in str(error)  # which looks the same
    gc.collect()  # a coroutine that nobody awaited is told of now


def test_an_err_that_is_no_eventfd_is_no_matter() -> None:
    async def test() -> None:
        async with standing() as stand:
            stand.queue.set_err(a_pipe_that_ended(stand))
            stand.start()
            bad_head(stand)
            await until_async(lambda: not stand.queue.running)

    run(test)
