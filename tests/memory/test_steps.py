"""What accesses cost, and that no step of a long one is long."""

from __future__ import annotations

import time
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.native.arena import SIZE, Buffer, disjoint_buffers, random_bytes, rects, shapes
from vgpud.memory import memfd
from vgpud.memory.dirty_log import DirtyLog
from vgpud.memory.engine import Engine, blit_cost
from vgpud.memory.extents import NON_COHERENT, PLAIN, Extents, GuestPages, MemoryAccess
from vgpud.memory.steps import STEP, Part, Place, copy_steps, cost, flush_steps, parts
from vgpud.native.arrays import address_of
from vgpud.native.spans import COST_PAGE, SPAN
from vgpud.uapi.page import PAGE_SIZE

MIB = 1 << 20
LONGEST = 0.02
"""Seconds of its own time that a step may take. It takes a hundredth to a tenth of that, mostly;
without a cut, each of these operations would take from a tenth of a second to many seconds."""


@given(data=st.data(), buffer=disjoint_buffers(), backward=st.booleans())
def test_parts_are_the_rectangle_in_order_and_cheap(
    data: st.DataObject, buffer: Buffer, backward: bool
) -> None:
    extents = Extents(buffer.spans(random_bytes(SIZE)), ())
    rect = data.draw(shapes(buffer.size).flatmap(lambda shape: rects(buffer.size, shape)))
    limit = data.draw(st.integers(1, 20_000))
    place = Place(extents, rect.offset, rect.stride)

    cut = list(parts(rect.row_bytes, rect.rows, place, limit=limit, backward=backward))

    seen = np.zeros((rect.rows, rect.row_bytes), np.uint8)
    for row, rows, column, width in cut:
        seen[row : row + rows, column : column + width] += 1
        here = Place(extents, rect.offset + row * rect.stride + column, rect.stride)
        assert (rows == 1 and width <= 64) or cost(width, rows, here) <= limit
        assert column % 64 == 0
    assert (seen == 1).all()
    order = [(part.row, part.column) for part in cut]
    assert order == sorted(order, reverse=backward)


def test_a_rectangle_of_nothing_costs_nothing() -> None:
    place = Place(Extents.from_array(np.zeros(10, np.uint8)), 0, 1)
    assert cost(0, 5, place) == cost(5, 0, place) == 0
    assert list(parts(0, 5, place)) == list(parts(5, 0, place)) == []


def test_cost_is_of_bytes_rows_extents_and_what_is_flushed_and_logged() -> None:
    array = np.zeros(4 * MIB, np.uint8)
    whole = Extents.from_array(array)
    cheap = cost(MIB, 1, Place(whole, 0, MIB))
    assert cost(2 * MIB, 1, Place(whole, 0, MIB)) > 1.9 * cheap
    assert cost(1, MIB, Place(whole, 0, 1)) > 100 * cheap
    assert cost(MIB, 1, Place(scattered(array, 64), 0, MIB)) > 10 * cheap
    around = Extents.from_array(array, access=MemoryAccess(flush_around_write=True))
    assert cost(1, 2, Place(around, 0, 2 * MIB)) > 100 * cost(1, 2, Place(whole, 0, 2 * MIB))
    assert cost(1, 1000, Place(logged(array), 0, 4096)) > cost(1, 1000, Place(whole, 0, 4096))


def test_rows_that_may_need_a_page_each_are_few_in_a_part() -> None:
    rows = 2000
    far = Place(Extents.from_array(np.zeros(rows * PAGE_SIZE, np.uint8)), 0, PAGE_SIZE)
    near = Place(far.buffer, 0, 64)
    assert [part.rows for part in parts(1, rows, near)] == [rows]
    for places in ((far,), (near, far)):
        cut = list(parts(1, rows, *places))
        assert sum(part.rows for part in cut) == rows
        assert max(part.rows for part in cut) * COST_PAGE <= STEP
    assert [part.rows for part in parts(8 * PAGE_SIZE, 3, Place(far.buffer, 0, 1 << 20))] == [3]


class Sink:
    def __init__(self) -> None:
        self.log: DirtyLog | None = DirtyLog(memfd.create("log", 1 << 16), 1 << 16)


