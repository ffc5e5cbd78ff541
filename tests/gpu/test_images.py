"""2D resources: backing pages of every shape, transfers against a numpy model, plain 3D images."""

from __future__ import annotations

from collections.abc import Iterator
from weakref import ref

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.gpu import driver as d
from tests.gpu.machine import (
    HIGH,
    LOW,
    MIB,
    NEXT,
    PAGE,
    REGION,
    Machine,
    cancel,
    finish,
    refused,
    screenshot,
    stop_at,
)
from vgpud.gpu import images
from vgpud.gpu.wire.command_codec import Command
from vgpud.gpu.wire.header import Box, Rect
from vgpud.gpu.wire.protocol import BlobMem, Format, ResponseType
from vgpud.gpu.wire.responses import OkNoData

U32 = (1 << 32) - 1
INVALID = ResponseType.ERR_INVALID_PARAMETER
NO_MEMORY = ResponseType.ERR_OUT_OF_MEMORY
NO_RESOURCE = ResponseType.ERR_INVALID_RESOURCE_ID
Pieces = tuple[tuple[int, int], ...]


@pytest.fixture
def machine() -> Iterator[Machine]:
    with Machine() as machine:
        yield machine


def whole(width: int, height: int) -> Rect:
    return Rect(0, 0, width, height)


@st.composite
def backings(draw: st.DrawFn) -> Pieces:
    """Pages anywhere in guest memory, of any length, none included; also across a border."""
    pieces = []
    for _ in range(draw(st.integers(1, 6))):
        start, room = draw(st.sampled_from([(LOW, 2 * REGION), (HIGH, REGION)]))
        length = draw(st.sampled_from([0, 1, 3, 63, 64, PAGE]) | st.integers(0, 700))
        border = NEXT - length // 2 if start == LOW else start
        address = draw(st.just(border) | st.integers(start, start + room - length))
        pieces.append((address, length))
    return tuple(pieces)


@given(backings(), st.data())
@settings(max_examples=100, deadline=None)
def test_a_transfer_copies_just_its_rectangle(pieces: Pieces, data: st.DataObject) -> None:
    width, height = data.draw(st.integers(1, 9)), data.draw(st.integers(1, 9))
    x, y = data.draw(st.integers(0, width - 1)), data.draw(st.integers(0, height - 1))
    rect = Rect(x, y, data.draw(st.integers(1, width - x)), data.draw(st.integers(1, height - y)))
    offset = data.draw(st.integers(0, 400))
    with Machine() as machine:
        machine.all(
            d.create_2d(1, width, height), d.attach_backing(1, *pieces), d.create_2d(2, 2, 2)
        )
        backing = machine.ram.read(*pieces)
        before = machine.ram.snapshot()
        model = np.zeros((height, width * 4), np.uint8)
        end = offset + (rect.height - 1) * width * 4 + rect.width * 4
        command = d.transfer(1, rect, offset)
        if end > len(backing):
            with refused(INVALID):
                machine.do(command)
        else:
            machine.do(command)
            for row in range(rect.height):
                at = offset + row * width * 4
                model[rect.y + row, rect.x * 4 : (rect.x + rect.width) * 4] = backing[
                    at : at + rect.width * 4
                ]
        assert machine.bytes_of(1) == model.tobytes()
        assert machine.bytes_of(2) == bytes(16)
        assert machine.ram.snapshot() == before


def test_a_new_image_is_zeros_also_where_an_old_one_was(machine: Machine) -> None:
    for _ in range(3):
        machine.all(d.create_2d(1, 64, 64), d.attach_backing(1, (LOW, 64 * 64 * 4)))
        assert machine.bytes_of(1) == bytes(64 * 64 * 4)
        machine.all(d.transfer(1, whole(64, 64)), d.unref(1))


@pytest.mark.parametrize(
    "rect",
    [
        Rect(0, 0, 5, 4),
        Rect(0, 0, 4, 5),
        Rect(1, 0, 4, 4),
        Rect(0, 1, 4, 4),
        Rect(4, 4, 1, 1),
        Rect(U32, 0, 2, 1),
        Rect(0, U32, 1, 2),
        Rect(2, 2, U32, U32),
    ],
    ids=str,
)
def test_a_rectangle_outside_the_image_is_refused(machine: Machine, rect: Rect) -> None:
    machine.all(d.create_2d(1, 4, 4), d.attach_backing(1, (LOW, REGION)))
    with refused(INVALID):
        machine.do(d.transfer(1, rect))
    with refused(INVALID):
        machine.do(d.set_scanout(0, 1, rect))
    assert machine.bytes_of(1) == bytes(64)


