"""The display channel: what a VMM receives, when it reads and when it does not."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest

from tests.gpu.display.display_vmm import S0, S1, connected, run
from vgpud.gpu.display import messages as display
from vgpud.gpu.display.channel import WAKE_AFTER
from vgpud.gpu.display.messages import (
    DisplayCursorHide,
    DisplayCursorMove,
    DisplayCursorUpdate,
    DisplayScanout,
    DisplayUpdate,
)
from vgpud.gpu.display.reading import Budget
from vgpud.gpu.wire.header import Rect


def painted(messages: list[tuple[display.DisplayRequest, bytes]], width: int, height: int) -> bytes:
    """What a VMM shows after the updates among the messages."""
    picture = np.zeros((height, width, 4), np.uint8)
    for message, data in messages:
        if isinstance(message, DisplayUpdate):
            part = np.frombuffer(data, np.uint8).reshape(message.height, message.width, 4)
            x, y = message.x, message.y
            picture[y : y + message.height, x : x + message.width] = part
    return picture.tobytes()


def test_a_size_then_the_pixels() -> None:
    async def test() -> None:
        async with connected() as (channel, vmm, screen):
            screen.show(0, 4, 2)
            screen.pictures[0][:] = np.arange(32, dtype=np.uint8).reshape(2, 4, 4)
            channel.damage(0, Rect(0, 0, 4, 2))  # a device says both in one go, in any order
            channel.scanout(0, 4, 2)
            channel.damage(0, Rect(1, 0, 2, 2))
            assert await vmm.next() == (DisplayScanout(S0, 4, 2), b"")
            pixels = bytes([*range(4, 12), *range(20, 28)])
            # A new size makes all of the old damage void.
            assert await vmm.next() == (DisplayUpdate(S0, 1, 0, 2, 2), pixels)
            assert await vmm.all() == []

    run(test)


def test_only_what_is_damaged_is_sent() -> None:
    async def test() -> None:
        async with connected() as (channel, vmm, screen):
            screen.show(0, 1280, 800)
            channel.scanout(0, 1280, 800)
            channel.damage(0, Rect(0, 0, 1280, 800))
            await vmm.all()
            screen.fill(0, 7)
            channel.damage(0, Rect(10, 20, 30, 40))
            assert await vmm.all() == [(DisplayUpdate(S0, 10, 20, 30, 40), b"\x07" * 4800)]
            # Of several in one frame whole tiles are sent, which may have older pixels as well.
            channel.damage(0, Rect(100, 40, 1, 1))
            channel.damage(0, Rect(1270, 790, 10, 10))
            messages = await vmm.all()
            assert [message for message, _ in messages] == [
                DisplayUpdate(S0, 100, 40, 28, 8),
                DisplayUpdate(S0, 1216, 784, 64, 16),
            ]
            assert sum(data.count(b"\x07") for _, data in messages) == 4 + 400
            assert await vmm.all() == []

    run(test)


def test_the_newest_frame_wins_and_nothing_waits_for_a_vmm_that_does_not_read() -> None:
    async def test() -> None:
        async with connected() as (channel, vmm, screen):
            screen.show(0, 1024, 1024)  # 4 MiB, more than the socket takes
            channel.scanout(0, 1024, 1024)
            for frame in range(1, 200):
                screen.fill(0, frame)
                channel.damage(0, Rect(0, 0, 1024, 1024))
                await asyncio.sleep(0)
            # The first, which the socket is stuck with, and at most one that was read behind it.
            assert len(screen.reads) <= 2
            messages = await vmm.all()
            updates = [data for message, data in messages if isinstance(message, DisplayUpdate)]
            assert len(updates) <= 3
            assert updates[-1] == bytes([199]) * (4 << 20)

    run(test)


def test_a_slow_vmm_ends_up_with_the_right_picture() -> None:
    async def test() -> None:
        async with connected() as (channel, vmm, screen):
            random = np.random.default_rng(1)
            screen.show(0, 512, 512)
            channel.scanout(0, 512, 512)
            channel.damage(0, Rect(0, 0, 512, 512))
            messages = []
            for _ in range(150):
                x, y = (int(at) for at in random.integers(0, 500, 2))
                rect = Rect(x, y, 12, 12)
                screen.pictures[0][y : y + 12, x : x + 12] = random.integers(0, 256, 4, np.uint8)
                channel.damage(0, rect)
                if random.random() < 0.05:
                    messages.append(await vmm.next())
                else:
                    await asyncio.sleep(0)
            messages += await vmm.all()
            assert painted(messages, 512, 512) == screen.pictures[0].tobytes()

    run(test)


def test_a_new_size_comes_before_updates_of_it() -> None:
    async def test() -> None:
        async with connected() as (channel, vmm, screen):
            screen.show(0, 1024, 1024)
            channel.scanout(0, 1024, 1024)
            channel.damage(0, Rect(0, 0, 1024, 1024))
            await asyncio.sleep(0.02)  # the socket is full of pixels
            channel.damage(0, Rect(512, 512, 512, 512))
            screen.show(0, 64, 48)
            channel.scanout(0, 64, 48)
            channel.damage(0, Rect(0, 0, 64, 48))
            requests = [message for message, _ in await vmm.all()]
            assert requests == [
                DisplayScanout(S0, 1024, 1024),
                DisplayUpdate(S0, 0, 0, 1024, 1024),
                DisplayScanout(S0, 64, 48),
                DisplayUpdate(S0, 0, 0, 64, 48),
            ]

    run(test)


def test_an_output_that_is_turned_off_gets_no_updates() -> None:
    async def test() -> None:
        async with connected() as (channel, vmm, screen):
            screen.show(0, 8, 8)
            channel.scanout(0, 8, 8)
            channel.damage(0, Rect(0, 0, 8, 8))
            channel.scanout(0, 0, 0)
            assert await vmm.all() == [(DisplayScanout(S0, 0, 0), b"")]
            # Nor is anything read of one that never was on.
            channel.damage(1, Rect(0, 0, 8, 8))
            assert channel.settle(1, Budget())
            assert await vmm.all() == []
            assert screen.reads == []
            screen.show(1, 1, 1)
            channel.scanout(1, 1, 1)
            channel.damage(1, Rect(0, 0, 1, 1))
            assert await vmm.all() == [
                (DisplayScanout(S1, 1, 1), b""),
                (DisplayUpdate(S1, 0, 0, 1, 1), bytes(4)),
            ]

    run(test)


def test_nothing_starves_while_an_output_changes_all_the_time() -> None:
    async def test() -> None:
        async with connected() as (channel, vmm, screen):
            for scanout_id in (0, 1):
                screen.show(scanout_id, 1024, 512)
                channel.scanout(scanout_id, 1024, 512)
            # Far enough apart that they are not joined: there is always one of them to be sent.
            rects = [Rect(0, 0, 1024, 200), Rect(0, 300, 1024, 200)]
            seen = []
            for turn in range(30):
                screen.fill(0, turn)
                for rect in rects:
                    channel.damage(0, rect)
                if turn == 3:
                    channel.damage(1, rects[0])
                    channel.cursor_move(0, 5, 6, visible=True)
                seen.append((await vmm.next())[0])
            assert any(isinstance(one, DisplayUpdate) and one.scanout_id == S1 for one in seen)
            assert DisplayCursorMove(S0, 5, 6) in seen
            await vmm.all()

    run(test)


IMAGE = np.arange(64 * 64 * 4, dtype=np.uint32).astype(np.uint8).reshape(64, 64, 4)


def test_cursors() -> None:
    async def test() -> None:
        async with connected() as (channel, vmm, _):
            channel.cursor_update(1, 10, 20, 3, 4, IMAGE)
            assert await vmm.next() == (DisplayCursorUpdate(S1, 10, 20, 3, 4, IMAGE.tobytes()), b"")
            channel.cursor_move(1, 11, 21, visible=True)
            assert await vmm.next() == (DisplayCursorMove(S1, 11, 21), b"")
            channel.cursor_move(1, 12, 22, visible=False)
            assert await vmm.next() == (DisplayCursorHide(S1, 12, 22), b"")

    run(test)


@pytest.mark.parametrize(
    ("moves", "expected"),
    [
        ([(1, 1, True), (2, 2, True), (3, 3, True)], DisplayCursorMove(S0, 3, 3)),
        ([(1, 1, True), (2, 2, False)], DisplayCursorHide(S0, 2, 2)),
        ([(1, 1, False), (2, 2, True)], DisplayCursorMove(S0, 2, 2)),
        (["image", (7, 8, True)], DisplayCursorUpdate(S0, 7, 8, 3, 4, IMAGE.tobytes())),
        ([(7, 8, True), "image"], DisplayCursorUpdate(S0, 0, 0, 3, 4, IMAGE.tobytes())),
        (["image", (7, 8, False)], DisplayCursorHide(S0, 7, 8)),
    ],
)
def test_the_newest_of_a_cursor_is_sent(
    moves: list[str | tuple[int, int, bool]], expected: display.DisplayRequest
) -> None:
    async def test() -> None:
        async with connected() as (channel, vmm, _):
            for move in moves:
                if isinstance(move, str):
                    channel.cursor_update(0, 0, 0, 3, 4, IMAGE)
                else:
                    channel.cursor_move(0, move[0], move[1], visible=move[2])
            assert await vmm.all() == [(expected, b"")]

    run(test)


def test_an_image_is_copied_when_it_is_given() -> None:
    async def test() -> None:
        async with connected() as (channel, vmm, _):
            image = IMAGE.copy()
            channel.cursor_update(0, 0, 0, 0, 0, image)
            image[:] = 0
            assert await vmm.next() == (DisplayCursorUpdate(S0, 0, 0, 0, 0, IMAGE.tobytes()), b"")

    run(test)


def test_a_vmm_that_was_told_too_late_of_a_message_is_woken_by_another(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def test() -> None:
        async with connected() as (channel, vmm, screen):
            assert await vmm.all(0.5) == []
            assert vmm.woken == 1  # after the greeting
            screen.show(0, 64, 64)
            channel.scanout(0, 64, 64)
            for value in range(25):  # messages that follow each other soon need no other
                screen.fill(0, value + 1)
                channel.damage(0, Rect(0, 0, 64, 64))
                await vmm.next()
                await asyncio.sleep(0.01)
            assert vmm.woken == 1
            await vmm.all(0.5)
            assert vmm.woken == 2  # once: its answer needs no other message
            channel.cursor_move(0, 1, 2, visible=True)
            await vmm.all(0.5)
            assert vmm.woken == 3

    monkeypatch.setattr("vgpud.gpu.display.channel.WAKE_AFTER", 0.2)
    run(test)


def test_a_vmm_that_does_not_tell_its_features_is_not_asked_again() -> None:
    async def test() -> None:
        async with connected(greet=False) as (channel, vmm, screen):
            screen.show(0, 64, 64)
            channel.scanout(0, 64, 64)
            assert len(await vmm.all()) == 2
            await asyncio.sleep(3 * WAKE_AFTER)
            assert await vmm.all() == []

    run(test)
