"""Which pixels a display channel sends again, and that a display is always right in the end."""

from __future__ import annotations

import asyncio
import random
from contextlib import suppress

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.gpu.display.display_vmm import S0, Screen, Vmm, connected, run
from vgpud.gpu.display import channel as serve_display
from vgpud.gpu.display.channel import DisplayChannel
from vgpud.gpu.display.messages import DisplayScanout, DisplayUpdate
from vgpud.gpu.display.shadow import TILE, Shadow
from vgpud.gpu.quota import Quota
from vgpud.gpu.wire.header import Rect

WIDTH, HEIGHT = 1280, 800
WHOLE = Rect(0, 0, WIDTH, HEIGHT)


def show(
    channel: DisplayChannel, screen: Screen, scanout_id: int = 0, size: tuple[int, int] = (0, 0)
) -> None:
    """Turns a scanout on, as a device does: its size, and that all of it is new."""
    width, height = size
    if size == (0, 0):
        del screen.pictures[scanout_id]
        channel.scanout(scanout_id, 0, 0)
        return
    screen.show(scanout_id, width, height)
    channel.scanout(scanout_id, width, height)
    channel.damage(scanout_id, Rect(0, 0, width, height))


def test_a_frame_that_is_the_same_is_not_sent() -> None:
    async def test() -> None:
        async with connected() as (channel, vmm, screen):
            show(channel, screen, size=(WIDTH, HEIGHT))
            assert [type(message) for message, _ in await vmm.all()] == [
                DisplayScanout,
                DisplayUpdate,
            ]
            for _ in range(3):
                screen.pictures[0] = screen.pictures[0].copy()  # a page flip
                channel.damage(0, WHOLE)
                assert await vmm.all() == []

    run(test)


def test_of_two_nearly_equal_frames_the_difference_is_sent() -> None:
    async def test() -> None:
        async with connected() as (channel, vmm, screen):
            show(channel, screen, size=(WIDTH, HEIGHT))
            await vmm.all()
            frames = [screen.pictures[0], screen.pictures[0].copy()]
            frames[1][200:400, 300:500] = 9
            for turn in (1, 0, 1):
                screen.pictures[0] = frames[turn]
                channel.damage(0, WHOLE)
                [(update, data)] = await vmm.all()
                assert isinstance(update, DisplayUpdate)
                assert update.x <= 300
                assert update.x + update.width >= 500
                assert update.y <= 200
                assert update.y + update.height >= 400
                assert len(data) < 2 * 200 * 200 * 4
                part = frames[turn][update.y :, update.x :][: update.height, : update.width]
                assert data == part.tobytes()

    run(test)


def test_a_new_size_is_sent_whole_even_if_it_is_the_old_one() -> None:
    """The display makes a new surface of it, with anything in it."""

    async def test() -> None:
        async with connected() as (channel, vmm, screen):
            show(channel, screen, size=(640, 480))
            await vmm.all()
            for size in ((64, 48), (640, 480)):
                show(channel, screen, size=(0, 0))
                show(channel, screen, size=size)
                assert [message for message, _ in await vmm.all()] == [
                    DisplayScanout(S0, *size),
                    DisplayUpdate(S0, 0, 0, *size),
                ]

    run(test)


def test_pages_that_are_gone_for_a_while_do_not_count_as_sent() -> None:
    async def test() -> None:
        async with connected() as (channel, vmm, screen):
            show(channel, screen, size=(640, 480))
            await vmm.all()
            picture = screen.pictures.pop(0)
            picture[:] = 3
            channel.damage(0, Rect(0, 0, 640, 480))
            assert await vmm.all() == []
            screen.pictures[0] = picture
            channel.damage(0, Rect(0, 0, 640, 480))
            [(update, data)] = await vmm.all()
            assert update == DisplayUpdate(S0, 0, 0, 640, 480)
            assert data == picture.tobytes()

    run(test)