@pytest.mark.parametrize("offset", [1, 64, (1 << 64) - 1, (1 << 64) - 64])
def test_an_offset_beyond_the_backing_is_refused(machine: Machine, offset: int) -> None:
    machine.all(d.create_2d(1, 4, 4), d.attach_backing(1, (LOW, 64)))
    with refused(INVALID):
        machine.do(d.transfer(1, whole(4, 4), offset))
    assert machine.bytes_of(1) == bytes(64)


BAD_CREATION = [
    (d.create_2d(0, 4, 4), NO_RESOURCE),
    (d.create_2d(1, 4, 4), NO_RESOURCE),
    (d.create_2d(2, 0, 4), INVALID),
    (d.create_2d(2, 4, 0), INVALID),
    (d.create_2d(2, 4, 4, 0), INVALID),
    (d.create_2d(2, 4, 4, 5), INVALID),
    (d.create_2d(2, 4, 4, U32), INVALID),
    (d.create_2d(2, 65535, 65535), NO_MEMORY),
    (d.create_2d(2, U32, U32), NO_MEMORY),
    (d.create_3d(0, 4, 4), NO_RESOURCE),
    (d.create_3d(1, 4, 4), NO_RESOURCE),
    (d.create_3d(2, 4, 4, target=3), INVALID),
    (d.create_3d(2, 4, 4, depth=2), INVALID),
    (d.create_3d(2, 4, 4, layers=2), INVALID),
    (d.create_3d(2, 65535, 65535), NO_MEMORY),
]


@pytest.mark.parametrize(("command", "code"), BAD_CREATION)
def test_creation_that_is_refused_costs_nothing(
    machine: Machine, command: Command, code: ResponseType
) -> None:
    machine.do(d.create_2d(1, 4, 4))
    used = machine.used
    with refused(code):
        machine.do(command)
    assert machine.used == used
    assert len(machine.gpu.resources) == 1


def test_a_limit_beyond_what_the_host_has_is_no_crash() -> None:
    # The operator may have allowed more than there is: then the host says no, and the guest hears.
    with Machine(limit=1 << 60) as machine:
        with refused(NO_MEMORY):
            machine.do(d.create_2d(1, 1 << 24, 1 << 23))
        assert machine.used == machine.empty
        machine.do(d.create_2d(1, 4, 4))


def test_backing_that_is_no_guest_memory_is_refused_and_costs_nothing(machine: Machine) -> None:
    machine.do(d.create_2d(1, 4, 4))
    used = machine.used
    for bad in ((LOW - 1, 2), (NEXT + REGION - 1, 2), (HIGH + REGION, 1), ((1 << 64) - 1, 2)):
        with refused(INVALID):
            machine.do(d.attach_backing(1, (LOW, 8), bad))
        assert machine.used == used
    machine.all(d.attach_backing(1, (LOW, 64)), d.transfer(1, whole(4, 4)))
    assert machine.bytes_of(1) == machine.ram.read((LOW, 64)).tobytes()


def test_backing_comes_and_goes(machine: Machine) -> None:
    unspec = ResponseType.ERR_UNSPEC
    machine.do(d.create_2d(1, 4, 4))
    for command in (d.transfer(1, whole(4, 4)), d.detach_backing(1)):
        with refused(unspec):
            machine.do(command)
    machine.do(d.attach_backing(1, (LOW, 64)))
    with refused(unspec):
        machine.do(d.attach_backing(1, (HIGH, 64)))
    machine.all(d.detach_backing(1), d.attach_backing(1, (HIGH, 64)), d.transfer(1, whole(4, 4)))
    assert machine.bytes_of(1) == machine.ram.read((HIGH, 64)).tobytes()
    machine.do(d.detach_backing(1))
    with refused(unspec):
        machine.do(d.transfer(1, whole(4, 4)))


def test_commands_on_no_resource_are_refused(machine: Machine) -> None:
    for command in (
        d.unref(7),
        d.attach_backing(7, (LOW, 8)),
        d.detach_backing(7),
        d.transfer(7, whole(1, 1)),
        d.transfer_3d(7, Box(0, 0, 0, 1, 1, 1)),
        d.set_scanout(0, 7, whole(1, 1)),
        d.set_scanout_blob(0, 7, whole(1, 1), (1, 1), stride=4),
        d.flush(7, whole(1, 1)),
        d.assign_uuid(7),
        d.update_cursor(0, 7),
        d.map_blob(7, 0),
        d.unmap_blob(7),
        d.unref(0),
        d.assign_uuid(0),
    ):
        with refused(NO_RESOURCE):
            machine.do(command)


