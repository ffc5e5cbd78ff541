"""Streams of transfers: done without the handler, in order, few interrupts, and none too late."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest

from tests.support.until import until_async
from tests.vhost.queue_stand import QueueStand, run, standing
from vgpud.gpu.fast_path import TransferFastPath
from vgpud.gpu.guest_memory import GuestMemory
from vgpud.gpu.wire import commands as c
from vgpud.gpu.wire.command_codec import encode
from vgpud.gpu.wire.header import Header, Rect
from vgpud.gpu.wire.mem_entries import mem_entries
from vgpud.gpu.wire.protocol import CommandType, ResourceId
from vgpud.memory.extents import Extents
from vgpud.vhost import coalescing
from vgpud.vhost.coalescing import MAX_EMPTY_POLLS, MAX_THRESHOLD, POLL, THRESHOLD, Coalescing
from vgpud.vhost.split_ring import Chain

SIDE = 16
BACKING = 0x90000


def request(offset: int = 0) -> bytes:
    header = Header(CommandType.TRANSFER_TO_HOST_2D)
    return encode(c.TransferToHost2D(header, Rect(0, 0, 1, 1), offset, ResourceId(1)))


def with_image(stand: QueueStand) -> np.ndarray:
    """Enters image 1, whose backing is in the guest's first region; returns its pixels."""
    pixels = np.zeros((SIDE, SIDE, 4), np.uint8)
    memory = GuestMemory()
    memory.table = stand.memory
    table = TransferFastPath(memory)
    backing = stand.memory.resolve(mem_entries((BACKING, SIDE * SIDE * 4)))
    table.enter(ResourceId(1), SIDE, SIDE, Extents.from_array(pixels), backing)
    stand.fast_path = table.ready
    return pixels


@pytest.mark.parametrize("number", [1, THRESHOLD, 200])
def test_transfers_are_done_without_the_handler(number: int) -> None:
    async def test() -> None:
        async with standing(size=256) as stand:
            pixels = with_image(stand)
            stand.ram.write(BACKING + 8, b"good")
            stand.start()
            heads = [stand.driver.submit(request(8), 24, kick=False) for _ in range(number)]
            stand.driver.notify()
            for head in heads:
                assert await stand.answer(head) == b"\x00\x11" + bytes(22)
            assert not stand.handler.seen
            assert pixels[0, 0].tobytes() == b"good"

    run(test)


def test_nothing_overtakes_what_the_handler_does() -> None:
    async def test() -> None:
        async with standing(size=64) as stand:
            pixels = with_image(stand)
            seen: list[int] = []

            def look(chain: Chain, data: bytes) -> None:
                seen.append(int(pixels[0, 0, 0]))
                stand.queue.complete(chain, b"")

            stand.ram.write(BACKING, bytes([1, 0, 0, 0, 2, 0, 0, 0]))
            heads = [stand.driver.submit(request(0), 24, kick=False)]
            heads.append(stand.driver.submit(b"other", 24, kick=False))
            heads.append(stand.driver.submit(request(4), 24, kick=False))
            heads.append(stand.driver.submit(b"other", 24, kick=False))
            stand.queue.start(look, stand.fast_path)
            for head in heads:
                await stand.answer(head)
            # The transfer between the two came to the handler, which does not do them here.
            assert seen == [1, 1, 1]

    run(test)


def test_a_stream_costs_few_interrupts_and_leaves_nobody_waiting() -> None:
    async def test() -> None:
        async with standing(size=256) as stand:
            with_image(stand)
            stand.start()
            for _ in range(8):
                heads = [stand.driver.submit(request(), 24, kick=False) for _ in range(100)]
                stand.driver.notify()
                await until_async(
                    lambda: stand.driver.collect() >= 0 and len(stand.driver._done) >= 100
                )
                for head in heads:
                    await stand.answer(head)
            assert stand.driver.interrupts() <= 8 * 100 // 10

    run(test)


def test_what_is_held_back_is_published_when_the_ring_stops() -> None:
    async def test() -> None:
        async with standing(size=256) as stand:
            with_image(stand)
            for _ in range(2 * THRESHOLD):
                stand.driver.submit(request(), 24, kick=False)
            stand.start()
            await asyncio.sleep(0)  # one turn
            await stand.queue.stop()
            used = stand.ram.load_u16(stand.driver.used + 2)
            assert used == stand.queue.setup.base

    run(test)


def test_a_stream_is_expected_to_go_on_after_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(coalescing, "perf_counter", lambda: now)
    stream = Coalescing()
    stream.published()
    stream.add(THRESHOLD - 1)
    assert not stream.active
    assert not stream.may_hold(1, 256)
    stream.add(1)
    assert stream.may_hold(127, 256)
    assert not stream.may_hold(128, 256)
    now += coalescing.HOLD
    assert not stream.may_hold(1, 256)
    stream.published()
    assert stream.may_hold(1, 256)
    stream.end()
    assert not stream.active


def test_polls_in_vain_make_it_wait_longer() -> None:
    stream = Coalescing()
    needed = []
    for _ in range(14):
        count = 0
        while not stream.active:
            stream.add(1)
            count += 1
        needed.append(count)
        stream.polled(more=False)
    assert needed == [
        THRESHOLD,
        *[0] * MAX_EMPTY_POLLS,
        32,
        64,
        128,
        256,
        512,
        *[MAX_THRESHOLD] * 4,
    ]
    stream.polled(more=True)
    stream.end()
    stream.add(THRESHOLD)
    assert stream.active
    assert 0 < POLL < coalescing.HOLD