@pytest.mark.parametrize("room", [0, Shadow.size(640, 480) - 1, Shadow.size(640, 480)])
def test_the_copy_is_the_guests_to_pay(room: int) -> None:
    """Where there is no memory left for it, all damage is sent as it comes."""

    async def test() -> None:
        quota = Quota(room)
        async with connected(quota=quota) as (channel, vmm, screen):
            show(channel, screen, size=(640, 480))
            await vmm.all()
            enough = room >= Shadow.size(640, 480)
            assert quota.used == (Shadow.size(640, 480) if enough else 0)
            screen.pictures[0][100:110, 100:110] = 5
            channel.damage(0, Rect(0, 0, 640, 480))
            [(update, data)] = await vmm.all()
            assert isinstance(update, DisplayUpdate)
            assert (update.width == 640) == (not enough)
            assert b"\5" * 40 in data
            show(channel, screen, size=(0, 0))
            assert quota.used == 0
            show(channel, screen, size=(640, 480))
            await vmm.all()
        assert quota.used == 0

    run(test)


class Viewer:
    """What a VMM shows by the messages that it got."""

    def __init__(self) -> None:
        self.surfaces: dict[int, NDArray[np.uint8]] = {}

    def take(self, message: object, data: bytes) -> None:
        match message:
            case DisplayScanout(scanout_id, width, height):
                # Whatever was in that memory: nobody may count on it.
                self.surfaces[scanout_id] = np.full((height, width, 4), 0xDB, np.uint8)
            case DisplayUpdate(scanout_id, x, y, width, height):
                surface = self.surfaces[scanout_id]
                assert x + width <= surface.shape[1]
                assert y + height <= surface.shape[0]
                part = np.frombuffer(data, np.uint8).reshape(height, width, 4)
                surface[y : y + height, x : x + width] = part

    def shows(self, screen: Screen) -> bool:
        shown = {at: one for at, one in self.surfaces.items() if one.size}
        return shown.keys() == screen.pictures.keys() and all(
            np.array_equal(shown[at], picture) for at, picture in screen.pictures.items()
        )


async def look(vmm: Vmm, viewer: Viewer, patience: float) -> bool:
    try:
        viewer.take(*await vmm.next(patience))
    except TimeoutError:
        return False
    return True


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("limit", [1 << 30, 1 << 20], ids=["shadow", "some without"])
def test_when_all_is_quiet_the_display_shows_the_scanouts(
    seed: int, limit: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever was drawn, damaged, flipped, resized, turned off and on, and however slowly it was
    read."""
    dice = random.Random(seed)
    monkeypatch.setattr(serve_display, "MAX_UPDATE", dice.choice([4 << 20, 50_000, 3_000]))
    sizes = [(1, 1), (TILE[0], TILE[1]), (333, 77), (640, 480), (1024, 600)]

    def draw(picture: NDArray[np.uint8]) -> Rect:
        height, width = picture.shape[:2]
        x, y = dice.randrange(width), dice.randrange(height)
        rect = Rect(x, y, dice.randint(1, width - x), dice.randint(1, height - y))
        if dice.random() < 0.6:
            rect = Rect(x, y, min(rect.width, 20), min(rect.height, 20))
        picture[y : y + rect.height, x : x + rect.width] = dice.randrange(256)
        return rect

    async def test() -> None:
        async with connected(quota=Quota(limit)) as (channel, vmm, screen):
            viewer = Viewer()
            for _ in range(150):
                scanout_id = dice.randrange(2)
                picture = screen.pictures.get(scanout_id)
                what = dice.random()
                if picture is None or what < 0.05:
                    show(channel, screen, scanout_id, dice.choice(sizes))
                elif what < 0.08:
                    show(channel, screen, scanout_id)
                elif what < 0.4:  # a flip
                    picture = screen.pictures[scanout_id] = picture.copy()
                    for _ in range(dice.randrange(4)):
                        draw(picture)
                    channel.damage(scanout_id, Rect(0, 0, picture.shape[1], picture.shape[0]))
                elif what < 0.9:
                    channel.damage(scanout_id, draw(picture))
                else:  # more is damaged than has changed
                    height, width = picture.shape[:2]
                    draw(picture)
                    channel.damage(scanout_id, Rect(0, 0, width, height))
                for _ in range(dice.choice([0, 0, 1, 3])):
                    await asyncio.sleep(0)
                if dice.random() < 0.3:
                    await look(vmm, viewer, 0.002)
            # On a busy machine silence proves nothing: wait for the right picture; it must stay.
            with suppress(TimeoutError):
                async with asyncio.timeout(3):
                    while not viewer.shows(screen):
                        await look(vmm, viewer, 0.1)
            while await look(vmm, viewer, 0.05):
                pass
            assert viewer.shows(screen)

    run(test)
