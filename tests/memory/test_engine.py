"""The DMA engine: as if all were read before any is written, and nothing else touched."""

from __future__ import annotations

import mmap
import tracemalloc
import zlib
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from tests.native.arena import (
    SIZE,
    Buffer,
    Rect,
    any_buffers,
    disjoint_buffers,
    random_bytes,
    rects,
    shapes,
)
from vgpud.errors import OutOfMemory, OutOfRange
from vgpud.memory import engine as dma
from vgpud.memory import memfd
from vgpud.memory.engine import Engine, order_memory
from vgpud.memory.extents import NON_COHERENT, PLAIN, Extents, MemoryAccess
from vgpud.memory.mapping import map_shared
from vgpud.memory.steps import Place
from vgpud.native.arrays import address_of
from vgpud.native.spans import SPAN

ACCESSES = [PLAIN, NON_COHERENT]
PAGE = mmap.PAGESIZE
BIG = (1 << 64) - 1

buffers = disjoint_buffers() | any_buffers()


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    # Small buffers then take several chunks, as large ones do.
    monkeypatch.setattr(dma, "_CHUNK", 64)
    monkeypatch.setattr(dma, "_CRC_STEP", 100)


class Memory:
    """A file of SIZE bytes that is mapped twice: one page, two addresses."""

    def __init__(self) -> None:
        with memfd.create("memory", SIZE) as fd:
            self.views = map_shared(fd, SIZE), map_shared(fd, SIZE)
        self.bytes = self.views[0]
        self.bytes[:] = random_bytes(SIZE)

    def extents(self, buffer: Buffer, access: MemoryAccess, *, second: list[bool]) -> Extents:
        spans, others = (buffer.spans(view) for view in self.views)
        for index, move in zip(range(len(spans)), second, strict=False):
            if move:
                spans[index] = others[index]
        return Extents(spans, self.views, access=access)


mappings = st.lists(st.booleans(), max_size=12)


@pytest.mark.parametrize("access", ACCESSES)
@settings(max_examples=200)
@given(data=st.data(), to=buffers, source=buffers, same=st.booleans())
def test_any_copy_is_a_memmove(
    access: MemoryAccess, data: st.DataObject, to: Buffer, source: Buffer, same: bool
) -> None:
    memory = Memory()
    if same:
        source = to
    length = data.draw(st.integers(0, min(to.size, source.size)))
    to_offset = data.draw(st.integers(0, to.size - length))
    offset = data.draw(st.integers(0, source.size - length))
    dst = memory.extents(to, access, second=data.draw(mappings))
    src = memory.extents(source, access, second=data.draw(mappings))

    Engine(1 << 20).copy(dst, to_offset, src, offset, length)

    expected = random_bytes(SIZE)
    moved = expected[source.index[offset : offset + length]]
    # Where a page is listed twice, what comes last in the list is what stays.
    expected[to.index[to_offset : to_offset + length]] = moved
    assert np.array_equal(memory.bytes, expected)


@pytest.mark.parametrize("access", ACCESSES)
@settings(max_examples=200)
@given(data=st.data(), to=buffers, source=buffers, same=st.booleans(), stride=st.booleans())
def test_any_blit_is_a_memmove_of_its_rows(
    access: MemoryAccess, data: st.DataObject, to: Buffer, source: Buffer, same: bool, stride: bool
) -> None:
    memory = Memory()
    if same:
        source = to
    shape = data.draw(shapes(min(to.size, source.size)))
    to_rect, rect = data.draw(rects(to.size, shape)), data.draw(rects(source.size, shape))
    length = (shape[1] - 1) * to_rect.stride + shape[0]
    if stride and length <= source.size:
        rect = Rect(data.draw(st.integers(0, source.size - length)), to_rect.stride, *shape)
    dst = memory.extents(to, access, second=data.draw(mappings))
    src = memory.extents(source, access, second=data.draw(mappings))

    Engine(1 << 20).blit(dst, to_rect.offset, to_rect.stride, src, rect.offset, rect.stride, *shape)

    expected = random_bytes(SIZE)
    moved = expected[source.index[rect.index]]
    expected[to.index[to_rect.index]] = moved
    assert np.array_equal(memory.bytes, expected)


