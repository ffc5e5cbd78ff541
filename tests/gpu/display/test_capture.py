"""Screenshots: whole frames, in small steps, and of limited size."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest
from numpy.typing import NDArray

from vgpud.errors import OutOfMemory
from vgpud.gpu.display import capture as capturing
from vgpud.gpu.display.capture import Capture, Captures
from vgpud.gpu.display.reading import STEP
from vgpud.gpu.wire.header import Rect
from vgpud.gpu.wire.protocol import Format
from vgpud.memory.steps import Steps

BGRX = Format.B8G8R8X8_UNORM
LIMIT = 1 << 30
SIZES = [(64, 48), (1920, 1080), (3840, 2160)]


class Source:
    """A scanout that is a picture."""

    def __init__(self, size: tuple[int, int]) -> None:
        self.picture: NDArray[np.uint8] | None = np.zeros((size[1], size[0], 4), np.uint8)
        self.reads: list[Rect] = []
        self.dearness = 1

    def fill(self, value: int) -> None:
        assert self.picture is not None
        self.picture[:] = value

    def appearance(self, scanout_id: int) -> tuple[tuple[int, int], Format] | None:
        if self.picture is None:
            return None
        return (self.picture.shape[1], self.picture.shape[0]), BGRX

    def pixels(self, scanout_id: int, rect: Rect) -> NDArray[np.uint8] | None:
        self.reads.append(rect)
        assert self.picture is not None
        return self.picture[rect.y : rect.y + rect.height, rect.x : rect.x + rect.width]

    def cost(self, scanout_id: int, rect: Rect) -> int:
        return rect.width * rect.height * self.dearness // 2

    async def prepare(self, scanout_id: int) -> None:
        pass


async def flush(captures: Captures) -> None:
    """Flushes as a guest does, and returns when the command is answered."""
    if not captures.settle(0):
        await captures.finish_settling(0)


async def take(captures: Captures) -> NDArray[np.uint8] | None:
    capture = await captures.take(0, LIMIT)
    if capture is None:
        return None
    picture = np.concatenate([*capture.rows()])
    capture.release()
    return picture


@pytest.mark.parametrize("size", SIZES)
def test_a_frame_that_is_being_drawn_is_not_in_a_screenshot(size: tuple[int, int]) -> None:
    async def test() -> None:
        source = Source(size)
        captures = Captures(source)
        ended = False
        frames = 0

        async def draw() -> None:
            """Paints over the picture in two halves, as soon as a flush is answered."""
            nonlocal frames
            while not ended:
                frames += 1
                assert source.picture is not None
                half = size[1] // 2
                source.picture[:half] = frames % 250
                await asyncio.sleep(0)
                source.picture[half:] = frames % 250
                await flush(captures)

        drawing = asyncio.create_task(draw())
        for _ in range(20):
            picture = await take(captures)
            assert picture is not None
            assert (picture == picture[0, 0, 0]).all()
            await asyncio.sleep(0.002)
        ended = True
        await drawing
        assert frames > 20

    asyncio.run(test())


def test_what_stands_still_is_taken_as_it_is() -> None:
    async def test() -> None:
        source = Source((300, 200))
        source.picture = np.random.default_rng(1).integers(0, 256, (200, 300, 4), np.uint8)
        picture = await take(Captures(source))
        assert picture is not None
        assert np.array_equal(picture, source.picture[..., 2::-1])
        source.picture = None
        assert await take(Captures(source)) is None

    asyncio.run(test())


def test_another_picture_in_between_begins_it_again() -> None:
    async def test() -> None:
        source = Source((1920, 1080))
        source.fill(1)
        captures = Captures(source)
        taking = asyncio.create_task(take(captures))
        await asyncio.sleep(0)
        assert source.reads
        source.picture = np.full((480, 640, 4), 2, np.uint8)
        captures.disturb(0)
        picture = await taking
        assert picture is not None
        assert picture.shape == (480, 640, 3)
        assert (picture == 2).all()

        async def change() -> None:
            for turn in range(1000):
                source.picture = np.full((4 + turn % 2, 4, 4), 2, np.uint8)
                captures.disturb(0)
                await asyncio.sleep(capturing.SETTLE / 4)

        changing = asyncio.create_task(change())
        assert await take(captures) is None  # never the same for long enough
        changing.cancel()

    asyncio.run(test())


def test_a_flush_that_is_cancelled_leaves_no_half_screenshot() -> None:
    async def test() -> None:
        source = Source((1920, 1080))
        source.fill(1)
        captures = Captures(source)
        taking = asyncio.create_task(take(captures))
        await asyncio.sleep(capturing.SETTLE / 4)  # it waits for a flush
        source.fill(2)
        flushing = asyncio.create_task(flush(captures))
        source.reads.clear()
        await asyncio.sleep(0)
        assert len(source.reads) == 1  # of eight
        flushing.cancel()
        source.fill(3)
        picture = await taking
        assert picture is not None
        assert (picture == 3).all()

    asyncio.run(test())


@pytest.mark.parametrize("cost", [1, 9, 300])
def test_a_step_reads_little(cost: int) -> None:
    async def test() -> None:
        for size in ((2048, 2048), (16384, 100), (100, 16384)):
            source = Source(size)
            source.dearness = cost
            assert await take(Captures(source)) is not None
            for rect in source.reads:
                assert rect.width * rect.height * cost // 2 <= STEP

    asyncio.run(test())


def test_a_screenshot_has_a_limit() -> None:
    async def test() -> None:
        captures = Captures(Source((100, 100)))
        capture = await captures.take(0, 70_000)
        assert capture is not None
        capture.release()
        with pytest.raises(OutOfMemory, match="100x100 takes 70000 bytes, and memory_limit is"):
            await captures.take(0, 69_999)
        assert captures.settle(0)

    asyncio.run(test())


def test_the_pages_are_made_before_they_are_copied_to() -> None:
    async def test() -> None:
        source = Source((2048, 2048))
        source.fill(5)
        captures = Captures(source)
        steps_made = 0

        async def run_in_thread(steps: Steps) -> None:
            nonlocal steps_made
            for _ in steps:
                steps_made += 1
                await flush(captures)  # which does not wait for the pages
            assert source.reads == []

        capture = await captures.take(0, LIMIT, run_in_thread)
        assert capture is not None
        assert steps_made == 4
        assert (capture.pixels == 5).all()
        capture.release()

    asyncio.run(test())


def test_a_screenshot_that_is_cancelled_is_released() -> None:
    async def test() -> None:
        captures = Captures(Source((100, 100)))
        taking = asyncio.create_task(captures.take(0, LIMIT))
        await asyncio.sleep(0)
        [capture] = captures._running[0]
        assert capture.pixels.size
        taking.cancel()
        await asyncio.wait([taking])
        assert capture.pixels.size == 0
        assert captures.settle(0)

    asyncio.run(test())


def test_rows_come_a_few_at_a_time() -> None:
    capture = Capture((16384, 64), Format.X8R8G8B8_UNORM, LIMIT)
    capture.pixels[:] = [0, 1, 2, 3]
    rows = [*capture.rows()]
    assert len(rows) > 8
    assert all((part == [1, 2, 3]).all() for part in rows)
    assert sum(map(len, rows)) == 64
