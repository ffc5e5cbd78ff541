"""Frames: taken whole when they are flushed, sent whole, and none of their rows starves."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.gpu.display import display_vmm
from tests.gpu.display.display_vmm import S0, S1, Screen, Vmm, connected, flush, run
from vgpud.gpu.display import channel as serve_display
from vgpud.gpu.display import reading, scanout_frames
from vgpud.gpu.display.channel import DisplayChannel
from vgpud.gpu.display.messages import DisplayScanout, DisplayUpdate
from vgpud.gpu.display.shadow import Shadow
from vgpud.gpu.quota import Quota
from vgpud.gpu.rects import cut
from vgpud.gpu.wire.header import Rect
from vgpud.gpu.wire.protocol import ScanoutId

SIZES = [(640, 480), (1920, 1080), (2560, 1440)]


@pytest.fixture(autouse=True)
def _patient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(display_vmm, "PATIENCE", 60.0)  # large frames on a busy machine


class SlowViewer:
    """A VMM that reads a little at a time, and what it shows."""

    def __init__(self, vmm: Vmm) -> None:
        self._vmm = vmm
        self.surface = np.zeros((0, 0, 4), np.uint8)
        self.updates: list[DisplayUpdate] = []

    async def read(self, size: int, patience: float = 0.05) -> bool:
        """Read up to `size` bytes, and draw what is complete; return whether anything came."""
        try:
            async with asyncio.timeout(patience):
                data, _ = await self._vmm.socket.recv(size)
        except TimeoutError:
            return False
        assert data
        self._vmm.reader.receive_data(data)
        while (found := self._vmm.reader.next_request()) is not None:
            match found:
                case DisplayScanout(_, width, height), _:
                    self.surface = np.zeros((height, width, 4), np.uint8)
                case DisplayUpdate(_, x, y, width, height) as update, pixels:
                    part = np.frombuffer(pixels, np.uint8).reshape(height, width, 4)
                    self.surface[y : y + height, x : x + width] = part
                    self.updates.append(update)
        return True


def colours(picture: NDArray[np.uint8]) -> set[int]:
    pixels = picture.view(np.uint32)
    same = (pixels == pixels[0, 0]).all()
    return {int(pixels[0, 0, 0])} if same else set(np.unique(pixels).tolist())


async def turn_on(
    channel: DisplayChannel, screen: Screen, vmm: Vmm, size: tuple[int, int]
) -> SlowViewer:
    screen.show(0, *size)
    channel.scanout(0, *size)
    channel.damage(0, Rect(0, 0, *size))
    viewer = SlowViewer(vmm)
    while sum(update.width * update.height for update in viewer.updates) < size[0] * size[1]:
        await viewer.read(1 << 24)
    assert viewer.surface.shape[:2] == size[::-1]
    return viewer


def plenty(size: tuple[int, int]) -> int:
    return 1 << 30


def one_copy(size: tuple[int, int]) -> int:
    return Shadow.size(*size)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("room", [plenty, one_copy])
def test_what_is_drawn_after_a_flush_is_not_in_its_frame(
    size: tuple[int, int], room: Callable[[tuple[int, int]], int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In one picture, which the guest paints over as soon as the flush is answered."""
    monkeypatch.setattr(scanout_frames, "PATIENCE", 60.0)

    async def test() -> None:
        async with connected(quota=Quota(room(size))) as (channel, vmm, screen):
            viewer = await turn_on(channel, screen, vmm, size)
            whole = Rect(0, 0, *size)
            shown = set()

            async def draw() -> None:
                for frame in range(1, 10):
                    screen.fill(0, frame)
                    await flush(channel, 0, whole)
                    screen.fill(0, 0xEE)  # the guest begins to draw the next one
                    await asyncio.sleep(0.001)
                screen.fill(0, 10)
                await flush(channel, 0, whole)

            drawing = asyncio.create_task(draw())
            updates = 0
            last = 10 * 0x01010101
            while last not in shown:
                await viewer.read(size[0] * size[1] // 3)
                if len(viewer.updates) == updates:
                    continue
                updates = len(viewer.updates)
                seen = colours(viewer.surface)
                assert len(seen) == 1, f"two frames at once: {seen}"
                shown |= seen
            await drawing
            assert 0xEEEEEEEE not in shown
            # Each frame is one message: QEMU may show its surface between any two.
            assert {(update.width, update.height) for update in viewer.updates} == {size}

    run(test)


def test_a_guest_does_not_wait_for_a_vmm_that_does_not_read() -> None:
    async def test() -> None:
        async with connected() as (channel, vmm, screen):
            await turn_on(channel, screen, vmm, (1920, 1080))
            async with asyncio.timeout(4):
                for frame in range(1, 100):
                    screen.fill(0, frame)
                    await flush(channel, 0, Rect(0, 0, 1920, 1080))
            messages = await vmm.all()
            # The first, with which the socket is stuck, and the last.
            assert [len(set(data)) for _, data in messages] == [1, 1]
            assert set(messages[-1][1]) == {99}

    run(test)


def test_a_guest_without_memory_waits_for_the_display_but_not_for_ever() -> None:
    async def test() -> None:
        size = 1920, 1080
        for room in (0, Shadow.size(*size)):
            quota = Quota(room)
            async with connected(quota=quota) as (channel, vmm, screen):
                viewer = await turn_on(channel, screen, vmm, size)
                loop = asyncio.get_running_loop()
                begin = loop.time()
                for frame in range(1, 20):
                    screen.fill(0, frame)
                    await flush(channel, 0, Rect(0, 0, *size))
                # Once, for a VMM that does not read at all.
                assert loop.time() - begin < 4 * scanout_frames.PATIENCE + 1
                assert "no copy" in str(quota.problem) or "no second copy" in str(quota.problem)
                while colours(viewer.surface) != {19 * 0x01010101}:
                    await viewer.read(1 << 24)

    run(test)


@pytest.mark.parametrize("every", [1, 3, 10])
@pytest.mark.parametrize("flips", [False, True])
def test_every_row_is_shown_in_twice_the_time_of_a_frame(every: int, *, flips: bool) -> None:
    """While a guest repaints everything more often than a VMM reads it. Time is counted in reads:
    `every` so many of them there is a frame."""
    size = 1280, 1024
    piece = 256 << 10
    frame_time = 1280 * 1024 * 4 // piece
    buffered = (2 * serve_display.SEND_BUFFER + (1 << 20)) // piece

    async def test() -> None:
        async with connected() as (channel, vmm, screen):
            viewer = await turn_on(channel, screen, vmm, size)
            drawn = viewer.surface.view(np.uint32)
            oldest = now = 0
            for turn in range(400):
                if turn % every == 0:
                    if flips:
                        screen.pictures[0] = screen.pictures[0].copy()
                    screen.pictures[0].view(np.uint32)[:] = now << 12 | turn + 1
                    await flush(channel, 0, Rect(0, 0, *size))
                    await asyncio.sleep(0)
                now += await viewer.read(piece)
                if now > 100:
                    oldest = max(oldest, now - (int(drawn.min()) >> 12))
            assert now > 200
            assert oldest <= 2 * frame_time + buffered + every
            while await viewer.read(1 << 24):
                pass

    run(test)


def test_a_flush_that_was_interrupted_is_not_shown_before_it_is_repeated() -> None:
    async def test() -> None:
        async with connected() as (channel, vmm, screen):
            whole = Rect(0, 0, 1920, 1080)
            viewer = await turn_on(channel, screen, vmm, (1920, 1080))
            screen.fill(0, 5)
            flushing = asyncio.create_task(flush(channel, 0, whole))
            screen.reads.clear()
            await asyncio.sleep(0)
            assert len(screen.reads) == 1  # of two
            flushing.cancel()
            await asyncio.wait([flushing])
            assert flushing.cancelled()
            channel._changed.set()
            async with channel._frames[ScanoutId(0)]._taking:  # the display may take all of it
                screen.fill(0, 6)
            await flush(channel, 0, whole)
            while colours(viewer.surface) != {6 * 0x01010101}:
                assert len(colours(viewer.surface)) == 1
                await viewer.read(1 << 24)

    run(test)


@pytest.mark.parametrize("cost", [1, 9, 300])
def test_a_step_reads_little_however_large_the_frame_and_dear_its_memory(cost: int) -> None:
    async def test() -> None:
        async with connected() as (channel, vmm, screen):
            for width, height in ((2048, 2048), (16384, 300), (300, 16384)):
                screen.show(0, width, height)
                screen.dearness = cost
                channel.scanout(0, width, height)
                screen.reads.clear()
                channel.damage(0, Rect(0, 0, width, height))
                await flush(channel, 0, Rect(0, 0, width, height))
                for _, rect in screen.reads:
                    assert rect.width * rect.height * cost // 2 <= reading.STEP
                await vmm.all()

    run(test)


def test_messages_are_cut_in_both_directions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serve_display, "MAX_UPDATE", 10_000)

    async def test() -> None:
        async with connected() as (channel, vmm, screen):
            for width, height in ((16384, 3), (3, 16384), (200, 200)):
                screen.show(0, width, height)
                screen.pictures[0][:] = np.arange(width * height * 4).reshape(height, width, 4)
                channel.scanout(0, width, height)
                await flush(channel, 0, Rect(0, 0, width, height))
                shown = np.zeros((height, width, 4), np.uint8)
                for message, data in await vmm.all():
                    if isinstance(message, DisplayUpdate):
                        assert len(data) <= 10_000
                        part = np.frombuffer(data, np.uint8)
                        rows = slice(message.y, message.y + message.height)
                        columns = slice(message.x, message.x + message.width)
                        shown[rows, columns] = part.reshape(message.height, message.width, 4)
                assert np.array_equal(shown, screen.pictures[0])

    run(test)


