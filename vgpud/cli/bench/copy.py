"""The cost of copies that bypass the caches, compared with plain copies and copies with flushes.

All ways of one shape are measured in turns, so that other load on the machine affects them alike:
figures of one table can be compared, absolute ones drift. Native code takes the times, except for
the way that says so.

What a device has written is in memory and in no cache of this CPU. So the source of a "read" is in
memory, unless the way says "cached"; a reader of a device's buffer never copies from a cache. The
source of a "write" is what a program has just made, so it is in the caches as far as it fits.
Each way makes one untimed copy per turn first, which decides where the target is.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from itertools import groupby
from typing import Any, Final, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from vgpud.cli.bench.figures import Bar, Chart, Progress, Spread, no_progress, ratio
from vgpud.memory import memfd
from vgpud.memory.extents import NON_COHERENT, Extents
from vgpud.memory.mapping import map_shared
from vgpud.native.copies import CopySource, Way, seconds
from vgpud.native.cpu import cpu_features

KIB: Final = 1 << 10
MIB: Final = 1 << 20
TURNS: Final = 60
BYTES_A_TURN: Final = 16 * MIB
COPIES_A_TURN: Final = 256
"""The maximum; the minimum is one."""

Direction: TypeAlias = Literal["write", "read"]
Copies: TypeAlias = Callable[[NDArray[np.uint8], NDArray[np.uint8], int], float]
"""A function that copies the second array to the first a number of times.

