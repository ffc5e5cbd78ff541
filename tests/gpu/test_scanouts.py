"""Outputs: their modes, what they show, and the damage that a display is sent."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.gpu import driver as d
from tests.gpu.machine import HIGH, LOW, PAGE, REGION, Machine, Screen, refused, screenshot
from vgpud.gpu.display.shadow import Shadow
from vgpud.gpu.wire import edid
from vgpud.gpu.wire.header import Rect
from vgpud.gpu.wire.protocol import BlobMem, Format, ResponseType
from vgpud.gpu.wire.responses import DisplayInfo, Edid

INVALID = ResponseType.ERR_INVALID_PARAMETER
NO_SCANOUT = ResponseType.ERR_INVALID_SCANOUT_ID


@pytest.fixture
def machine() -> Iterator[Machine]:
    with Machine(outputs=((640, 480), (800, 600))) as machine:
        yield machine


@pytest.mark.parametrize("count", range(1, 17))
def test_each_output_has_its_place_and_size(count: int) -> None:
    sizes = [(640 + 8 * index, 480 + index) for index in range(count)]
    with Machine(outputs=sizes) as machine:
        info = machine.do(d.display_info())
        assert isinstance(info, DisplayInfo)
        assert len(info.modes) == count
        assert [(mode.rect.width, mode.rect.height) for mode in info.modes] == sizes
        assert all(mode.enabled for mode in info.modes)
        assert [mode.rect.x for mode in info.modes] == [
            sum(width for width, _ in sizes[:index]) for index in range(count)
        ]
        assert int.from_bytes(machine.gpu.config_space.read()[8:12], "little") == count
        machine.do(d.create_2d(1, 4, 4))
        for index, (width, height) in enumerate(sizes):
            answer = machine.do(d.get_edid(index))
            assert isinstance(answer, Edid)
            parsed = edid.parse(answer.data)
            assert (parsed.preferred.h_active, parsed.preferred.v_active) == (width, height)
            assert "gpu0" in parsed.name
            machine.do(d.set_scanout(index, 1, Rect(0, 0, 4, 4)))
            assert screenshot(machine.gpu, index) is not None
        for command in (
            d.get_edid(count),
            d.set_scanout(count, 1, Rect(0, 0, 4, 4)),
            d.set_scanout(count, 0, Rect(0, 0, 0, 0)),
            d.set_scanout_blob(count, 1, Rect(0, 0, 4, 4), (4, 4), stride=16),
            d.get_edid(0xFFFFFFFF),
        ):
            with refused(NO_SCANOUT):
                machine.do(command)


def test_a_display_says_itself_what_its_outputs_are(machine: Machine) -> None:
    screen = Screen()
    machine.gpu.attach_display(screen)
    info = machine.do(d.display_info())
    assert isinstance(info, DisplayInfo)
    assert {(mode.rect.width, mode.rect.height) for mode in info.modes} == {(111, 222)}
    assert machine.do(d.get_edid(15)) == Edid(bytes([15]) * 128)
    with refused(NO_SCANOUT):
        machine.do(d.get_edid(16))
    screen.silent = True
    for command in (d.display_info(), d.get_edid(0)):
        with refused(ResponseType.ERR_UNSPEC):
            machine.do(command)


def test_a_scanout_is_a_part_of_an_image(machine: Machine) -> None:
    machine.all(d.create_2d(1, 10, 8, Format.R8G8B8A8_UNORM), d.attach_backing(1, (LOW, 320)))
    machine.do(d.transfer(1, Rect(0, 0, 10, 8)))
    pixels = machine.ram.read((LOW, 320)).reshape(8, 10, 4)[..., :3]
    machine.do(d.set_scanout(1, 1, Rect(3, 2, 6, 5)))
    picture = screenshot(machine.gpu, 1)
    assert picture is not None
    assert np.array_equal(picture, pixels[2:7, 3:9])
    assert screenshot(machine.gpu, 0) is None
    machine.do(d.set_scanout(1, 0, Rect(0, 0, 0, 0)))
    assert screenshot(machine.gpu, 1) is None


def test_one_image_on_two_outputs(machine: Machine) -> None:
    machine.all(d.create_2d(1, 8, 8), d.set_scanout(0, 1, Rect(0, 0, 4, 8)))
    machine.do(d.set_scanout(1, 1, Rect(4, 0, 4, 8)))
    screen = Screen()
    machine.gpu.attach_display(screen)
    assert screen.take() == [
        ("scanout", 0, 4, 8),
        ("damage", 0, Rect(0, 0, 4, 8)),
        ("scanout", 1, 4, 8),
        ("damage", 1, Rect(0, 0, 4, 8)),
    ]
    machine.do(d.flush(1, Rect(3, 2, 2, 3)))
    assert screen.take() == [("damage", 0, Rect(3, 2, 1, 3)), ("damage", 1, Rect(0, 2, 1, 3))]
    machine.do(d.unref(1))
    assert screen.take() == [("scanout", 0, 0, 0), ("scanout", 1, 0, 0)]
    assert screenshot(machine.gpu, 0) is None


rects = st.builds(Rect, st.integers(0, 7), st.integers(0, 7), st.integers(1, 8), st.integers(1, 8))


@given(rects, rects, st.booleans())
@settings(max_examples=100, deadline=None)
def test_damage_is_what_a_flush_and_the_scanout_share(
    shown: Rect, flushed: Rect, blob: bool
) -> None:
    with Machine() as machine:
        if blob:
            machine.do(d.guest_blob(1, (LOW, 16 * 16 * 4)))
            scanout = d.set_scanout_blob(0, 1, shown, (16, 16), stride=64)
        else:
            machine.do(d.create_2d(1, 16, 16))
            scanout = d.set_scanout(0, 1, shown)
        machine.all(d.create_2d(2, 16, 16), scanout)
        screen = Screen()
        machine.gpu.attach_display(screen)
        screen.take()
        machine.all(d.flush(1, flushed), d.flush(2, flushed))
        seen = np.zeros((16, 16), bool)
        for what, scanout_id, rect in screen.take():
            assert (what, scanout_id) == ("damage", 0)
            assert rect.x + rect.width <= shown.width
            assert rect.y + rect.height <= shown.height
            seen[rect.y : rect.y + rect.height, rect.x : rect.x + rect.width] = True
        expected = np.zeros((16, 16), bool)
        expected[flushed.y : flushed.y + flushed.height, flushed.x : flushed.x + flushed.width] = (
            True
        )
        part = expected[shown.y : shown.y + shown.height, shown.x : shown.x + shown.width]
        assert np.array_equal(seen[: shown.height, : shown.width], part)
        assert seen.sum() == part.sum()


def test_a_flush_outside_the_image_is_refused(machine: Machine) -> None:
    machine.all(d.create_2d(1, 8, 8), d.set_scanout(0, 1, Rect(0, 0, 8, 8)))
    for rect in (Rect(0, 0, 9, 8), Rect(8, 0, 1, 1), Rect(0xFFFFFFFF, 0, 2, 1)):
        with refused(INVALID):
            machine.do(d.flush(1, rect))


def test_a_scanout_says_its_size_only_when_it_changes(machine: Machine) -> None:
    screen = Screen()
    machine.gpu.attach_display(screen)
    whole = Rect(0, 0, 8, 8)
    machine.all(d.create_2d(1, 8, 8), d.create_2d(2, 8, 8), d.set_scanout(0, 1, whole))
    assert screen.take() == [("scanout", 0, 8, 8), ("damage", 0, whole)]
    machine.do(d.set_scanout(0, 2, whole))  # a page flip
    assert screen.take() == [("damage", 0, whole)]
    machine.do(d.flush(1, whole))  # no longer shown
    assert screen.take() == []
    machine.do(d.set_scanout(0, 2, Rect(1, 1, 7, 7)))
    assert screen.take() == [("scanout", 0, 7, 7), ("damage", 0, Rect(0, 0, 7, 7))]
    machine.gpu.detach_display(Screen())  # another one: changes nothing
    machine.do(d.set_scanout(0, 0, Rect(0, 0, 0, 0)))
    machine.do(d.set_scanout(0, 0, Rect(0, 0, 0, 0)))
    assert screen.take() == [("scanout", 0, 0, 0)]
    machine.gpu.detach_display(screen)
    machine.do(d.set_scanout(0, 1, whole))
    assert screen.take() == []


BLOB = 3 * PAGE
PIECES = ((HIGH + 1, PAGE + 7), (LOW + 9, 2 * PAGE))


def make_blob(machine: Machine, mem: BlobMem) -> bytes:
    """Makes blob 1 of BLOB bytes with something in it, which it returns."""
    if mem is BlobMem.GUEST:
        machine.do(d.guest_blob(1, *PIECES, size=BLOB))
        return machine.ram.read(*PIECES)[:BLOB].tobytes()
    machine.do(d.ctx_create())
    machine.all(d.create_blob(1, BLOB, mem), d.guest_blob(2, *PIECES))
    machine.all(d.ctx_attach(1), d.ctx_attach(2), d.submit(d.copy(2, 1, 0, 0, BLOB)))
    return machine.bytes_of(1)


@pytest.mark.parametrize("mapped", [False, True])
@pytest.mark.parametrize("pixel_format", [Format.B8G8R8X8_UNORM, Format.X8B8G8R8_UNORM])
@pytest.mark.parametrize("mem", BlobMem)
def test_a_blob_is_shown_by_stride_and_offset(
    machine: Machine, mem: BlobMem, pixel_format: Format, mapped: bool
) -> None:
    data = np.frombuffer(make_blob(machine, mem), np.uint8)
    if mapped and mem is BlobMem.HOST3D:
        machine.do(d.map_blob(1, 5 * PAGE))
    stride, offset = 12 * 4 + 3, 1001
    machine.do(
        d.set_scanout_blob(
            0,
            1,
            Rect(2, 3, 7, 10),
            (12, 20),
            stride=stride,
            offset=offset,
            pixel_format=pixel_format,
        )
    )
    rows = [data[offset + y * stride :][: 12 * 4].reshape(12, 4) for y in range(3, 13)]
    pixels = np.stack(rows)[:, 2:9]
    order = [2, 1, 0] if pixel_format is Format.B8G8R8X8_UNORM else [3, 2, 1]
    picture = screenshot(machine.gpu, 0)
    assert picture is not None
    assert np.array_equal(picture, pixels[..., order])


LAST = BLOB - (20 * 64)  # where a frame of 16 x 20 just fits
BAD_FRAMES = [
    ((16, 20), Rect(0, 0, 16, 20), 64, LAST + 1, d.BGRX),
    ((16, 20), Rect(0, 0, 16, 20), 63, 0, d.BGRX),
    ((16, 20), Rect(0, 0, 17, 20), 64, 0, d.BGRX),
    ((16, 20), Rect(1, 0, 16, 20), 64, 0, d.BGRX),
    ((16, 20), Rect(0, 0, 0, 20), 64, 0, d.BGRX),
    ((0, 0), Rect(0, 0, 0, 0), 64, 0, d.BGRX),
    ((16, 20), Rect(0, 0, 16, 20), 64, 0, 99),
    ((16, 20), Rect(0, 0, 16, 20), 0, 0, d.BGRX),
    ((16, 20), Rect(0, 0, 16, 20), 0xFFFFFFFF, 0, d.BGRX),
    ((16, 20), Rect(0, 0, 16, 20), 64, 0xFFFFFFFF, d.BGRX),
    ((0xFFFFFFFF, 0xFFFFFFFF), Rect(0, 0, 1, 1), 0xFFFFFFFF, 0, d.BGRX),
    ((0x40000001, 1), Rect(0, 0, 1, 1), 4, 0, d.BGRX),
]


@pytest.mark.parametrize("frame", BAD_FRAMES)
@pytest.mark.parametrize("mem", BlobMem)
def test_a_frame_that_is_not_in_the_blob_is_refused(
    machine: Machine, mem: BlobMem, frame: tuple[tuple[int, int], Rect, int, int, int]
) -> None:
    size, rect, stride, offset, pixel_format = frame
    make_blob(machine, mem)
    good = d.set_scanout_blob(0, 1, Rect(0, 0, 16, 20), (16, 20), stride=64, offset=LAST)
    machine.do(good)
    before = screenshot(machine.gpu, 0)
    with refused(INVALID):
        machine.do(
            d.set_scanout_blob(
                0, 1, rect, size, stride=stride, offset=offset, pixel_format=pixel_format
            )
        )
    after = screenshot(machine.gpu, 0)
    assert before is not None
    assert after is not None
    assert np.array_equal(before, after)


def test_a_blob_needs_the_command_that_says_its_layout(machine: Machine) -> None:
    machine.do(d.guest_blob(1, (LOW, PAGE)))
    with refused(INVALID):
        machine.do(d.set_scanout(0, 1, Rect(0, 0, 4, 4)))
    machine.do(d.set_scanout_blob(0, 1, Rect(0, 0, 4, 4), (4, 4), stride=16))
    machine.do(d.set_scanout_blob(0, 0, Rect(0, 0, 0, 0), (0, 0), stride=0))
    assert screenshot(machine.gpu, 0) is None


def test_a_blob_whose_pages_have_gone_is_not_shown(machine: Machine) -> None:
    machine.do(d.guest_blob(1, (HIGH, REGION)))
    machine.do(d.set_scanout_blob(0, 1, Rect(0, 0, 4, 4), (4, 4), stride=16))
    machine.ram.share((LOW,))
    assert machine.gpu.scanouts.pictures.xrgb(0, Rect(0, 0, 4, 4)) is None
    assert screenshot(machine.gpu, 0) is None
    machine.ram.share()
    assert screenshot(machine.gpu, 0) is not None
    machine.do(d.detach_backing(1))
    assert machine.gpu.scanouts.pictures.xrgb(0, Rect(0, 0, 4, 4)) is None
    assert screenshot(machine.gpu, 0) is None


def test_only_what_is_shown_can_be_read(machine: Machine) -> None:
    machine.all(d.create_2d(1, 8, 8), d.set_scanout(0, 1, Rect(2, 2, 4, 4)))
    pictures = machine.gpu.scanouts.pictures
    assert pictures.xrgb(0, Rect(0, 0, 4, 4)) is not None
    assert pictures.xrgb(0, Rect(0, 0, 5, 4)) is None
    assert pictures.xrgb(0, Rect(4, 0, 1, 1)) is None
    assert pictures.xrgb(1, Rect(0, 0, 1, 1)) is None


@given(part=rects, blob=st.booleans(), pixel_format=st.sampled_from(Format))
@settings(max_examples=100, deadline=None)
def test_a_shadow_gets_what_a_reader_gets(part: Rect, blob: bool, pixel_format: Format) -> None:
    with Machine() as machine:
        shown = Rect(1, 2, 15, 15)
        if blob:
            machine.do(d.guest_blob(1, (LOW + 3, 700), (HIGH, 16 * 72)))
            scanout = d.set_scanout_blob(
                0, 1, shown, (16, 17), stride=71, offset=9, pixel_format=pixel_format
            )
        else:
            machine.do(d.create_2d(1, 16, 17, pixel_format))
            machine.all(d.attach_backing(1, (LOW, 16 * 17 * 4)), d.transfer(1, Rect(0, 0, 16, 17)))
            scanout = d.set_scanout(0, 1, shown)
        machine.do(scanout)
        pictures = machine.gpu.scanouts.pictures
        shadow = Shadow(15, 15)
        assert np.array_equal(np.asarray(pictures.update(0, part, shadow)), [[1]])
        expected = pictures.xrgb(0, part)
        assert expected is not None
        assert np.array_equal(shadow.pixels(part), expected)
        whole = Rect(0, 0, 15, 15)
        pictures.update(0, whole, shadow)
        assert np.array_equal(np.asarray(pictures.update(0, part, shadow)), [[0]])
        machine.do(d.flush(1, part))
        for other in (Shadow(15, 16), Shadow(14, 15)):
            assert pictures.update(0, Rect(0, 0, 1, 1), other) is None
        assert pictures.update(0, Rect(0, 0, 16, 1), shadow) is None
        assert pictures.update(1, part, shadow) is None


def test_a_shadow_keeps_what_it_has_where_the_pages_have_gone(machine: Machine) -> None:
    machine.do(d.guest_blob(1, (HIGH, REGION)))
    machine.do(d.set_scanout_blob(0, 1, Rect(0, 0, 4, 4), (4, 4), stride=16))
    whole, shadow = Rect(0, 0, 4, 4), Shadow(4, 4)
    assert machine.gpu.scanouts.pictures.update(0, whole, shadow) is not None
    before = shadow.pixels(whole).copy()
    machine.ram.share((LOW,))
    assert machine.gpu.scanouts.pictures.update(0, whole, shadow) is None
    machine.do(d.detach_backing(1))
    machine.ram.share()
    assert machine.gpu.scanouts.pictures.update(0, whole, shadow) is None
    assert np.array_equal(shadow.pixels(whole), before)


def test_an_image_is_not_shown_as_a_blob(machine: Machine) -> None:
    machine.do(d.create_2d(1, 64, 64))
    with refused(ResponseType.ERR_INVALID_PARAMETER):
        machine.do(d.set_scanout_blob(0, 1, Rect(0, 0, 64, 64), (64, 64), stride=256))
    assert screenshot(machine.gpu, 0) is None


@pytest.mark.parametrize(("width", "height"), [(16385, 1), (1, 16385), (1 << 20, 4), (4, 1 << 20)])
def test_no_side_of_a_scanout_is_longer_than_a_picture_can_be(width: int, height: int) -> None:
    with Machine() as machine:
        machine.do(d.create_2d(1, width, height))
        machine.do(d.guest_blob(2, *[(LOW, REGION)] * 64))
        blob = {"stride": min(width * 4, 1 << 20)}
        for whole in (
            d.set_scanout(0, 1, Rect(0, 0, width, height)),
            d.set_scanout_blob(0, 2, Rect(0, 0, width, height), (width, height), **blob),
        ):
            with refused(INVALID):
                machine.do(whole)
        # A part of a resource may be shown, however large that is.
        part = Rect(width - 1, height - 1, 1, 1)
        machine.do(d.set_scanout(0, 1, part))
        most = Rect(0, 0, min(width, 16384), min(height, 16384))
        machine.do(d.set_scanout(0, 1, most))
        assert machine.gpu.scanouts.showing(0) == (most.width, most.height)


@pytest.mark.parametrize("pieces", [1, 64])
def test_what_it_takes_to_read_a_picture(pieces: int) -> None:
    with Machine() as machine:
        pictures = machine.gpu.scanouts.pictures
        whole, some = Rect(0, 0, 64, 64), Rect(3, 7, 8, 8)
        assert pictures.cost(0, whole) == 0
        size = 64 * 64 * 4 // pieces
        machine.do(d.guest_blob(1, *[(LOW + PAGE * (3 * at % 7), size) for at in range(pieces)]))
        machine.do(d.set_scanout_blob(0, 1, whole, (64, 64), stride=256))
        plain, part = pictures.cost(0, whole), pictures.cost(0, some)
        assert plain is not None
        assert part is not None
        assert plain > max(64 * 64 // 2, 200 * pieces)
        assert 64 // 2 + 8 * 100 < part < plain / 2
        assert pictures.cost(0, Rect(0, 0, 65, 1)) == 0  # there is no such part
        machine.do(
            d.set_scanout_blob(
                0, 1, whole, (64, 64), stride=256, pixel_format=Format.R8G8B8A8_UNORM
            )
        )
        assert (pictures.cost(0, whole) or 0) > plain
        machine.do(d.detach_backing(1))
        assert pictures.cost(0, whole) == 0


def test_rows_far_apart_take_longer() -> None:
    with Machine() as machine:
        machine.do(d.guest_blob(1, (LOW, REGION)))
        costs = []
        for stride in (64, 4096):
            machine.do(d.set_scanout_blob(0, 1, Rect(0, 0, 16, 60), (16, 60), stride=stride))
            costs.append(machine.gpu.scanouts.pictures.cost(0, Rect(0, 0, 16, 60)) or 0)
        assert costs[1] > 2 * costs[0]
