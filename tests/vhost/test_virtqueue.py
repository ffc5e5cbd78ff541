"""Queues on real rings: what is answered, when interrupts come, starts, stops and what goes on."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable

import pytest

from tests.support.until import until_async
from tests.vhost.queue_stand import REGION, run, standing
from vgpud.vhost.memory_table import DirtyTracking, MemoryTable
from vgpud.vhost.pump import QUANTUM
from vgpud.vhost.ring import CUT
from vgpud.vhost.ring_life import RingLife
from vgpud.vhost.ring_views import RingAddress
from vgpud.vhost.split_ring import F_EVENT_IDX, F_INDIRECT_DESC

FEATURES = pytest.mark.parametrize(
    "features", [0, F_EVENT_IDX, F_INDIRECT_DESC, F_EVENT_IDX | F_INDIRECT_DESC]
)
BASES = pytest.mark.parametrize("base", [0, 0xFFFD])


class Noted(DirtyTracking):
    """Notes in a list what is marked as written."""

    def __init__(self, dirty: list[tuple[int, int]]) -> None:
        super().__init__()
        self._dirty = dirty

    def mark_dirty(self, guest_phys_addr: int, length: int) -> None:
        self._dirty.append((guest_phys_addr, length))


@FEATURES
@BASES
def test_requests_are_answered(features: int, base: int) -> None:
    async def test() -> None:
        async with standing(features=features, base=base) as stand:
            stand.start()
            for number in range(20):
                request = b"request %d" % number
                assert await stand.command(request) == request[::-1]
            assert await stand.queue.stop() == (base + 20) % (1 << 16)

    run(test)


@FEATURES
def test_many_at_once_come_in_order(features: int) -> None:
    async def test() -> None:
        async with standing(size=256, features=features) as stand:
            requests = [b"%d" % number for number in range(100)]
            heads = [stand.driver.submit(request, 8, kick=False) for request in requests]
            stand.start()
            for request, head in zip(requests, heads, strict=True):
                assert await stand.answer(head) == request[::-1]
            assert stand.handler.seen == requests

    run(test)


def test_what_was_there_before_the_start_needs_no_kick() -> None:
    async def test() -> None:
        async with standing() as stand:
            head = stand.driver.submit(b"early", 8, kick=False)
            stand.start()
            assert await stand.answer(head) == b"ylrae"
            assert stand.driver.kicks == 0

    run(test)


def test_requests_and_answers_in_pieces() -> None:
    async def test() -> None:
        async with standing(features=0) as stand:
            stand.start()
            head = stand.driver.submit([b"ab", b"", b"cde", b"f"], [2, 0, 3, 8])
            chain = stand.driver._pending[head]
            assert await stand.answer(head) == b"fedcba"
            assert stand.handler.seen == [b"abcdef"]
            # What is left of the room is the driver's own.
            assert stand.ram.read(chain.writable[3][0], 8) == b"a" + b"\xa5" * 7

    run(test)


@pytest.mark.parametrize("room", [0, 1, 5])
def test_an_answer_is_cut_to_the_room_there_is(room: int) -> None:
    async def test() -> None:
        async with standing() as stand:
            stand.start()
            head = stand.driver.submit(b"123456", room or [])
            assert await stand.answer(head) == b"654321"[:room]

    run(test)


def test_answers_over_the_border_of_two_regions() -> None:
    async def test() -> None:
        async with standing() as stand:
            stand.start()
            stand.driver._buffers = REGION - 16  # the request there, the answer across
            stand.driver._arena_end = 2 * REGION
            head = stand.driver.submit(b"12345678", 64)
            assert await stand.answer(head) == b"87654321"
            head = stand.driver.submit(bytes(range(200)), 200)
            assert await stand.answer(head) == bytes(range(200))[::-1]

    run(test)


def test_one_interrupt_for_all_that_is_answered_in_one_go() -> None:
    async def test() -> None:
        async with standing(size=16, features=F_INDIRECT_DESC) as stand:
            heads = [stand.driver.submit(b"x", 1, kick=False) for _ in range(10)]
            stand.start()
            await stand.handler.number(10)
            await asyncio.sleep(0.01)
            # One, unless the machine is so busy that this takes more than one turn.
            assert 1 <= stand.driver.interrupts() <= 4
            assert stand.driver.collect() == len(heads)

    run(test)


@pytest.mark.parametrize("features", [0, F_EVENT_IDX])
def test_no_interrupt_where_the_driver_wants_none(features: int) -> None:
    async def test() -> None:
        async with standing(features=features) as stand:
            event = stand.driver.avail + 4 + 2 * stand.driver.size
            stand.ram.store_u16(stand.driver.avail, 0 if features else 1)
            stand.ram.store_u16(event, 2)  # with EVENT_IDX: not before the third
            stand.start()
            seen = []
            for number in range(4):
                stand.driver.submit(b"x", 1)
                await stand.handler.number(number + 1)
                await asyncio.sleep(0.01)
                seen.append(stand.driver.interrupts())
            assert seen == ([0, 0, 1, 0] if features else [0, 0, 0, 0])
            assert stand.driver.collect() == 4

    run(test)


def test_a_driver_need_not_kick_while_the_queue_is_busy() -> None:
    async def test() -> None:
        async with standing(features=0) as stand:
            stand.handler.wait = asyncio.Event()
            stand.start()
            first = stand.driver.submit(b"first", 8)
            await stand.handler.number(1)
            second = stand.driver.submit(b"second", 8)
            stand.handler.wait.set()
            assert await stand.answer(first) == b"tsrif"
            assert await stand.answer(second) == b"dnoces"
            assert stand.driver.kicks == 1
            # Asleep again, it must be woken.
            await until_async(lambda: stand.ram.load_u16(stand.driver.used) & 1 == 0)
            assert await stand.command(b"third") == b"driht"
            assert stand.driver.kicks == 2

    run(test)


def test_answers_may_come_later_and_in_any_order() -> None:
    async def test() -> None:
        async with standing() as stand:
            stand.handler.hold = True
            stand.start()
            heads = [stand.driver.submit(b"%d" % number, 4) for number in range(4)]
            await stand.handler.number(4)
            for number in (2, 0, 3, 1):
                stand.queue.complete(stand.handler.held[number], b"a%d" % number)
            assert [await stand.answer(head) for head in heads] == [b"a0", b"a1", b"a2", b"a3"]

    run(test)


def test_the_queue_waits_for_a_coroutine_before_it_goes_on() -> None:
    async def test() -> None:
        async with standing() as stand:
            stand.handler.wait = asyncio.Event()
            stand.start()
            heads = [stand.driver.submit(b"%d" % number, 4) for number in range(2)]
            await stand.handler.number(1)
            await asyncio.sleep(0.01)
            assert stand.handler.seen == [b"0"]
            stand.handler.wait.set()
            assert [await stand.answer(head) for head in heads] == [b"0", b"1"]

    run(test)


def test_what_a_stop_interrupts_is_taken_up_anew() -> None:
    async def test() -> None:
        async with standing(base=0xFFFF) as stand:
            stand.handler.wait = asyncio.Event()
            stand.start()
            heads = [stand.driver.submit(b"%d" % number, 4) for number in range(3)]
            await stand.handler.number(1)
            assert await stand.queue.stop() == 0xFFFF
            assert stand.queue.setup.base == 0xFFFF
            assert not stand.queue.running
            assert stand.driver.collect() == 0
            stand.handler.wait = None
            stand.start()
            assert [await stand.answer(head) for head in heads] == [b"0", b"1", b"2"]
            assert stand.handler.seen == [b"0", b"0", b"1", b"2"]
            assert await stand.queue.stop() == 2

    run(test)


def test_what_is_answered_while_stopped_is_held_back() -> None:
    async def test() -> None:
        async with standing() as stand:
            stand.handler.hold = True
            stand.start()
            heads = [stand.driver.submit(b"%d" % number, 4) for number in range(2)]
            await stand.handler.number(2)
            assert await stand.queue.stop() == 2
            before = stand.ram.read(0, REGION)
            for chain in stand.handler.held:
                stand.queue.complete(chain, b"late")
            assert stand.ram.read(0, REGION) == before
            stand.start()
            assert [await stand.answer(head) for head in heads] == [b"late", b"late"]
            assert not stand.queue._finished

    run(test)


def test_many_answers_held_back_are_written_in_several_turns(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("vgpud.vhost.virtqueue.PUBLISH_AFTER", 0.0)

    async def test() -> None:
        async with standing(size=64) as stand:
            stand.handler.hold = True
            stand.start()
            heads = [stand.driver.submit(b"%d" % number, 4) for number in range(10)]
            await stand.handler.number(10)
            await stand.queue.stop()
            *most, last = stand.handler.held
            for chain in most:
                stand.queue.complete(chain, b"late")
            stand.handler.hold = False
            stand.start()
            assert len(stand.queue._finished) == 8
            await stand.queue.stop()  # in the middle of it
            stand.queue.complete(last, b"last")
            assert len(stand.queue._finished) == 9
            stand.start()
            heads.append(stand.driver.submit(b"new", 4))
            assert await stand.answer(heads[-1]) == b"wen"
            seen = [await stand.answer(head) for head in heads[:-1]]
            assert seen == [*[b"late"] * 9, b"last"]

    run(test)


LONG_REQUEST = bytes(range(256)) * 1500


def test_long_requests_are_read_in_steps() -> None:
    async def test() -> None:
        async with standing() as stand:
            stand.driver._arena_end = REGION
            stand.start()
            heads = [stand.driver.submit(data, 4) for data in (LONG_REQUEST, b"next")]
            assert await stand.answer(heads[0]) == LONG_REQUEST[:-5:-1]
            assert await stand.answer(heads[1]) == b"txen"
            assert stand.handler.seen == [LONG_REQUEST, b"next"]

    run(test)


def test_a_device_says_how_much_of_a_long_request_it_reads() -> None:
    async def test() -> None:
        async with standing() as stand:
            begins: list[bytes] = []
            sizes = [10, CUT + 100, len(LONG_REQUEST), 1 << 30]

            def size(begin: bytes) -> int:
                begins.append(begin)
                return sizes[len(begins) - 1]

            stand.driver._arena_end = REGION
            stand.queue.start(stand.handler, request_size=size)
            for _ in sizes:
                await stand.command(LONG_REQUEST)
            assert begins == [LONG_REQUEST[:CUT]] * 4
            assert [len(request) for request in stand.handler.seen] == [CUT, *sizes[1:3], sizes[2]]
            assert all(LONG_REQUEST.startswith(request) for request in stand.handler.seen)

    run(test)


def test_a_stop_while_a_long_request_is_read_leaves_it_for_the_next_start(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("vgpud.vhost.ring.STEP", 64)
    monkeypatch.setattr("vgpud.pace.STEP", 0.0)

    async def test() -> None:
        async with standing() as stand:
            stand.driver._arena_end = REGION
            stand.start()
            head = stand.driver.submit(LONG_REQUEST, 4)
            await asyncio.sleep(0.01)
            assert await stand.queue.stop() == 0
            assert stand.handler.seen == []
            monkeypatch.setattr("vgpud.vhost.ring.STEP", 1 << 20)
            stand.start()
            assert await stand.answer(head) == LONG_REQUEST[:-5:-1]
            assert stand.handler.seen == [LONG_REQUEST]

    run(test)


def test_a_long_request_whose_memory_goes_while_it_is_read_breaks_the_ring(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("vgpud.vhost.ring.STEP", 64)
    monkeypatch.setattr("vgpud.pace.STEP", 0.0)

    async def test() -> None:
        async with standing() as stand:
            stand.driver._buffers = REGION  # in the second region
            stand.driver._arena_end = 2 * REGION
            stand.start()
            stand.driver.submit(LONG_REQUEST, 4)
            await asyncio.sleep(0.01)
            stand.share(1)
            await stand.gave_up()
            assert stand.handler.seen == []

    run(test)


def test_what_nobody_waits_for_is_forgotten() -> None:
    async def test() -> None:
        async with standing() as stand:
            stand.handler.hold = True
            stand.start()
            stand.driver.submit(b"x", 4)
            await stand.handler.number(1)
            await stand.queue.stop()
            stand.queue.complete(stand.handler.held[0], b"late")
            stand.queue.forget_unanswered()
            stand.driver.reset()
            stand.queue.set_base(0)
            stand.handler.hold = False
            stand.start()
            assert await stand.command(b"ab") == b"ba"
            assert stand.driver.last_used == 1

    run(test)


def test_it_starts_only_when_all_is_said_and_once() -> None:
    async def test() -> None:
        async with standing() as stand:
            queue = stand.queue
            lives = [queue.life]
            changes: list[tuple[Callable[[], object], Callable[[], object]]] = [
                (lambda: queue.set_num(0), lambda: queue.set_num(8)),
                (lambda: queue.set_enabled(False), lambda: queue.set_enabled(True)),
                (queue.forget_kick, lambda: queue.set_kick(stand.fd(stand.driver.kick))),
            ]
            for without, with_it in changes:
                without()
                lives.append(queue.life)
                stand.start()
                assert not queue.running
                with_it()
                lives.append(queue.life)
            assert lives == [RingLife.READY, *[RingLife.STOPPED, RingLife.READY] * 3]
            stand.start()
            assert stand.queue.running
            stand.start()
            assert await stand.command(b"ab") == b"ba"
            assert stand.handler.seen == [b"ab"]

    run(test)


def test_a_stop_before_any_start_answers_the_base() -> None:
    async def test() -> None:
        async with standing(base=77) as stand:
            assert await stand.queue.stop() == 77

    run(test)


def test_without_a_kick_descriptor_the_ring_is_polled() -> None:
    async def test() -> None:
        async with standing() as stand:
            stand.queue.set_kick(None)
            assert stand.queue.life is RingLife.READY
            stand.start()
            await asyncio.sleep(0.01)
            assert await stand.answer(stand.driver.submit(b"ab", 4, kick=False)) == b"ba"

    run(test)


def test_polling_can_begin_while_the_ring_runs() -> None:
    async def test() -> None:
        async with standing() as stand:
            stand.start()
            assert await stand.command(b"ab") == b"ba"
            await asyncio.sleep(0.01)
            stand.queue.set_kick(None)
            assert await stand.answer(stand.driver.submit(b"cd", 4, kick=False), 1) == b"dc"

    run(test)


def test_a_new_kick_takes_the_old_ones_place() -> None:
    async def test() -> None:
        async with standing() as stand:
            stand.start()
            assert await stand.command(b"ab") == b"ba"
            other = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
            stand.driver.kick, old = other, stand.driver.kick
            stand.queue.set_kick(stand.fd(other))
            assert await stand.command(b"cd") == b"dc"
            stand.queue.set_kick(None)
            stand.queue.set_kick(stand.fd(old))
            stand.driver.kick = old
            os.close(other)
            assert await stand.command(b"ef") == b"fe"

    run(test)


def test_a_driver_that_polls_has_no_call() -> None:
    async def test() -> None:
        async with standing() as stand:
            stand.queue.set_call(None)
            stand.start()
            stand.driver.submit(b"ab", 4)
            await stand.handler.number(1)
            await asyncio.sleep(0.01)
            assert stand.driver.interrupts() == 0
            assert stand.driver.collect() == 1

    run(test)


def test_a_running_ring_goes_on_when_its_memory_is_mapped_anew() -> None:
    async def test() -> None:
        async with standing() as stand:
            stand.start()
            assert await stand.command(b"ab") == b"ba"
            stand.memory = MemoryTable()  # so that no old mapping is found to be kept
            stand.share(1)
            assert await stand.command(b"cd") == b"dc"

    run(test)


def test_used_entries_are_logged_where_the_front_end_wants_it() -> None:
    async def test() -> None:
        async with standing() as stand:
            dirty: list[tuple[int, int]] = []
            log_at = 0x1234_0000
            stand.memory = MemoryTable(tracking=Noted(dirty))
            stand.share(2)
            stand.start()
            assert await stand.command(b"ab") == b"ba"
            assert not [at for at, _ in dirty if at >= log_at]
            parts = stand.address
            stand.queue.set_address(RingAddress(parts.desc, parts.avail, parts.used, log_at))
            assert await stand.command(b"cd") == b"dc"
            await asyncio.sleep(0.01)
            marked = {at - log_at + i for at, n in dirty if at >= log_at for i in range(n)}
            assert {2, 3, *range(12, 20)} <= marked  # used.idx and the second entry
            assert marked <= set(range(6 + 8 * stand.driver.size))
            dirty.clear()
            stand.queue.set_address(parts)
            assert await stand.command(b"ef") == b"fe"
            assert not [at for at, _ in dirty if at >= log_at]

    run(test)


def test_a_busy_guest_does_not_keep_others_from_their_turn() -> None:
    async def test() -> None:
        async with standing(size=32) as stand:
            turns = set()

            async def other() -> None:
                while len(stand.handler.seen) < 20:
                    turns.add(len(stand.handler.seen))
                    await asyncio.sleep(0)

            for _ in range(20):
                stand.driver.submit(b"x", 1, kick=False)
            stand.handler.busy = QUANTUM / 2
            task = asyncio.create_task(other())
            stand.start()
            await task
            assert len(turns) > 5

    run(test)


def test_two_queues_do_not_mind_each_other() -> None:
    async def test() -> None:
        async with standing() as one, standing() as other:
            one.start()
            other.start()
            one.handler.wait = asyncio.Event()
            head = one.driver.submit(b"ab", 4)
            assert await other.command(b"cd") == b"dc"
            one.handler.wait.set()
            assert await one.answer(head) == b"ba"

    run(test)


def test_a_kick_overtakes_nothing_that_is_to_be_waited_for() -> None:
    async def test() -> None:
        async with standing() as stand:
            stand.start()
            await asyncio.sleep(0.01)  # the task waits for kicks
            stand.handler.wait = asyncio.Event()
            heads = [stand.driver.submit(b"first", 64, kick=False)]
            pump = stand.queue._pump
            assert pump is not None
            pump._on_kick()
            heads.append(stand.driver.submit(b"second", 64, kick=False))
            pump._on_kick()  # before the handler has begun to wait
            await asyncio.sleep(0.01)
            assert stand.handler.seen == [b"first"]
            stand.handler.wait.set()
            assert [await stand.answer(head) for head in heads] == [b"tsrif", b"dnoces"]

    run(test)


def test_what_nobody_began_is_taken_up_when_the_ring_starts_again() -> None:
    async def test() -> None:
        async with standing() as stand:
            stand.start()
            await asyncio.sleep(0.01)
            stand.handler.wait = asyncio.Event()
            heads = [stand.driver.submit(data, 64, kick=False) for data in (b"first", b"second")]
            assert stand.queue._pump is not None
            stand.queue._pump._on_kick()
            assert await stand.queue.stop() == 0
            stand.handler.wait = None
            stand.start()
            assert [await stand.answer(head) for head in heads] == [b"tsrif", b"dnoces"]

    run(test)
