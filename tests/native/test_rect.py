"""Gather, scatter, copy, fill, flush: against plain numpy, at every alignment, on every path."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from statistics import median

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.native.arena import SIZE, Buffer, Rect, disjoint_buffers, random_bytes, rects, shapes
from vgpud.native._native import ffi, lib
from vgpud.native.cpu import cpu_features, limit_cpu_features
from vgpud.native.spans import BACKWARD, FLUSH_BEFORE_READ, NON_TEMPORAL_WRITE, SpanList

ALL_FEATURES = cpu_features()
# What this CPU has, and what older ones have not.
CPUS = sorted(
    {ALL_FEATURES - set(lacking) for lacking in ((), ("avx512f",), ("avx512f", "avx2"))}
    | {ALL_FEATURES - {"clflushopt"}},
    key=len,
)
LONG = Buffer(((3, 100_001), (150_000, 1), (160_007, 262_221), (500_001, 190_000)))


@pytest.fixture(params=CPUS, ids=lambda features: "+".join(sorted(features)) or "none")
def cpu(request: pytest.FixtureRequest) -> Iterator[frozenset[str]]:
    limit_cpu_features(request.param)
    yield request.param
    limit_cpu_features()


@pytest.mark.parametrize("flags", [0, FLUSH_BEFORE_READ])
@given(data=st.data(), buffer=disjoint_buffers())
def test_gather(flags: int, data: st.DataObject, buffer: Buffer) -> None:
    arena = random_bytes(SIZE)
    rect = data.draw(shapes(buffer.size).flatmap(lambda shape: rects(buffer.size, shape)))
    frame = np.zeros((rect.rows, rect.row_bytes + 5), np.uint8)
    spans = SpanList(buffer.spans(arena))

    spans.gather(rect.offset, rect.stride, frame[:, 2 : 2 + rect.row_bytes], flags)

    expected = np.zeros_like(frame)
    expected[:, 2 : 2 + rect.row_bytes] = arena[buffer.index[rect.index]]
    assert np.array_equal(frame, expected)
    assert np.array_equal(arena, random_bytes(SIZE))


@pytest.mark.parametrize("flags", [0, NON_TEMPORAL_WRITE])
@given(data=st.data(), buffer=disjoint_buffers())
def test_scatter(flags: int, data: st.DataObject, buffer: Buffer) -> None:
    arena = random_bytes(SIZE)
    rect = data.draw(shapes(buffer.size).flatmap(lambda shape: rects(buffer.size, shape)))
    frame = random_bytes(rect.rows * (rect.row_bytes + 7), 2).reshape(rect.rows, -1)
    piece = frame[:, 3 : 3 + rect.row_bytes]

    SpanList(buffer.spans(arena)).scatter(rect.offset, rect.stride, piece, flags)

    expected = random_bytes(SIZE)
    expected[buffer.index[rect.index]] = piece
    assert np.array_equal(arena, expected)


@pytest.mark.parametrize(
    "rect",
    [Rect(5, 0, 550_000, 1), Rect(17, 250_000, 200_003, 2), Rect(1, 6000, 4099, 90)],
    ids=["one run", "long rows", "short rows"],
)
@pytest.mark.parametrize("flags", range(4))
def test_what_is_long_is_flushed_ahead_of_the_read(
    cpu: frozenset[str], flags: int, rect: Rect
) -> None:
    arena, other = random_bytes(700_000), random_bytes(700_000, 2)
    source = SpanList(LONG.spans(other))
    frame = np.zeros((rect.rows, rect.row_bytes + 5), np.uint8)
    source.gather(rect.offset, rect.stride, frame[:, 2 : 2 + rect.row_bytes], flags)
    wanted = other[LONG.index[rect.index]]
    assert np.array_equal(frame[:, 2 : 2 + rect.row_bytes], wanted)
    assert not frame[:, :2].any()
    assert not frame[:, 2 + rect.row_bytes :].any()

    to = Rect(1, rect.row_bytes + 1, rect.row_bytes, rect.rows)
    mirrored = Buffer(LONG.pieces[::-1])
    SpanList(mirrored.spans(arena)).copy_from(
        to.offset,
        to.stride,
        source,
        rect.offset,
        rect.stride,
        row_bytes=rect.row_bytes,
        rows=rect.rows,
        flags=flags,
    )
    expected = random_bytes(700_000)
    expected[mirrored.index[to.index]] = wanted
    assert np.array_equal(arena, expected)


@pytest.mark.parametrize("flags", range(4))
@given(data=st.data(), buffer=disjoint_buffers(), source=disjoint_buffers())
def test_copy_between_two_places(
    flags: int, data: st.DataObject, buffer: Buffer, source: Buffer
) -> None:
    arena, other = random_bytes(SIZE), random_bytes(SIZE, 2)
    shape = data.draw(shapes(min(buffer.size, source.size)))
    to, from_ = data.draw(rects(buffer.size, shape)), data.draw(rects(source.size, shape))
    chunk = data.draw(st.none() | st.integers(1, 200))
    backward = BACKWARD if data.draw(st.booleans()) else 0

    SpanList(buffer.spans(arena)).copy_from(
        to.offset,
        to.stride,
        SpanList(source.spans(other)),
        from_.offset,
        from_.stride,
        row_bytes=to.row_bytes,
        rows=to.rows,
        scratch=None if chunk is None else np.empty(chunk, np.uint8),
        flags=flags | backward,
    )

    expected = random_bytes(SIZE)
    expected[buffer.index[to.index]] = other[source.index[from_.index]]
    assert np.array_equal(arena, expected)
    assert np.array_equal(other, random_bytes(SIZE, 2))


@pytest.mark.parametrize("flags", range(4))
@given(data=st.data(), buffer=disjoint_buffers())
def test_copy_inside_one_buffer_in_the_right_direction(
    flags: int, data: st.DataObject, buffer: Buffer
) -> None:
    arena = random_bytes(SIZE)
    row_bytes, rows = shape = data.draw(shapes(buffer.size))
    to = data.draw(rects(buffer.size, shape))
    top = buffer.size - ((rows - 1) * to.stride + row_bytes)
    from_ = Rect(data.draw(st.integers(0, top)), to.stride, row_bytes, rows)
    spans = SpanList(buffer.spans(arena))

    spans.copy_from(
        to.offset,
        to.stride,
        spans,
        from_.offset,
        from_.stride,
        row_bytes=row_bytes,
        rows=rows,
        scratch=np.empty(data.draw(st.integers(1, 200)), np.uint8),
        flags=flags | (BACKWARD if to.offset > from_.offset else 0),
    )

    expected = random_bytes(SIZE)
    expected[buffer.index[to.index]] = random_bytes(SIZE)[buffer.index[from_.index]]
    assert np.array_equal(arena, expected)


@pytest.mark.parametrize("flags", [0, NON_TEMPORAL_WRITE])
@given(data=st.data(), buffer=disjoint_buffers(), pattern=st.integers(0, 0xFFFFFFFF))
def test_fill_keeps_its_phase_across_pieces(
    flags: int, data: st.DataObject, buffer: Buffer, pattern: int
) -> None:
    arena = random_bytes(SIZE)
    offset = data.draw(st.integers(0, buffer.size))
    length = data.draw(st.integers(0, buffer.size - offset))

    SpanList(buffer.spans(arena)).fill(offset, length, pattern, flags)

    expected = random_bytes(SIZE)
    period = np.frombuffer(pattern.to_bytes(4, "little"), np.uint8)
    expected[buffer.index[offset : offset + length]] = np.resize(period, length)
    assert np.array_equal(arena, expected)


@given(data=st.data(), buffer=disjoint_buffers())
def test_flush_changes_nothing(data: st.DataObject, buffer: Buffer) -> None:
    arena = random_bytes(SIZE)
    offset = data.draw(st.integers(0, buffer.size))
    SpanList(buffer.spans(arena)).flush(offset, data.draw(st.integers(0, buffer.size - offset)))
    assert np.array_equal(arena, random_bytes(SIZE))


@pytest.mark.parametrize("start", range(65))
def test_every_alignment_and_short_length_on_every_cpu(cpu: frozenset[str], start: int) -> None:
    source = random_bytes(1024, 3)
    for length in (*range(1, 70), 127, 128, 255, 256, 257, 320, 383, 511, 700):
        arena = random_bytes(1024)
        spans = SpanList(Buffer(((start, 900),)).spans(arena))
        spans.scatter(0, length, source[None, :length], NON_TEMPORAL_WRITE)
        spans.fill(length + 1, 150, 0x04030201, NON_TEMPORAL_WRITE)
        out = np.zeros((1, 900), np.uint8)
        spans.gather(0, 900, out, FLUSH_BEFORE_READ)

        expected = random_bytes(1024)
        expected[start : start + length] = source[:length]
        expected[start + length + 1 :][:150] = np.resize([1, 2, 3, 4], 150)
        assert np.array_equal(arena, expected), f"{start}+{length} on {sorted(cpu)}"
        assert np.array_equal(out[0], expected[start : start + 900])


@pytest.mark.parametrize("start", [0, 1, 31, 33, 64])
def test_long_runs_on_every_cpu(cpu: frozenset[str], start: int) -> None:
    size = 20011
    arena = random_bytes(70000)
    spans = SpanList(Buffer(((start, 65000),)).spans(arena))
    data = random_bytes(size, 2)
    spans.scatter(3, size, data[None], NON_TEMPORAL_WRITE)
    spans.fill(size + 10, size, 0x04030201, NON_TEMPORAL_WRITE)
    source = SpanList(Buffer(((0, size),)).spans(data))
    spans.copy_from(40100, size, source, 0, size, row_bytes=size, rows=1, flags=3)

    expected = random_bytes(70000)[start:]
    expected[3 : 3 + size] = data
    expected[size + 10 :][:size] = np.resize([1, 2, 3, 4], size)
    expected[40100:][:size] = data
    assert np.array_equal(arena[start:], expected), sorted(cpu)


def test_lesser_cpus_are_believed(cpu: frozenset[str]) -> None:
    assert cpu_features() == cpu


BIG = (1 << 64) - 1
OUTSIDE = [
    # offset, stride, bytes a row, rows, in a buffer of 100 bytes in two pieces
    (100, 1, 1, 1),
    (0, 101, 101, 1),
    (95, 6, 6, 1),
    (0, 50, 10, 3),
    (91, 10, 10, 1),
    (0, 9, 10, 2),
    (BIG, 1, 1, 1),
    (0, BIG, 1, 2),
    (0, BIG // 2 + 1, 1, 3),  # stride * (rows - 1) wraps to 0
    (BIG - 8, 10, 10, 1),  # offset + length wraps to 1
]


@pytest.mark.parametrize(("offset", "stride", "row_bytes", "rows"), OUTSIDE)
def test_the_native_side_checks_bounds_itself(
    offset: int, stride: int, row_bytes: int, rows: int
) -> None:
    arena = random_bytes(SIZE)
    spans = SpanList(Buffer(((100, 60), (10, 40))).spans(arena))
    other_arena = random_bytes(SIZE, 2)
    other = SpanList(Buffer(((0, SIZE),)).spans(other_arena))
    frame = random_bytes(rows * row_bytes, 3).reshape(rows, row_bytes)
    calls: list[Callable[[], None]] = [
        lambda: spans.gather(offset, stride, frame),
        lambda: spans.scatter(offset, stride, frame),
        lambda: spans.copy_from(offset, stride, other, 0, 100, row_bytes=row_bytes, rows=rows),
        lambda: other.copy_from(0, 100, spans, offset, stride, row_bytes=row_bytes, rows=rows),
    ]
    if rows == 1:
        calls += [lambda: spans.fill(offset, row_bytes, 0), lambda: spans.flush(offset, row_bytes)]
    for call in calls:
        with pytest.raises((ValueError, OverflowError)):
            call()
    assert np.array_equal(arena, random_bytes(SIZE))
    assert np.array_equal(other_arena, random_bytes(SIZE, 2))
    assert np.array_equal(frame.ravel(), random_bytes(rows * row_bytes, 3))


def test_the_bounds_hold_below_the_facade() -> None:
    # Straight to the C: the facade's own arithmetic can't have saved it.
    arena = random_bytes(SIZE)
    spans = ffi.from_buffer("vgpud_span *", Buffer(((100, 60), (10, 40))).spans(arena))
    out = ffi.new("uint8_t[4096]")
    for offset, stride, row_bytes, rows in OUTSIDE:
        place = spans, 2, offset, stride
        assert lib.vgpud_gather(*place, out, row_bytes, row_bytes, rows, 0) == -1
        assert lib.vgpud_scatter(*place, out, row_bytes, row_bytes, rows, 0) == -1
        null = ffi.NULL
        assert lib.vgpud_copy(*place, *place, row_bytes, rows, null, 0, 0) == -1
        if rows == 1:
            assert lib.vgpud_fill(spans, 2, offset, row_bytes, 1, 0) == -1
            assert lib.vgpud_flush(spans, 2, offset, row_bytes) == -1
    assert np.array_equal(arena, random_bytes(SIZE))


def test_span_lists_are_copies_without_empty_spans() -> None:
    arena = random_bytes(SIZE)
    given_spans = Buffer(((0, 0), (10, 5), (7, 0), (20, 5))).spans(arena)
    spans = SpanList(given_spans)
    given_spans["address"] = 0
    out = np.zeros((1, 10), np.uint8)
    spans.gather(0, 10, out)
    assert np.array_equal(out[0], arena[[*range(10, 15), *range(20, 25)]])
    assert spans.size == 10
    with pytest.raises(ValueError, match="read-only"):
        spans.array["address"] = 0


def test_arrays_that_can_not_be_rows() -> None:
    arena = random_bytes(SIZE)
    spans = SpanList(Buffer(((0, 100),)).spans(arena))
    frozen = np.zeros((2, 10), np.uint8)
    frozen.flags.writeable = False
    for bad in (frozen, np.zeros(10, np.uint8), np.zeros((4, 20), np.uint8)[:, ::2]):
        with pytest.raises(ValueError):
            spans.gather(0, 10, bad)
    with pytest.raises(ValueError):
        spans.scatter(0, 10, np.zeros((4, 10), np.uint8)[::-1])
    spans.scatter(0, 10, frozen)
    with pytest.raises(ValueError):
        SpanList(np.zeros(3, np.uint64))


Timed = tuple[Callable[[], object], Callable[[], object]]
"""What is done before, and what is timed."""


def _quickest(timed: Timed) -> float:
    prepare, action = timed
    best = float("inf")
    for _ in range(300):
        prepare()
        start = time.perf_counter()
        action()
        best = min(best, time.perf_counter() - start)
    return best


def _slower(first: Timed, second: Timed) -> float:
    """How many times longer the first takes: the median of a few tries, because others use the
    machine too."""
    return median(_quickest(first) / _quickest(second) for _ in range(5))


def test_bytes_really_come_from_memory_and_go_there() -> None:
    # The only thing that shows from here whether a line was in a cache is how long a load takes.
    # Memory can't ever be as quick as the cache, so the quickest of many runs tells them apart.
    arena = random_bytes(128 * 1024)
    spans = SpanList(Buffer(((0, arena.size),)).spans(arena))
    out = np.zeros((1, arena.size), np.uint8)
    data = random_bytes(arena.size, 2)[None]

    def read(flags: int = 0) -> None:
        spans.gather(0, arena.size, out, flags)

    def write(flags: int = 0) -> None:
        spans.scatter(0, arena.size, data, flags)

    assert _slower((read, lambda: read(FLUSH_BEFORE_READ)), (read, read)) > 1.5
    assert _slower((lambda: spans.flush(0, arena.size), read), (read, read)) > 1.5
    assert _slower((lambda: write(NON_TEMPORAL_WRITE), read), (write, read)) > 1.5