def test_a_new_size_ends_the_old_frame_with_its_message() -> None:
    async def test() -> None:
        quota = Quota(1 << 30)
        async with connected(quota=quota) as (channel, vmm, screen):
            viewer = await turn_on(channel, screen, vmm, (1920, 1080))
            screen.fill(0, 3)
            await flush(channel, 0, Rect(0, 0, 1920, 1080))
            await asyncio.sleep(0.02)  # the socket is full
            channel.scanout(0, 64, 48)
            screen.show(0, 64, 48)
            channel.scanout(1, 32, 32)
            await flush(channel, 0, Rect(0, 0, 64, 48))
            # The old shadow is in use, and paid for, as long as its message is on its way.
            assert quota.used >= Shadow.size(1920, 1080) + Shadow.size(64, 48)
            found = [message for message, _ in await vmm.all()]
            assert found[0] == DisplayUpdate(S0, 0, 0, 1920, 1080)
            assert {*found[1:3]} == {DisplayScanout(S0, 64, 48), DisplayScanout(S1, 32, 32)}
            assert found[3:] == [DisplayUpdate(S0, 0, 0, 64, 48)]
            assert quota.used == Shadow.size(64, 48)
            assert viewer.updates
        assert quota.used == 0

    run(test)


def test_two_outputs_take_turns() -> None:
    async def test() -> None:
        async with connected() as (channel, vmm, screen):
            for scanout_id in (0, 1):
                screen.show(scanout_id, 1024, 1024)
                channel.scanout(scanout_id, 1024, 1024)
            seen = []
            for turn in range(40):
                for scanout_id in (0, 1):
                    screen.fill(scanout_id, turn)
                    await flush(channel, scanout_id, Rect(0, 0, 1024, 1024))
                await asyncio.sleep(0)
                message, _ = await vmm.next()
                if isinstance(message, DisplayUpdate):
                    seen.append(message.scanout_id)
            assert abs(seen.count(S0) - seen.count(S1)) <= 2
            await vmm.all()

    run(test)


def pieces() -> Iterator[tuple[Rect, int, tuple[int, int]]]:
    for rect in (Rect(0, 0, 100, 50), Rect(7, 3, 1, 200), Rect(5, 9, 300, 1), Rect(63, 15, 65, 17)):
        for most in (1, 7, 64, 1000, 1 << 20):
            for tile in ((1, 1), (64, 16)):
                yield rect, most, tile


@pytest.mark.parametrize(("rect", "most", "tile"), [*pieces()])
def test_parts_cover_a_rectangle_once(rect: Rect, most: int, tile: tuple[int, int]) -> None:
    seen = np.zeros((rect.y + rect.height, rect.x + rect.width), int)
    for part in cut(rect, most, tile):
        assert 0 < part.width * part.height <= most
        seen[part.y : part.y + part.height, part.x : part.x + part.width] += 1
    assert (seen[rect.y :, rect.x :] == 1).all()
    assert seen.sum() == rect.width * rect.height
