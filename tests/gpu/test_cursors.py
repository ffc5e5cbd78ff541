"""The cursor queue's two commands, to a display and without one."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from tests.gpu import driver as d
from tests.gpu.machine import (
    HIGH,
    LOW,
    PAGE,
    REGION,
    FakeExecutor,
    Machine,
    Screen,
    finish,
    refused,
)
from vgpud.gpu.wire.header import Rect
from vgpud.gpu.wire.protocol import Format, ResponseType
from vgpud.gpu.wire.responses import OkNoData
from vgpud.gpu.work import INLINE_COST

SIDE = 64
NEGATIVE = (1 << 32) - 5  # Linux sends places off the screen's edge so


@pytest.fixture
def machine() -> Iterator[Machine]:
    with Machine(outputs=((640, 480), (640, 480))) as machine:
        yield machine


def picture(machine: Machine, width: int, height: int, pixel_format: Format) -> np.ndarray:
    """Makes image 1 with something in it, which it returns, (height, width, 4)."""
    pieces = ((HIGH, 3), (LOW + 5, width * height * 4))
    machine.all(d.create_2d(1, width, height, pixel_format), d.attach_backing(1, *pieces))
    machine.do(d.transfer(1, Rect(0, 0, width, height)))
    return machine.ram.read(*pieces)[: width * height * 4].reshape(height, width, 4)


@pytest.mark.parametrize("pixel_format", [Format.B8G8R8A8_UNORM, Format.A8B8G8R8_UNORM])
@pytest.mark.parametrize("size", [(64, 64), (32, 48), (100, 70), (1, 1)])
def test_an_update_brings_image_place_and_hot_spot(
    machine: Machine, size: tuple[int, int], pixel_format: Format
) -> None:
    screen = Screen()
    machine.gpu.attach_display(screen)
    pixels = picture(machine, *size, pixel_format)
    machine.do(d.update_cursor(1, 1, NEGATIVE, 7, 3, 4))
    assert screen.take() == [("cursor", 1, NEGATIVE, 7, 3, 4)]
    order = [0, 1, 2, 3] if pixel_format is Format.B8G8R8A8_UNORM else [1, 2, 3, 0]
    expected = np.zeros((SIDE, SIDE, 4), np.uint8)
    cut = pixels[:SIDE, :SIDE]
    expected[: cut.shape[0], : cut.shape[1]] = cut[..., order]
    [image] = screen.images
    assert image.shape == (SIDE, SIDE, 4)
    assert np.array_equal(image, expected)


def test_a_cursor_moves_hides_and_comes_back(machine: Machine) -> None:
    screen = Screen()
    machine.gpu.attach_display(screen)
    picture(machine, 64, 64, Format.B8G8R8A8_UNORM)
    machine.do(d.move_cursor(0, 1, 2))
    assert screen.take() == [("move", 0, 1, 2, False)]
    machine.do(d.update_cursor(0, 1, 3, 4))
    machine.all(d.move_cursor(0, 5, NEGATIVE), d.update_cursor(0, 0, 6, 7))
    assert screen.take() == [
        ("cursor", 0, 3, 4, 0, 0),
        ("move", 0, 5, NEGATIVE, True),
        ("move", 0, 6, 7, False),
    ]
    machine.do(d.move_cursor(0, 8, 9, 0))
    assert screen.take() == [("move", 0, 8, 9, False)]


def test_a_move_hides_and_shows_as_on_qemus_devices(machine: Machine) -> None:
    screen = Screen()
    machine.gpu.attach_display(screen)
    pixels = picture(machine, 64, 64, Format.B8G8R8A8_UNORM)
    machine.all(d.update_cursor(0, 1, 3, 4, 5, 6), d.move_cursor(0, 7, 8, 0))
    machine.all(d.move_cursor(0, 9, 9, 0), d.move_cursor(0, 10, 11), d.move_cursor(0, 12, 13, 99))
    assert screen.take() == [
        ("cursor", 0, 3, 4, 5, 6),
        ("move", 0, 7, 8, False),
        ("move", 0, 9, 9, False),
        ("cursor", 0, 10, 11, 5, 6),
        ("move", 0, 12, 13, True),
    ]
    # An update with resource 0 keeps the image, and sets the hot spot.
    machine.all(d.update_cursor(0, 0, 1, 2, 20, 21), d.unref(1), d.move_cursor(0, 14, 15))
    assert screen.take() == [("move", 0, 1, 2, False), ("cursor", 0, 14, 15, 20, 21)]
    assert np.array_equal(screen.images[-1], pixels)
    # The output may be off, or have another size meanwhile.
    machine.all(d.create_2d(2, 64, 64), d.set_scanout(0, 2, Rect(0, 0, 64, 64)))
    machine.all(d.set_scanout(0, 0, Rect(0, 0, 0, 0)), d.move_cursor(0, 16, 17))
    assert screen.take()[-1] == ("move", 0, 16, 17, True)


def test_a_hidden_cursor_is_not_shown_on_the_next_display(machine: Machine) -> None:
    picture(machine, 64, 64, Format.B8G8R8A8_UNORM)
    machine.all(d.update_cursor(0, 1, 3, 4), d.move_cursor(0, 7, 8, 0))
    screen = Screen()
    machine.gpu.attach_display(screen)
    assert screen.take() == [("move", 0, 7, 8, False)]
    machine.do(d.move_cursor(0, 9, 9))
    assert screen.take() == [("cursor", 0, 9, 9, 0, 0)]


def test_a_cursor_outlives_its_image_and_its_display(machine: Machine) -> None:
    pixels = picture(machine, 64, 64, Format.B8G8R8A8_UNORM)
    machine.do(d.update_cursor(0, 1, 3, 4, 5, 6))
    machine.all(d.transfer(1, Rect(0, 0, 64, 64), 3), d.move_cursor(0, 10, 20), d.unref(1))
    screen = Screen()
    machine.gpu.attach_display(screen)
    assert screen.take() == [("cursor", 0, 10, 20, 5, 6)]
    assert np.array_equal(screen.images[0], pixels)
    [cursor] = machine.gpu.cursors.save()
    assert (cursor.scanout, cursor.x, cursor.y) == (0, 10, 20)


@pytest.mark.parametrize("scanout", [2, 15, 16, (1 << 32) - 1])
def test_there_are_no_cursors_beside_the_outputs(machine: Machine, scanout: int) -> None:
    machine.do(d.create_2d(1, 64, 64))
    for command in (d.update_cursor(scanout, 1), d.move_cursor(scanout, 0, 0)):
        with refused(ResponseType.ERR_INVALID_SCANOUT_ID):
            machine.do(command)


def test_with_a_display_every_scanout_may_have_a_cursor(machine: Machine) -> None:
    machine.gpu.attach_display(Screen())
    machine.do(d.move_cursor(15, 0, 0))
    with refused(ResponseType.ERR_INVALID_SCANOUT_ID):
        machine.do(d.move_cursor(16, 0, 0))


def test_a_refused_update_leaves_the_cursor(machine: Machine) -> None:
    picture(machine, 64, 64, Format.B8G8R8A8_UNORM)
    machine.all(d.guest_blob(2, (LOW, PAGE)), d.update_cursor(0, 1, 3, 4))
    screen = Screen()
    machine.gpu.attach_display(screen)
    screen.take()
    for resource, code in (
        (2, ResponseType.ERR_INVALID_PARAMETER),  # too small for a cursor's pixels
        (3, ResponseType.ERR_INVALID_RESOURCE_ID),
    ):
        with refused(code):
            machine.do(d.update_cursor(0, resource, 9, 9))
    assert screen.take() == []
    machine.do(d.move_cursor(0, 1, 1))
    assert screen.take() == [("move", 0, 1, 1, True)]


def test_a_reset_takes_the_cursor_off_the_display(machine: Machine) -> None:
    picture(machine, 64, 64, Format.B8G8R8A8_UNORM)
    screen = Screen()
    machine.gpu.attach_display(screen)
    machine.all(d.update_cursor(0, 1, 3, 4), d.set_scanout(0, 1, Rect(0, 0, 64, 64)))
    screen.take()
    machine.reset()
    told = screen.take()
    assert ("scanout", 0, 0, 0) in told
    assert any(what == "move" and not rest[-1] for what, *rest in told)
    assert machine.gpu.cursors.save() == ()


def test_a_blob_may_be_the_cursor(machine: Machine) -> None:
    machine.all(d.guest_blob(1, (LOW, 4 * PAGE)), d.update_cursor(0, 1))
    [cursor] = machine.gpu.cursors.save()
    assert cursor.image == machine.ram.read((LOW, 4 * PAGE)).tobytes()
    machine.do(d.guest_blob(2, (LOW, 3 * PAGE)))
    with refused(ResponseType.ERR_INVALID_PARAMETER):
        machine.do(d.update_cursor(0, 2))


def test_a_cursor_of_scattered_memory_is_read_in_steps(machine: Machine) -> None:
    screen = Screen()
    machine.gpu.attach_display(screen)
    size = SIDE * SIDE * 4
    pieces = [(LOW + 7 * number % REGION, 1) for number in range(size)]
    machine.do(d.guest_blob(1, *pieces))
    steps = 0

    class Counted(FakeExecutor):
        async def run_steps(self, running: Iterator[None], cost: int) -> None:
            nonlocal steps
            assert cost > INLINE_COST
            steps += sum(1 for _ in running)

    machine.gpu.cursors._executor = Counted(machine.patience)
    update = machine.start(d.update_cursor(1, 1, 5, 6))
    assert screen.take() == []
    assert isinstance(finish(update), OkNoData)
    assert steps > 8
    assert screen.take() == [("cursor", 1, 5, 6, 0, 0)]
    assert screen.images[0].tobytes() == machine.ram.read(*pieces).tobytes()