@pytest.mark.parametrize("access", ACCESSES)
@given(data=st.data(), buffer=buffers)
def test_checksums(access: MemoryAccess, data: st.DataObject, buffer: Buffer) -> None:
    memory = Memory()
    offset = data.draw(st.integers(0, buffer.size))
    length = data.draw(st.integers(0, buffer.size - offset))
    src = memory.extents(buffer, access, second=data.draw(mappings))
    expected = zlib.crc32(memory.bytes[buffer.index[offset : offset + length]].tobytes())
    assert Engine(0).crc32(src, offset, length) == expected


@pytest.mark.parametrize("access", ACCESSES)
@given(data=st.data(), buffer=disjoint_buffers())
def test_fills(access: MemoryAccess, data: st.DataObject, buffer: Buffer) -> None:
    memory = Memory()
    offset = data.draw(st.integers(0, buffer.size))
    length = data.draw(st.integers(0, buffer.size - offset))
    Engine(0).fill(memory.extents(buffer, access, second=[]), offset, length, 0x1_44332211)
    expected = random_bytes(SIZE)
    pattern = np.resize(np.array([0x11, 0x22, 0x33, 0x44], np.uint8), length)
    expected[buffer.index[offset : offset + length]] = pattern
    assert np.array_equal(memory.bytes, expected)


def extents(array: NDArray[np.uint8], *pieces: tuple[int, int]) -> Extents:
    return Extents(Buffer(pieces).spans(array), (array,))


@pytest.mark.parametrize("shift", [-1000, -64, -1, 0, 1, 63, 1000])
def test_what_one_direction_can_do_takes_no_scratch(shift: int) -> None:
    array = random_bytes(SIZE)
    engine = Engine(0)
    listed = extents(array, (2048, 2048), (0, 2048))
    engine.copy(listed, 1000 + shift, listed, 1000, 1500)
    expected = np.roll(random_bytes(SIZE), 2048)
    expected[1000 + shift :][:1500] = np.roll(random_bytes(SIZE), 2048)[1000:2500]
    assert np.array_equal(np.roll(array, 2048), expected)

    array = random_bytes(SIZE)
    whole = Extents.from_array(array)
    engine.blit(whole, 1000 + shift, 50, whole, 1000, 50, 37, 20)  # a window that scrolls
    expected = random_bytes(SIZE)
    index = Rect(1000, 50, 37, 20).index
    expected[index + shift] = random_bytes(SIZE)[index]
    assert np.array_equal(array, expected)


def test_what_no_direction_can_do_takes_scratch_or_is_refused_with_nothing_written() -> None:
    # Two pages change places: whichever is written first was not yet read.
    for limit, fits in ((1999, False), (2000, True)):
        array = random_bytes(2000)
        straight, crossed = extents(array, (0, 2000)), extents(array, (1000, 1000), (0, 1000))
        engine = Engine(limit)
        for _ in range(3):  # the scratch is given back each time
            if fits:
                engine.copy(straight, 0, crossed, 0, 2000)
                continue
            with pytest.raises(OutOfMemory):
                engine.copy(straight, 0, crossed, 0, 2000)
        expected = np.roll(random_bytes(2000), 1000) if fits else random_bytes(2000)
        assert np.array_equal(array, expected)


def test_a_page_that_is_listed_twice_keeps_what_comes_last() -> None:
    # Descending order would save the second half of the source, but leave the first half behind.
    array = random_bytes(300)
    twice, source = extents(array, (0, 100), (0, 100)), extents(array, (200, 100), (0, 100))
    Engine(200).copy(twice, 0, source, 0, 200)
    assert np.array_equal(array, random_bytes(300))
    Engine(0).copy(twice, 0, extents(array, (100, 200)), 0, 200)
    assert np.array_equal(array[:100], random_bytes(300)[200:])


def test_a_page_that_is_listed_thousands_of_times_costs_no_more_than_its_entries() -> None:
    # Pairs of pieces that share memory would be 3600 million here.
    array = random_bytes(PAGE)
    spans = np.zeros(60000, SPAN)
    spans["address"], spans["length"] = address_of(array), PAGE
    hostile = Extents(spans, (array,))
    with pytest.raises(OutOfMemory):
        Engine(1 << 20).copy(hostile, 0, hostile, 8, hostile.size - 8)
    Engine(1 << 20).copy(hostile, 0, hostile, PAGE + 8, PAGE)
    assert np.array_equal(array, np.roll(random_bytes(PAGE), -8))


