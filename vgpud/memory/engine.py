"""The copy engine: it fills, copies and checksums memory as a device that does not snoop would.

A copy whose source and destination overlap behaves as if all of the source were read before any of
the destination is written (memmove), whichever pages, blobs and mappings the two consist of. All
arguments are checked before anything is written. All calls block; long ones belong on a thread, and
the GIL is released while bytes are copied.
"""

from __future__ import annotations

import threading
import zlib
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from enum import Enum, auto
from typing import Final, TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray

from vgpud.errors import OutOfMemory
from vgpud.memory.extents import Extents, MemoryRanges

# A chunk of an overlapping copy and its scratch: both fit in a 64 KiB half of a small L2 cache.
_CHUNK: Final = 32 * 1024
# A step of a checksum: so long that the time of the call itself does not matter.
_CRC_STEP: Final = 256 * 1024

# The bytes of one step: about a tenth of a millisecond, also in rows so narrow that the number of
# their cache lines counts, and in buffers of many small extents.
_STEP: Final = 1024 * 1024
_ROW_COST: Final = 1024
_FEW: Final = 4096

_R = TypeVar("_R")

Steps: TypeAlias = Generator[None, None, None]
"""An operation in steps: it stops at each `yield`, and may be resumed at any time on any thread."""


class _Order(Enum):
    """The order in which chunks can be copied without reading what was already overwritten."""

    ANY = auto()
    FORWARD = auto()
    BACKWARD = auto()
    NONE = auto()


class Engine:
    """The engine, which several threads may use at the same time.

    `scratch_limit` is how many bytes all threads together may use for copies whose overlap no order
    of chunks can serve: such copies wait for each other. A copy that needs more raises
    `OutOfMemory`, and any operation that leaves its buffers raises `OutOfRange`, with nothing
    written.
    """

    def __init__(self, scratch_limit: int) -> None:
        self._scratch_limit = self._scratch_left = scratch_limit
        self._scratch_freed = threading.Condition()

    def fill(self, dst: Extents, offset: int, length: int, pattern: int) -> None:
        """Repeat a 32-bit little-endian pattern over a range, its first byte at `offset`."""
        _finish(self.fill_steps(dst, offset, length, pattern))

    def fill_steps(self, dst: Extents, offset: int, length: int, pattern: int) -> Steps:
        """Fill as `fill` does, in short steps."""
        dst.check(offset, length)
        step = _step_bytes(dst)  # a multiple of the pattern, so that it continues
        for done in range(0, length, step):
            dst.fill(offset + done, min(length - done, step), pattern & 0xFFFFFFFF)
            yield

    def copy(
        self, dst: Extents, dst_offset: int, src: Extents, src_offset: int, length: int
    ) -> None:
        """Copy a range."""
        _finish(self.copy_steps(dst, dst_offset, src, src_offset, length))

    def copy_steps(
        self, dst: Extents, dst_offset: int, src: Extents, src_offset: int, length: int
    ) -> Steps:
        """Copy as `copy` does, in short steps."""
        return self.blit_steps(dst, dst_offset, length, src, src_offset, length, length, 1)

    def blit(
        self,
        dst: Extents,
        dst_offset: int,
        dst_stride: int,
        src: Extents,
        src_offset: int,
        src_stride: int,
        row_bytes: int,
        rows: int,
    ) -> None:
        """Copy `rows` rows of `row_bytes`, which are `dst_stride` and `src_stride` bytes apart."""
        _finish(
            self.blit_steps(
                dst, dst_offset, dst_stride, src, src_offset, src_stride, row_bytes, rows
            )
        )

    def blit_steps(
        self,
        dst: Extents,
        dst_offset: int,
        dst_stride: int,
        src: Extents,
        src_offset: int,
        src_stride: int,
        row_bytes: int,
        rows: int,
    ) -> Steps:
        """Copy as `blit` does, in short steps; or in one if no order is safe for the overlap."""
        dst_length = dst.check_rect(dst_offset, dst_stride, row_bytes, rows)
        src_length = src.check_rect(src_offset, src_stride, row_bytes, rows)
        if not dst_length:
            return
        order = _order_of(dst, dst_offset, dst_length, src, src_offset, src_length)
        # Positions in the buffers compare as positions in the rectangle only if strides agree.
        if rows > 1 and src_stride != dst_stride and order is not _Order.ANY:
            order = _Order.NONE
        if order is _Order.NONE:
            with self._scratch(row_bytes * rows) as scratch:
                bounce = scratch.reshape(rows, row_bytes)
                src.read_rect_into(src_offset, src_stride, bounce)
                dst.write_rect(dst_offset, dst_stride, bounce)
            yield
            return
        backward = order is _Order.BACKWARD
        chunk = None if order is _Order.ANY else np.empty(_CHUNK, np.uint8)
        limit = min(_step_bytes(dst), _step_bytes(src))
        for row, height, column, width in _rectangles(rows, row_bytes, limit, backward=backward):
            dst.copy_rect(
                dst_offset + row * dst_stride + column,
                dst_stride,
                src,
                src_offset + row * src_stride + column,
                src_stride,
                row_bytes=width,
                rows=height,
                scratch=chunk,
                backward=backward,
            )
            yield

    def crc32(self, src: Extents, offset: int, length: int) -> int:
        """Return zlib's CRC-32 of a range."""
        return _finish(self.crc32_steps(src, offset, length))

    def crc32_steps(self, src: Extents, offset: int, length: int) -> Generator[None, None, int]:
        """Compute as `crc32` does, in short steps; the last one returns the checksum."""
        src.check(offset, length)
        value = 0
        out = np.empty((1, min(length, _CRC_STEP)), np.uint8)
        for done in range(0, length, _CRC_STEP):
            step = out[:, : min(length - done, _CRC_STEP)]
            src.read_rect_into(offset + done, step.size, step)
            value = zlib.crc32(step[0], value)
            yield
        return value

    @contextmanager
    def _scratch(self, size: int) -> Iterator[NDArray[np.uint8]]:
        if size > self._scratch_limit:
            raise OutOfMemory(
                f"an overlapping copy of {size} bytes, {self._scratch_limit} is the most",
            )
        with self._scratch_freed:
            # A thread that has scratch memory takes no more before its copy is done: no deadlock.
            self._scratch_freed.wait_for(lambda: size <= self._scratch_left)
            self._scratch_left -= size
        try:
            yield np.empty(size, np.uint8)
        finally:
            with self._scratch_freed:
                self._scratch_left += size
                self._scratch_freed.notify_all()