def test_a_backing_is_found_again_when_the_memory_table_changes(machine: Machine) -> None:
    machine.all(d.create_2d(1, 4, 4), d.attach_backing(1, (HIGH, 64)))
    expected = machine.ram.read((HIGH, 64)).tobytes()
    machine.ram.share((LOW, NEXT))
    with refused(INVALID):
        machine.do(d.transfer(1, whole(4, 4)))
    assert machine.bytes_of(1) == bytes(64)
    machine.ram.share()
    machine.do(d.transfer(1, whole(4, 4)))
    assert machine.bytes_of(1) == expected


BIG = (2048, 1280)  # more than is copied at once
BIG_PAGES = tuple((start, REGION) for start in (LOW, HIGH, NEXT, LOW)) * 10


def test_a_large_transfer_is_done_aside(machine: Machine) -> None:
    machine.all(d.create_2d(1, *BIG), d.attach_backing(1, *BIG_PAGES))
    machine.patience.pausing = True
    transfer = machine.start(d.transfer(1, whole(*BIG)))
    assert stop_at(transfer)
    assert not any(machine.bytes_of(1)[::4096])
    assert isinstance(finish(transfer), OkNoData)
    assert machine.bytes_of(1) == machine.ram.read(*BIG_PAGES).tobytes()