def test_strides_that_differ_inside_one_buffer() -> None:
    array = random_bytes(SIZE)
    whole = Extents.from_array(array, access=NON_COHERENT)
    Engine(1000).blit(whole, 10, 70, whole, 0, 50, 50, 20)
    expected = random_bytes(SIZE)
    expected[Rect(10, 70, 50, 20).index] = random_bytes(SIZE)[Rect(0, 50, 50, 20).index]
    assert np.array_equal(array, expected)


BAD = [
    # offset, stride, bytes a row, rows in a buffer of 1000
    (1001, 0, 0, 0),
    (0, 101, 101, 10),
    (1, 100, 100, 10),
    (0, 99, 100, 2),
    (0, 0, 1, 2),
    (BIG, 1, 1, 1),
    (BIG - 3, 4, 4, 2),
    (0, 1 << 63, 1, 3),
    (0, BIG, 1, 2),
    (0, 1, BIG, 1),
    (0, 4, 4, BIG),
    (-1, 4, 4, 1),
]


@pytest.mark.parametrize(("offset", "stride", "row_bytes", "rows"), BAD)
def test_bad_ranges_write_nothing(offset: int, stride: int, row_bytes: int, rows: int) -> None:
    array, other_array = random_bytes(SIZE), random_bytes(SIZE)
    bad = extents(array, (1500, 500), (700, 500))
    other = Extents.from_array(other_array)
    engine = Engine(1 << 20)
    size = row_bytes, rows
    calls: list[Callable[[], object]] = [
        lambda: engine.blit(bad, offset, stride, other, 0, 100, *size),
        lambda: engine.blit(other, 0, 100, bad, offset, stride, *size),
    ]
    if rows == 1:
        calls += [
            lambda: engine.fill(bad, offset, row_bytes, 0),
            lambda: engine.copy(bad, offset, other, 0, row_bytes),
            lambda: engine.copy(other, 0, bad, offset, row_bytes),
            lambda: engine.crc32(bad, offset, row_bytes),
        ]
    for call in calls:
        with pytest.raises(OutOfRange):
            call()
    assert np.array_equal(array, random_bytes(SIZE))
    assert np.array_equal(other_array, random_bytes(SIZE))


def test_sizes_of_zero_do_nothing() -> None:
    array = random_bytes(100)
    whole, engine = Extents.from_array(array), Engine(0)
    engine.fill(whole, 100, 0, 5)
    engine.copy(whole, 100, whole, 0, 0)
    engine.blit(whole, 0, 0, whole, 100, 0, 0, 1000)
    engine.blit(whole, 0, 0, whole, 100, 0, 1000, 0)
    assert engine.crc32(whole, 100, 0) == 0
    assert np.array_equal(array, random_bytes(100))


def scattered(memory: NDArray[np.uint8], count: int, length: int) -> Extents:
    spans = np.empty(count, SPAN)
    spans["address"] = address_of(memory) + 2 * length * np.random.default_rng(3).permutation(count)
    spans["length"] = length
    return Extents(spans, (memory,))


@pytest.mark.parametrize("same", [False, True])
def test_a_copy_finds_its_order_in_no_more_memory_than_it_says(same: bool) -> None:
    count, length = 9000, 16
    memory = np.zeros((2, 2 * count * length), np.uint8)
    source = scattered(memory[0], count, length)
    to = source if same else scattered(memory[1], count, length)
    size = count * length
    engine = Engine(1 << 20)
    places = Place(to, 0, size - 8), Place(source, 8, size - 8)
    said = order_memory(*places, size - 8, 1)
    steps = engine.copy_steps(to, 0, source, 8, size - 8)
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        for _ in steps:
            pass
        taken = tracemalloc.get_traced_memory()[1] - before
    finally:
        tracemalloc.stop()
    assert 0 < said <= taken + 1024
    assert taken < said + 40 * 8192 + size  # a step's own arrays, and scratch


def test_paused_operations_keep_no_buffers() -> None:
    engine, size = Engine(1 << 20), 1 << 16
    memory = np.zeros(size, np.uint8)
    buffer = Extents.from_array(memory)
    tracemalloc.start()
    try:
        begun = []
        for number in range(100):
            if number == 1:
                before = tracemalloc.get_traced_memory()[0]
            for steps in (
                engine.crc32_steps(buffer, 0, size),
                engine.copy_steps(buffer, 8, buffer, 0, size - 8),
            ):
                next(steps)
                begun.append(steps)
        taken = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    assert taken < 100 * 8192