def _finish(steps: Generator[None, None, _R]) -> _R:
    while True:
        try:
            next(steps)
        except StopIteration as end:
            result: _R = end.value
            return result


def _step_bytes(buffer: Extents) -> int:
    return _STEP if buffer.fragments <= _FEW else _STEP // 16


def _rectangles(
    rows: int, row_bytes: int, limit: int, *, backward: bool
) -> Iterator[tuple[int, int, int, int]]:
    """Yield the steps of a rectangle: (row, rows, byte of the row, bytes), rising or falling."""
    height = max(limit // max(row_bytes, _ROW_COST), 1)
    width = min(row_bytes, limit)
    tops, lefts = range(0, rows, height), range(0, row_bytes, width)
    for row in reversed(tops) if backward else tops:
        for column in reversed(lefts) if backward else lefts:
            yield row, min(height, rows - row), column, min(width, row_bytes - column)


def _order_of(
    dst: Extents, dst_offset: int, dst_length: int, src: Extents, src_offset: int, src_length: int
) -> _Order:
    to, from_ = dst.canonical_address(dst_offset), src.canonical_address(src_offset)
    if to is not None and from_ is not None:
        return _order_of_ranges(to, dst_length, from_, src_length)
    return _order(dst.ranges(dst_offset, dst_length), src.ranges(src_offset, src_length))


def _order_of_ranges(to: int, to_length: int, from_: int, from_length: int) -> _Order:
    """Return the order for two contiguous ranges, by their canonical addresses."""
    if to >= from_ + from_length or from_ >= to + to_length:
        return _Order.ANY
    return _Order.FORWARD if to <= from_ else _Order.BACKWARD


def _order(dst: MemoryRanges, src: MemoryRanges) -> _Order:
    """Return the order for a source and a destination, by where they share memory.

    A chunk's write is wrong if it overwrites what a later chunk reads. So ascending order is right
    if memory that both have is never read later than it is written, that is, if no byte has a
    higher position in the source than in the destination; descending order is right if none has a
    lower one. A guest may list the same page twice, in which case there may be both.
    """
    to_starts, to_ends, to_shift = _by_address(dst)
    starts, ends, shift = _by_address(src)
    if _any_shared(to_starts, to_ends) or _any_shared(starts, ends):
        # A page is twice in one list. If no page is in both lists that does no harm: ascending
        # order writes the last position last, as one big write would.
        return _Order.NONE if _touch(to_starts, to_ends, starts, ends) else _Order.ANY
    # Each list is disjoint by itself, so there are fewer pairs than ranges in both lists.
    low = to_ends.searchsorted(starts, "right")
    count = np.maximum(to_starts.searchsorted(ends, "left") - low, 0)
    if not count.any():
        return _Order.ANY
    pair = np.repeat(np.arange(starts.size), count)
    nth = np.arange(pair.size) - np.repeat(np.cumsum(count) - count, count)
    # address - shift is a byte's position: this is its position in src minus that in dst.
    later = to_shift[low[pair] + nth] - shift[pair]
    if (later <= 0).all():
        return _Order.FORWARD
    return _Order.BACKWARD if (later >= 0).all() else _Order.NONE


def _by_address(
    ranges: MemoryRanges,
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Return starts and ends in rising order, and what to subtract to get positions."""
    order = np.argsort(ranges.addresses, kind="stable")
    starts = ranges.addresses[order]
    return starts, starts + ranges.lengths[order], starts - ranges.positions[order]


def _any_shared(starts: NDArray[np.int64], ends: NDArray[np.int64]) -> bool:
    return bool((starts[1:] < ends[:-1]).any())


def _touch(
    starts: NDArray[np.int64],
    ends: NDArray[np.int64],
    other_starts: NDArray[np.int64],
    other_ends: NDArray[np.int64],
) -> bool:
    """Return whether two lists share a byte, each in rising order of starts."""
    reach = np.maximum.accumulate(ends)
    before = starts.searchsorted(other_ends, "left")
    return bool(((before > 0) & (reach[before - 1] > other_starts)).any())
