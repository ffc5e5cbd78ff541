"""Buffers: bounds, access, and whole round trips; tests/native has the tests of the C code."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.native.arena import SIZE, Buffer, disjoint_buffers, random_bytes, rects, shapes
from vgpud.errors import OutOfRange
from vgpud.memory.extents import NON_COHERENT, PLAIN, Extents, MemoryAccess
from vgpud.memory.steps import Steps, copy_all_steps

ACCESSES = [
    PLAIN,
    NON_COHERENT,
    MemoryAccess(flush_before_read=True),
    MemoryAccess(non_temporal_write=True),
]
BIG = (1 << 64) - 1


def finish(steps: Steps) -> None:
    for _ in steps:
        pass


def extents_of(buffer: Buffer, arena: np.ndarray, access: MemoryAccess = PLAIN) -> Extents:
    return Extents(buffer.spans(arena), (arena,), access=access)


@pytest.mark.parametrize("access", ACCESSES)
@given(data=st.data(), buffer=disjoint_buffers())
def test_reads_and_writes_of_rectangles(
    access: MemoryAccess, data: st.DataObject, buffer: Buffer
) -> None:
    arena = random_bytes(SIZE)
    extents = extents_of(buffer, arena, access)
    rect = data.draw(shapes(buffer.size).flatmap(lambda shape: rects(buffer.size, shape)))
    index = buffer.index[rect.index]
    place = rect.offset, rect.stride

    got = extents.read_rect(*place, rect.row_bytes, rect.rows)
    assert np.array_equal(got, arena[index])
    out = np.zeros((rect.rows, rect.row_bytes), np.uint8)
    extents.read_rect_into(*place, out)
    assert np.array_equal(out, got)

    extents.write_rect(*place, ~got)
    expected = random_bytes(SIZE)
    expected[index] = ~got
    assert np.array_equal(arena, expected)


def test_pieces_of_frames_of_pixels() -> None:
    arena = random_bytes(SIZE)
    extents = extents_of(Buffer(((2000, 1000), (0, 1000))), arena)
    frame = np.zeros((10, 12, 4), np.uint8)
    extents.read_rect_into(800, 48, frame[2:8, 3:9])
    linear = np.concatenate([arena[2000:3000], arena[:1000]])
    for row in range(6):
        expected = linear[800 + 48 * row :][:24].reshape(6, 4)
        assert np.array_equal(frame[2 + row, 3:9], expected)
    assert not frame[:2].any()
    extents.write_rect(0, 24, frame[2:8, 3:9])
    assert np.array_equal(arena[2000 : 2000 + 144], frame[2:8, 3:9].ravel())
    extents.write_rect(0, 8, np.arange(4, dtype=np.uint32).reshape(2, 2))
    assert np.array_equal(arena[2000:2016].view(np.uint32), [0, 1, 2, 3])


def test_ranges_and_bytes() -> None:
    arena = random_bytes(SIZE)
    extents = extents_of(Buffer(((2000, 10), (0, 10))), arena, NON_COHERENT)
    extents.write(8, b"wxyz")
    assert extents.read(7, 6).tobytes() == bytes([arena[2007]]) + b"wxyz" + bytes([arena[2]])
    extents.write(0, np.arange(10, dtype=np.uint16)[:2])
    assert arena[2000:2004].tolist() == [0, 0, 1, 0]
    extents.fill(1, 3, 0x00030201)
    assert arena[2000:2004].tolist() == [0, 1, 2, 3]
    extents.flush(0, 20)
    extents.write(20, b"")
    assert extents.read(20, 0).size == 0


def test_from_an_array() -> None:
    array = random_bytes(100)
    extents = Extents.from_array(array)
    assert extents.size == 100
    assert extents.array is not None
    extents.array[3] = 5
    assert array[3] == 5
    extents.write(4, b"\x07")
    assert array[4] == 7
    del array
    assert extents.read(3, 2).tolist() == [5, 7]
    empty = Extents.from_array(np.empty(0, np.uint8))
    assert empty.size == 0
    finish(copy_all_steps(empty, empty))
    with pytest.raises(ValueError, match="contiguous"):
        Extents.from_array(np.zeros(10, np.uint8)[::2])


def test_copies_of_whole_buffers() -> None:
    source = extents_of(Buffer(((10, 50), (100, 7), (70, 3))), random_bytes(SIZE, 2))
    arena = random_bytes(SIZE)
    target = extents_of(Buffer(((3000, 20), (1000, 100))), arena, NON_COHERENT)
    finish(copy_all_steps(target, source))
    assert np.array_equal(target.read(0, 60), source.read(0, 60))
    assert np.array_equal(target.read(60, 60), random_bytes(SIZE)[1040:1100])
    with pytest.raises(OutOfRange):
        copy_all_steps(source, target)


BAD_RANGES = [(121, 0), (120, 1), (0, 121), (-1, 1), (1, -1), (BIG, 1), (1, BIG), (BIG, BIG)]


@pytest.mark.parametrize(("offset", "length"), BAD_RANGES)
def test_ranges_that_leave_the_buffer(offset: int, length: int) -> None:
    arena = random_bytes(SIZE)
    extents = extents_of(Buffer(((100, 60), (10, 60))), arena)
    calls: list[Callable[[], object]] = [
        lambda: extents.check(offset, length),
        lambda: extents.read(offset, length),
        lambda: extents.fill(offset, length, 0),
        lambda: extents.flush(offset, length),
    ]
    if 0 <= length <= SIZE:
        calls.append(lambda: extents.write(offset, bytes(length)))
    for call in calls:
        with pytest.raises(OutOfRange):
            call()
    assert np.array_equal(arena, random_bytes(SIZE))


BAD_RECTS = [
    # offset, stride, bytes a row, rows
    (0, 10, 11, 2),
    (0, 0, 1, 2),
    (0, -10, 10, 2),
    (0, 60, 61, 2),
    (1, 60, 60, 2),
    (0, BIG, 1, 2),
    (0, 1 << 63, 1, 3),
    (BIG, 1, 1, 1),
    (0, 20, -1, 2),
    (0, 20, 1, -1),
    (121, 0, 0, 0),
]


@pytest.mark.parametrize(("offset", "stride", "row_bytes", "rows"), BAD_RECTS)
def test_rectangles_that_leave_the_buffer(
    offset: int, stride: int, row_bytes: int, rows: int
) -> None:
    arena = random_bytes(SIZE)
    extents, other = (
        extents_of(Buffer(((100, 120),)), arena),
        Extents.from_array(random_bytes(SIZE)),
    )
    place = offset, stride
    calls: list[Callable[[], object]] = [
        lambda: extents.check_rect(*place, row_bytes, rows),
        lambda: extents.read_rect(*place, row_bytes, rows),
        lambda: extents.copy_rect(*place, other, 0, 100, row_bytes=row_bytes, rows=rows),
        lambda: other.copy_rect(0, 100, extents, *place, row_bytes=row_bytes, rows=rows),
    ]
    if row_bytes >= 0 and rows >= 0:
        data = np.zeros((rows, row_bytes), np.uint8)
        calls.append(lambda: extents.write_rect(*place, data))
        calls.append(lambda: extents.read_rect_into(*place, data))
    for call in calls:
        with pytest.raises(OutOfRange):
            call()
    assert np.array_equal(arena, random_bytes(SIZE))