def test_a_small_transfer_that_turns_out_to_be_slow_is_finished_aside(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = 500
    pages = ((LOW, REGION),) * (rows * PAGE // REGION + 1)
    machine.all(d.create_2d(1, 1024, rows), d.attach_backing(1, *pages))
    column = d.transfer(1, Rect(0, 0, 1, rows))
    monkeypatch.setattr(images, "SLOW", 0.0)
    waiting = machine.start(column)
    assert machine.bytes_of(1)[:4] == machine.ram.read((LOW, 4)).tobytes()
    assert not any(machine.bytes_of(1)[(rows - 1) * PAGE :])
    finish(waiting)
    whole_image = machine.ram.read(*pages).reshape(-1, PAGE)[:rows, :4]
    assert machine.bytes_of(1) == b"".join(row.tobytes() + bytes(PAGE - 4) for row in whole_image)


def test_a_large_transfer_that_was_cancelled_is_done_again(machine: Machine) -> None:
    machine.all(d.create_3d(1, *BIG), d.attach_backing(1, *BIG_PAGES))
    box = Box(0, 0, 0, *BIG, 1)
    for command in (d.transfer(1, whole(*BIG)), d.transfer_3d(1, box), d.transfer_back(1, box)):
        machine.patience.pausing = True
        transfer = machine.start(command)
        assert stop_at(transfer)
        cancel(transfer)
        machine.patience.pausing = False
        assert isinstance(machine.do(command), OkNoData)
    assert machine.bytes_of(1) == machine.ram.read(*BIG_PAGES).tobytes()


def test_a_transfer_waits_for_the_work_on_its_image(machine: Machine) -> None:
    machine.all(d.create_2d(1, *BIG), d.attach_backing(1, *BIG_PAGES))
    machine.all(d.ctx_create(), d.ctx_attach(1))
    done = machine.hold(d.submit(d.fill(1, 0, MIB, 0x01010101)))
    transfer = machine.start(d.transfer(1, whole(*BIG)))
    assert stop_at(transfer)
    done()
    assert machine.bytes_of(1)[:4] == b"\1\1\1\1"
    assert isinstance(finish(transfer), OkNoData)
    assert machine.bytes_of(1) == machine.ram.read(*BIG_PAGES).tobytes()


def test_plain_3d_images_are_images(machine: Machine) -> None:
    machine.all(d.create_3d(1, 6, 5), d.attach_backing(1, (LOW, 400), (HIGH, 400)))
    model = np.zeros((5, 6, 4), np.uint8)
    backing = machine.ram.read((LOW, 400), (HIGH, 400))
    machine.do(d.transfer_3d(1, Box(1, 2, 0, 3, 2, 1), offset=7, stride=40))
    for row in range(2):
        at = 7 + 40 * row
        model[2 + row, 1:4] = backing[at : at + 12].reshape(3, 4)
    assert machine.bytes_of(1) == model.tobytes()
    machine.do(d.transfer_back(1, Box(1, 2, 0, 3, 2, 1), offset=390, stride=13))
    back = machine.ram.read((LOW, 400), (HIGH, 400))
    backing[390:402] = model[2, 1:4].reshape(-1)
    backing[403:415] = model[3, 1:4].reshape(-1)
    assert back.tobytes() == backing.tobytes()


@pytest.mark.parametrize(
    "box",
    [Box(0, 0, 1, 1, 1, 1), Box(0, 0, 0, 1, 1, 2), Box(0, 0, 0, 5, 1, 1), Box(0, 0, 0, 1, U32, 1)],
    ids=str,
)
def test_boxes_outside_are_refused(machine: Machine, box: Box) -> None:
    machine.all(d.create_3d(1, 4, 4), d.attach_backing(1, (LOW, REGION)))
    for command in (d.transfer_3d(1, box), d.transfer_back(1, box)):
        with refused(INVALID):
            machine.do(command)


def test_a_host_blob_with_pages_is_transferred_as_bytes(machine: Machine) -> None:
    pieces = ((LOW + 5, 3000), (HIGH + 1, 5000))
    machine.do(d.ctx_create())
    machine.do(d.create_blob(1, 2 * PAGE, BlobMem.HOST3D_GUEST, *pieces))
    before = machine.ram.read(*pieces)
    machine.do(d.transfer_3d(1, Box(3, 2, 0, 100, 7, 1), offset=1000, stride=300))
    model = np.zeros(2 * PAGE, np.uint8)
    for row in range(7):
        at = 2 * 300 + 3 + row * 300
        model[at : at + 100] = before[1000 + 300 * row : 1100 + 300 * row]
    assert machine.bytes_of(1) == model.tobytes()
    machine.do(d.transfer_back(1, Box(0, 0, 0, 8000, 1, 1)))
    assert machine.ram.read(*pieces).tobytes() == model[:8000].tobytes()


def test_a_host3d_blob_has_no_guest_side(machine: Machine) -> None:
    # Its pages would be the guest's own window, which a front-end may send back as memory.
    machine.all(d.ctx_create(), d.create_blob(1, PAGE))
    with refused(INVALID):
        machine.do(d.attach_backing(1, (LOW, PAGE)))


def test_an_empty_box_of_endless_rows_takes_no_time(machine: Machine) -> None:
    machine.do(d.ctx_create())
    machine.do(d.create_blob(1, PAGE, BlobMem.HOST3D_GUEST, (LOW, PAGE)))
    before = machine.ram.snapshot()
    machine.do(d.transfer_3d(1, Box(0, 0, 0, 0, U32, 1)))
    machine.do(d.transfer_back(1, Box(0, 0, 0, 0, U32, 1), stride=U32))
    assert machine.bytes_of(1) == bytes(PAGE)
    assert machine.ram.snapshot() == before


# Where R, G and B are in a pixel's four bytes, from the names in the specification.
ORDERS = {
    Format.B8G8R8A8_UNORM: "BGRA",
    Format.B8G8R8X8_UNORM: "BGRX",
    Format.A8R8G8B8_UNORM: "ARGB",
    Format.X8R8G8B8_UNORM: "XRGB",
    Format.R8G8B8A8_UNORM: "RGBA",
    Format.X8B8G8R8_UNORM: "XBGR",
    Format.A8B8G8R8_UNORM: "ABGR",
    Format.R8G8B8X8_UNORM: "RGBX",
}


@pytest.mark.parametrize("pixel_format", Format)
def test_every_format_shows_its_colours(machine: Machine, pixel_format: Format) -> None:
    order = ORDERS[pixel_format]
    pieces = ((HIGH + 3, 5 * MIB // 1024), (LOW, 70))
    machine.all(d.create_2d(1, 7, 5, pixel_format), d.attach_backing(1, *pieces))
    machine.all(d.transfer(1, whole(7, 5)), d.set_scanout(0, 1, whole(7, 5)))
    pixels = machine.ram.read(*pieces)[: 7 * 5 * 4].reshape(5, 7, 4)
    expected = np.stack([pixels[..., order.index(channel)] for channel in "RGB"], axis=-1)
    picture = screenshot(machine.gpu, 0)
    assert picture is not None
    assert np.array_equal(picture, expected)
    bgr = machine.gpu.scanouts.pictures.xrgb(0, Rect(2, 1, 3, 4))
    assert bgr is not None
    assert np.array_equal(bgr[..., 2::-1], expected[1:5, 2:5])


def test_an_empty_rectangle_is_nothing_to_do() -> None:
    with Machine() as machine:
        machine.all(d.create_2d(1, 8, 8), d.attach_backing(1, (LOW, PAGE)))
        for rect in (Rect(0, 0, 0, 5), Rect(3, 3, 5, 0), Rect(99, 99, 0, 0)):
            machine.all(d.transfer(1, rect), d.flush(1, rect))
        assert machine.bytes_of(1) == bytes(8 * 8 * 4)


def test_a_memory_table_that_was_replaced_is_not_kept(machine: Machine) -> None:
    """It would keep memory mapped that the front-end has taken away."""
    machine.all(d.create_2d(1, 16, 16), d.attach_backing(1, (LOW, PAGE)))
    machine.do(d.transfer(1, whole(16, 16)))
    assert len(machine.gpu.transfers)
    replaced = ref(machine.ram.memory.table)
    machine.ram.share((LOW, NEXT))
    assert replaced() is None
    machine.do(d.transfer(1, whole(16, 16)))
