"""Screenshots in the making: one at a time, in their own threads, stopped with their callers."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from vgpud.daemon.screenshots import Screenshots, ScreenshotWork
from vgpud.gpu.display.capture import Capture
from vgpud.gpu.wire.protocol import Format
from vgpud.memory.steps import Steps

PATIENCE = 10.0
ROWS = 8


def descriptors() -> int:
    """How many this process has open."""
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


class SlowCapture(Capture):
    """A capture whose rows wait, one by one."""

    def __init__(self) -> None:
        super().__init__((16, ROWS), Format.B8G8R8X8_UNORM, 1 << 20)
        self.go_on = threading.Semaphore(0)
        self.rows_read = 0
        self.begun = threading.Event()

    def rows(self) -> Iterator[NDArray[np.uint8]]:
        for _ in range(ROWS):
            self.rows_read += 1
            self.begun.set()
            assert self.go_on.acquire(timeout=PATIENCE)
            yield np.zeros((1, 16, 3), np.uint8)


@asynccontextmanager
async def screenshots() -> AsyncIterator[Screenshots]:
    """Threads that are ended with the block."""
    made = Screenshots()
    try:
        async with asyncio.timeout(PATIENCE):
            yield made
    finally:
        made.close()


async def take(made: Screenshots, capture: Capture, device: str = "gpu0") -> None:
    """Takes a screenshot as the method does, and drops it."""
    async with made.turn(device) as work:
        work.at_end(capture.release)
        (await work.picture("picture", capture)).close()


async def given_up(made: Screenshots, capture: SlowCapture) -> None:
    """Takes a screenshot, and gives up while a thread works for it."""
    taking = asyncio.create_task(take(made, capture))
    await asyncio.to_thread(capture.begun.wait, PATIENCE)
    taking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await taking


def test_the_next_one_begins_when_the_thread_has_ended() -> None:
    async def test() -> None:
        async with screenshots() as made:
            slow, quick = SlowCapture(), SlowCapture()
            quick.go_on.release(ROWS)
            await given_up(made, slow)
            taking = asyncio.create_task(take(made, quick))
            await asyncio.sleep(0.05)
            assert not quick.begun.is_set()
            assert slow.pixels.size  # the thread may still read them
            await take(made, quick_one(), device="gpu1")  # another device's turn
            slow.go_on.release()
            await taking
            assert slow.rows_read == 1
            assert slow.pixels.size == 0

    asyncio.run(test())


def quick_one() -> SlowCapture:
    """A capture that takes no time."""
    capture = SlowCapture()
    capture.go_on.release(ROWS)
    return capture


def test_a_picture_that_is_complete_when_its_caller_goes_is_closed() -> None:
    async def test() -> None:
        async with screenshots() as made:
            await take(made, quick_one())
            before = descriptors()
            slow = SlowCapture()
            taking = asyncio.create_task(take(made, slow))
            await asyncio.to_thread(slow.begun.wait, PATIENCE)
            slow.go_on.release(ROWS)
            while slow.rows_read < ROWS:
                time.sleep(0.001)  # noqa: ASYNC251 - the loop must not see that it is complete
            time.sleep(0.05)  # noqa: ASYNC251
            assert descriptors() == before + 1
            taking.cancel()
            await asyncio.wait([taking])
            await take(made, quick_one())
            assert descriptors() == before

    asyncio.run(test())


def test_steps_are_stopped() -> None:
    async def test() -> None:
        begun, go_on, done = threading.Event(), threading.Event(), 0

        def steps() -> Steps:
            nonlocal done
            for _ in range(5):
                begun.set()
                assert go_on.wait(PATIENCE)
                done += 1
                yield

        async def run(made: Screenshots) -> None:
            async with made.turn("gpu0") as work:
                await work.run(steps())

        async with screenshots() as made:
            running = asyncio.create_task(run(made))
            await asyncio.to_thread(begun.wait, PATIENCE)
            running.cancel()
            await asyncio.wait([running])
            go_on.set()
            await take(made, quick_one())
            assert done == 1

    asyncio.run(test())


def test_the_turn_ends_with_its_block() -> None:
    async def test() -> None:
        async with screenshots() as made:
            ended: list[ScreenshotWork] = []

            async def fail() -> None:
                async with made.turn("gpu0") as work:
                    work.at_end(lambda: ended.append(work))
                    raise ZeroDivisionError

            for _ in range(2):
                with pytest.raises(ZeroDivisionError):
                    await fail()
            assert len(ended) == 2

    asyncio.run(test())


def test_the_event_loop_s_own_threads_are_left_to_others() -> None:
    async def test() -> None:
        go_on = threading.Event()
        with ThreadPoolExecutor(1) as threads:
            asyncio.get_running_loop().set_default_executor(threads)
            held = asyncio.create_task(asyncio.to_thread(go_on.wait, PATIENCE))
            async with screenshots() as made:
                await take(made, quick_one())
            assert not go_on.is_set()
            go_on.set()
            await held

    asyncio.run(test())