def scattered(array: np.ndarray, piece: int) -> Extents:
    spans = np.empty(array.size // piece, SPAN)
    spans["address"] = address_of(array) + np.random.default_rng(1).permutation(spans.size) * piece
    spans["length"] = piece
    return Extents(spans, (array,))


def logged(array: np.ndarray) -> Extents:
    spans = np.array([(address_of(array), array.size)], SPAN)
    guest = GuestPages(Sink(), np.zeros(1, np.uint64))
    return Extents(spans, (array,), guest=guest)


def zeros(size: int) -> Extents:
    return Extents.from_array(np.ones(size, np.uint8))


def thin_rows(access: MemoryAccess = PLAIN) -> Iterator[None]:
    to = Extents.from_array(np.ones(8 * MIB, np.uint8), access=access)
    return copy_steps(Place(to, 0, 1), Place(zeros(8 * MIB), 0, 1), 1, 8 * MIB)


def logged_rows() -> Iterator[None]:
    to = logged(np.ones(16 * MIB, np.uint8))
    return copy_steps(Place(to, 0, 8), Place(zeros(2 * MIB), 0, 1), 1, 2 * MIB)


def scattered_bytes() -> Iterator[None]:
    source = scattered(np.ones(MIB, np.uint8), 1)
    return copy_steps(Place(zeros(MIB), 0, MIB), Place(source, 0, MIB), MIB, 1)


def rows_over_scattered_bytes() -> Iterator[None]:
    source = scattered(np.ones(MIB, np.uint8), 1)
    return copy_steps(Place(zeros(MIB), 0, 64), Place(source, 0, 64), 1, MIB // 64)


def flushes_between_rows() -> Iterator[None]:
    array = np.ones(64 * MIB, np.uint8)
    to = Extents.from_array(array, access=MemoryAccess(flush_around_write=True))
    return copy_steps(Place(to, 0, 16384), Place(zeros(4096), 0, 1), 1, 4096)


def scratch_of_thin_rows() -> Iterator[None]:
    whole = zeros(8 * MIB)
    return Engine(4 * MIB).blit_steps(whole, 3, 2, whole, 0, 1, 1, 2 * MIB)


def thin_rows_backward() -> Iterator[None]:
    whole = zeros(8 * MIB)
    return Engine(0).blit_steps(whole, 3, 4, whole, 0, 4, 1, 2 * MIB - 1)


def scattered_fill() -> Iterator[None]:
    return Engine(0).fill_steps(scattered(np.ones(MIB, np.uint8), 1), 0, MIB, 7)


def scattered_checksum() -> Iterator[None]:
    return Engine(0).crc32_steps(scattered(np.ones(MIB, np.uint8), 1), 0, MIB)


def scattered_copy() -> Iterator[None]:
    to, source = (scattered(np.ones(MIB // 2, np.uint8), 1) for _ in range(2))
    return Engine(0).copy_steps(to, 0, source, 0, MIB // 2)


def long_flush() -> Iterator[None]:
    return flush_steps(zeros(256 * MIB))


@pytest.mark.parametrize(
    "steps",
    [
        thin_rows,
        lambda: thin_rows(NON_COHERENT),
        logged_rows,
        scattered_bytes,
        rows_over_scattered_bytes,
        flushes_between_rows,
        scratch_of_thin_rows,
        thin_rows_backward,
        scattered_fill,
        scattered_checksum,
        scattered_copy,
        long_flush,
    ],
    ids=lambda steps: steps.__name__.replace("<lambda>", "flushed_thin_rows"),
)
def test_no_step_is_long(steps: Iterator[None]) -> None:
    times = []
    running = steps()  # type: ignore[operator]
    ended = False
    while not ended:
        before = time.thread_time()
        ended = next(running, running) is running
        times.append(time.thread_time() - before)
    assert len(times) > 5
    assert max(times) < LONGEST


def test_a_copy_of_many_extents_costs_what_it_takes_to_order_them() -> None:
    array = np.ones(MIB, np.uint8)
    to, source = (Place(scattered(array, 1), 0, MIB) for _ in range(2))
    assert blit_cost(to, source, MIB, 1) > 2 * cost(MIB, 1, to, source)
    assert blit_cost(to, source, 0, 1) == 0


def test_a_part_is_a_step_where_it_is_cheap() -> None:
    place = Place(zeros(MIB), 0, MIB)
    assert cost(MIB, 1, place) <= STEP
    assert list(parts(MIB, 1, place)) == [Part(0, 1, 0, MIB)]