It returns seconds per copy."""


@dataclass(frozen=True, slots=True)
class Shape:
    """The shape of a copy: `rows` of `row_bytes`, `stride` bytes apart in the shared memory."""

    name: str
    rows: int
    row_bytes: int
    stride: int

    @property
    def size(self) -> int:
        """The number of bytes that are copied."""
        return self.rows * self.row_bytes


def _block(name: str, size: int) -> Shape:
    return Shape(name, 1, size, size)


SHAPES: Final = (
    _block("4 KiB", 4 * KIB),
    _block("64 KiB", 64 * KIB),
    _block("1 MiB", MIB),
    _block("8 MiB", 8 * MIB),
    Shape("1000x1000 of 1280 pixels", 1000, 4 * 1000, 4 * 1280),
)


@dataclass(frozen=True, slots=True)
class CopyRow:
    """The figures of one way to copy `size` bytes.

    `direction` is "write" to the shared memory or "read" from it. `ratio` is the speed divided by
    that of `memcpy` for the same direction and shape, turn by turn. Speeds are in GB/s, of 10**9
    bytes.
    """

    direction: Direction
    shape: str
    size: int
    way: str
    turns: int
    speed: Spread
    ratio: float


@dataclass(frozen=True, slots=True)
class CopyCosts:
    """All rows, by direction, shape and way."""

    rows: tuple[CopyRow, ...]

    def to_json(self) -> list[dict[str, Any]]:
        """Return the rows as objects with the fields of `CopyRow`, speeds as quartiles in GB/s."""
        return [asdict(row) for row in self.rows]

    def lines(self) -> Iterator[str]:
        """Return a table with a block for each direction and shape."""
        yield (
            f"copy: GB/s, median and quartiles of {self.rows[0].turns} turns,"
            " and the ratio to memcpy"
        )
        for (direction, shape), rows in groupby(self.rows, _group):
            yield f"  {direction}, {shape}"
            for row in rows:
                speed = row.speed
                yield (
                    f"    {row.way:<36}{speed.median:>8.2f}"
                    f"   {speed.lower:>6.2f} -{speed.upper:>6.2f}{row.ratio:>9.2f}x"
                )

    def charts(self) -> Iterator[Chart]:
        """Return a chart for each direction and shape."""
        for (direction, shape), rows in groupby(self.rows, _group):
            bars = tuple(Bar(row.way, row.speed) for row in rows)
            yield Chart(f"{direction}, {shape}", "GB/s", bars)


def run(progress: Progress = no_progress) -> CopyCosts:
    """Run the whole measurement, a few seconds."""
    return CopyCosts(tuple(measure(progress=progress)))


def measure(
    shapes: tuple[Shape, ...] = SHAPES, *, turns: int = TURNS, progress: Progress = no_progress
) -> list[CopyRow]:
    """Measure each way with each shape."""
    size = max(shape.rows * shape.stride for shape in shapes)
    with memfd.create("bench-copy", size) as fd:
        shared = map_shared(fd, size)
    shared[:] = 1
    private = np.ones(max(shape.size for shape in shapes), np.uint8)
    rows: list[CopyRow] = []
    for direction, ways in _ways().items():
        for shape in shapes:
            progress(f"{direction}, {shape.name}")
            # The view includes the stride after the last row, as numpy's reshape needs it.
            there = shared[: shape.rows * shape.stride].reshape(shape.rows, shape.stride)
            there = there[:, : shape.row_bytes]
            here = private[: shape.size].reshape(shape.rows, shape.row_bytes)
            to, from_ = (there, here) if direction == "write" else (here, there)
            rows += _measure_shape(direction, shape, ways, to, from_, turns)
    return rows


def _measure_shape(
    direction: Direction,
    shape: Shape,
    ways: dict[str, Copies],
    to: NDArray[np.uint8],
    from_: NDArray[np.uint8],
    turns: int,
) -> Iterator[CopyRow]:
    times = max(min(BYTES_A_TURN // shape.size, COPIES_A_TURN), 1)
    speeds: dict[str, list[float]] = {way: [] for way in ways}
    for _ in range(turns):
        for way, copies in ways.items():
            copies(to, from_, 1)
            speeds[way].append(shape.size / copies(to, from_, times) / 1e9)
    for way, samples in speeds.items():
        to_memcpy = ratio(samples, speeds[_MEMCPY])
        speed = Spread.of(samples)
        yield CopyRow(direction, shape.name, shape.size, way, turns, speed, to_memcpy)


def _ways() -> dict[Direction, dict[str, Copies]]:
    """Return the ways that this machine's processor has, by direction and name."""
    cache, memory = CopySource.CACHE, CopySource.MEMORY
    write: dict[str, Copies] = {
        _MEMCPY: partial(seconds, Way.MEMCPY, cache),
        "no-snoop": partial(seconds, Way.WRITE, cache),
        "no-snoop, as Python calls it": _write_from_python,
    }
    if "clwb" in cpu_features():
        write["memcpy, then clwb"] = partial(seconds, Way.MEMCPY_CLWB, cache)
    flush = "clflushopt" if "clflushopt" in cpu_features() else "clflush"
    write[f"memcpy, then {flush}"] = partial(seconds, Way.MEMCPY_FLUSH, cache)
    read: dict[str, Copies] = {
        _MEMCPY: partial(seconds, Way.MEMCPY, memory),
        "no-snoop": partial(seconds, Way.READ, memory),
        "no-snoop, as Python calls it": _read_from_python,
        f"{flush}, then memcpy": partial(seconds, Way.FLUSH_MEMCPY, memory),
        "memcpy, cached": partial(seconds, Way.MEMCPY, cache),
        "no-snoop, cached": partial(seconds, Way.READ, cache),
        f"{flush}, then memcpy, cached": partial(seconds, Way.FLUSH_MEMCPY, cache),
    }
    return {"write": write, "read": read}


def _write_from_python(to: NDArray[np.uint8], from_: NDArray[np.uint8], times: int) -> float:
    buffer, stride = _buffer(to)
    start = time.perf_counter()
    for _ in range(times):
        buffer.write_rect(0, stride, from_)
    return (time.perf_counter() - start) / times


def _read_from_python(to: NDArray[np.uint8], from_: NDArray[np.uint8], times: int) -> float:
    buffer, stride = _buffer(from_)
    spent = 0.0
    for _ in range(times):
        buffer.flush(0, buffer.size)
        start = time.perf_counter()
        buffer.read_rect_into(0, stride, to)
        spent += time.perf_counter() - start
    return spent / times


def _buffer(rows: NDArray[np.uint8]) -> tuple[Extents, int]:
    """Return the shared memory as a device's extents, and the bytes from row to row."""
    whole = rows.base
    assert isinstance(whole, np.ndarray)
    stride = rows.strides[0]
    flat = whole.reshape(-1)[: (len(rows) - 1) * stride + rows.shape[1]]
    return Extents.from_array(flat, access=NON_COHERENT), stride


def _group(row: CopyRow) -> tuple[Direction, str]:
    return row.direction, row.shape


_MEMCPY: Final = "memcpy"
