"""A whole device and a slow display: images that are flipped or painted over are shown whole."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Coroutine

import numpy as np
import pytest

from tests.gpu import driver as d
from tests.gpu.display.display_vmm import Vmm
from tests.gpu.display.test_frames import SlowViewer, colours
from tests.gpu.machine import LOW, NEXT, Machine, run_submission
from vgpud.gpu.contexts import Submission
from vgpud.gpu.display import channel as serve_display
from vgpud.gpu.display import reading, scanout_frames
from vgpud.gpu.display.channel import DisplayChannel
from vgpud.gpu.queues import GpuQueue
from vgpud.gpu.timelines import Timelines
from vgpud.gpu.wire.command_codec import Command
from vgpud.gpu.wire.header import Rect
from vgpud.unix.stream_socket import StreamSocket

WIDTH, HEIGHT = 256, 240
WHOLE = Rect(0, 0, WIDTH, HEIGHT)
FRAMES = 120


async def execute(machine: Machine, *some: Command) -> None:
    """Executes commands one after the other, as a queue does."""
    for command in some:
        outcome = machine.gpu.execute(command)
        if isinstance(outcome, Coroutine):
            outcome = await outcome
        if isinstance(outcome, Submission):
            run_submission(outcome)


def paint(machine: Machine, image: int, value: int) -> None:
    """Fills an image's backing in guest memory."""
    pixels = np.full(WIDTH * HEIGHT, value, np.uint32).tobytes()
    os.pwrite(machine.ram._files[image - 1].fileno(), pixels, 0)


@pytest.mark.parametrize("context", [False, True], ids=["transferred", "drawn by a context"])
@pytest.mark.parametrize("images", [1, 2], ids=["painted over", "flipped"])
@pytest.mark.parametrize("step", [3_000, 650_000], ids=["steps", "at once"])
@pytest.mark.parametrize("room", [64 << 20, 2 * WIDTH * HEIGHT * 4 + 330_000], ids=["", "one copy"])
def test_no_frame_has_pixels_of_the_next(
    images: int, step: int, room: int, *, context: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading, "STEP", step)
    monkeypatch.setattr(scanout_frames, "STEP", step)
    monkeypatch.setattr(scanout_frames, "PATIENCE", 60.0)
    monkeypatch.setattr(serve_display, "SEND_BUFFER", 32 << 10)
    monkeypatch.setattr(serve_display, "MAX_REST", 0.0)  # all is drawn within one rest

    async def test() -> None:
        with Machine(limit=room, window=1 << 16) as machine:
            ours, theirs = socket.socketpair()
            gpu = machine.gpu
            channel = DisplayChannel("gpu0", StreamSocket(ours), gpu.scanouts.pictures, gpu.quota)
            gpu.attach_display(channel)
            running = asyncio.create_task(channel.run())
            viewer = SlowViewer(Vmm(theirs))
            machine.do(d.ctx_create())
            for image, start in ((1, LOW), (2, NEXT)):
                machine.all(d.create_2d(image, WIDTH, HEIGHT))
                machine.do(d.attach_backing(image, (start, WIDTH * HEIGHT * 4)))
                machine.do(d.ctx_attach(image))
            await execute(machine, d.transfer(1, WHOLE), d.set_scanout(0, 1, WHOLE))

            async def draw() -> None:
                for frame in range(1, FRAMES + 1):
                    image = frame % images + 1
                    if context:
                        quarter = WIDTH * HEIGHT
                        fills = (d.fill(image, i * quarter, quarter, frame) for i in range(4))
                        await execute(machine, d.submit(*fills))
                    else:
                        paint(machine, image, frame)
                        await execute(machine, d.transfer(image, WHOLE))
                    if images > 1:
                        await execute(machine, d.set_scanout(0, image, WHOLE))
                    await execute(machine, d.flush(image, WHOLE))
                    if frame % 3 == 0:
                        await asyncio.sleep(0)

            drawing = asyncio.create_task(draw())
            shown: list[int] = []
            updates = 0
            while not shown or shown[-1] != FRAMES:
                await viewer.read(40_000)
                if drawing.done():
                    drawing.result()  # raises what has ended it
                if len(viewer.updates) > updates:
                    updates = len(viewer.updates)
                    seen = colours(viewer.surface)
                    if updates == 1 and len(seen) > 1:
                        continue  # what was in guest memory at first
                    assert len(seen) == 1, f"frames {seen} at once"
                    shown += seen
            await drawing
            assert shown == sorted(shown)
            assert len(shown) > 2
            theirs.close()
            running.cancel()
            await asyncio.wait([running])
            gpu.attach_display(None)
            channel.close()

    asyncio.run(test())


def test_the_fast_path_waits_for_frames_that_are_not_taken_yet() -> None:
    async def test() -> None:
        with Machine() as machine:
            ours, theirs = socket.socketpair()
            gpu = machine.gpu
            channel = DisplayChannel("gpu0", StreamSocket(ours), gpu.scanouts.pictures, gpu.quota)
            queue = GpuQueue(gpu, Timelines(), cursor=False)
            machine.do(d.create_2d(1, WIDTH, HEIGHT))
            machine.do(d.attach_backing(1, (LOW, WIDTH * HEIGHT * 4)))
            machine.all(d.transfer(1, WHOLE), d.set_scanout(0, 1, WHOLE))
            assert queue.fast_path() is not None
            gpu.attach_display(channel)
            assert queue.fast_path() is None
            machine.do(d.transfer(1, WHOLE))
            assert queue.fast_path() is not None
            machine.do(d.flush(1, Rect(3, 3, 3, 3)))
            assert queue.fast_path() is None
            gpu.attach_display(None)
            assert queue.fast_path() is not None
            channel.close()
            theirs.close()

    asyncio.run(test())


@pytest.mark.parametrize("context", [False, True], ids=["transferred", "drawn by a context"])
def test_a_slow_display_without_memory_for_frames_delays_a_guest_once(context: bool) -> None:
    async def test() -> None:
        with Machine() as machine:
            ours, theirs = socket.socketpair()
            gpu = machine.gpu
            channel = DisplayChannel("gpu0", StreamSocket(ours), gpu.scanouts.pictures, gpu.quota)
            machine.do(d.ctx_create())
            machine.do(d.create_2d(1, WIDTH, HEIGHT))
            machine.do(d.attach_backing(1, (LOW, WIDTH * HEIGHT * 4)))
            machine.all(d.ctx_attach(1), d.set_scanout(0, 1, WHOLE))
            gpu.attach_display(channel)
            gpu.quota.limit = gpu.quota.used + 4096  # none for a shadow
            # The channel does not run: it sends as little as with a VMM that has stopped.
            flushes = d.flush(1, Rect(0, 0, 8, 8)), d.flush(1, Rect(99, 99, 8, 8))
            draw = d.submit(d.fill(1, 0, 64, 7)) if context else d.transfer(1, Rect(0, 0, 8, 8))
            begin = asyncio.get_running_loop().time()
            for _ in range(3):
                await execute(machine, *flushes, draw)
            assert asyncio.get_running_loop().time() - begin < 3 * scanout_frames.PATIENCE
            gpu.attach_display(None)
            channel.close()
            theirs.close()

    asyncio.run(test())
