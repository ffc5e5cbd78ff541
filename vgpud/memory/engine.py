"""The copy engine: it fills, copies and checksums memory as a device that does not snoop would.

A copy whose source and destination overlap behaves as if all of the source were read before any of
the destination is written (memmove), whichever pages, blobs and mappings the two consist of. All
arguments are checked before anything is written. All calls block; long ones belong on a thread, and
the GIL is released while bytes are copied.
"""

from __future__ import annotations

import threading
import zlib
from collections import deque
from collections.abc import Generator
from enum import Enum, auto
from typing import Final, TypeVar

import numpy as np
from numpy.typing import NDArray

from vgpud.errors import OutOfMemory
from vgpud.memory.extents import Extents
from vgpud.memory.pages import zeroed
from vgpud.memory.steps import STEP, Part, Place, Steps, cost, parts
from vgpud.native.overlap import PLACE, overlap_steps, sort_steps
from vgpud.native.spans import BYTES_PER_NS

# A chunk of an overlapping copy and its scratch: both fit in a 64 KiB half of a small L2 cache.
_CHUNK: Final = 32 * 1024
# What a step of a checksum may cost to read: zlib takes several times as long as reading.
_CRC_STEP: Final = STEP // 8
# Nanoseconds for each extent of both buffers, to find the order of an overlapping copy.
_ORDER_COST: Final = 500
# Seconds that one step waits for scratch.
_WAIT: Final = 0.0002

_R = TypeVar("_R")


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
        # As many as threads have used at once. No step leaves anything there for the next one.
        self._spare: deque[NDArray[np.uint8]] = deque()

    def fill(self, dst: Extents, offset: int, length: int, pattern: int) -> None:
        """Repeat a 32-bit little-endian pattern over a range, its first byte at `offset`."""
        _finish(self.fill_steps(dst, offset, length, pattern))

    def fill_steps(self, dst: Extents, offset: int, length: int, pattern: int) -> Steps:
        """Fill as `fill` does, in short steps."""
        dst.check(offset, length)
        for _, _, done, width in parts(length, 1, Place(dst, offset, length)):
            dst.fill(offset + done, width, pattern & 0xFFFFFFFF)
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
        """Copy as `blit` does, in short steps."""
        dst_length = dst.check_rect(dst_offset, dst_stride, row_bytes, rows)
        src_length = src.check_rect(src_offset, src_stride, row_bytes, rows)
        if not dst_length:
            return
        order = yield from _order(dst, dst_offset, dst_length, src, src_offset, src_length)
        # Positions in the buffers compare as positions in the rectangle only if strides agree.
        if rows > 1 and src_stride != dst_stride and order is not _Order.ANY:
            order = _Order.NONE
        to, source = Place(dst, dst_offset, dst_stride), Place(src, src_offset, src_stride)
        if order is _Order.NONE:
            yield from self._copy_by_scratch(to, source, row_bytes, rows)
            return
        backward = order is _Order.BACKWARD
        for row, height, column, width in parts(row_bytes, rows, to, source, backward=backward):
            spare = None if order is _Order.ANY else self._take_spare()
            dst.copy_rect(
                dst_offset + row * dst_stride + column,
                dst_stride,
                src,
                src_offset + row * src_stride + column,
                src_stride,
                row_bytes=width,
                rows=height,
                scratch=None if spare is None else spare[:_CHUNK],
                backward=backward,
            )
            if spare is not None:
                self._spare.append(spare)
            yield

    def crc32(self, src: Extents, offset: int, length: int) -> int:
        """Return zlib's CRC-32 of a range."""
        return _finish(self.crc32_steps(src, offset, length))

    def crc32_steps(self, src: Extents, offset: int, length: int) -> Generator[None, None, int]:
        """Compute as `crc32` does, in short steps; the last one returns the checksum."""
        src.check(offset, length)
        value = 0
        for _, _, done, width in parts(length, 1, Place(src, offset, length), limit=_CRC_STEP):
            spare = self._take_spare()
            step = spare[np.newaxis, :width]
            src.read_rect_into(offset + done, width, step)
            value = zlib.crc32(step[0], value)
            self._spare.append(spare)
            yield
        return value

    def _copy_by_scratch(self, to: Place, source: Place, row_bytes: int, rows: int) -> Steps:
        """Read all of a rectangle before any of it is written."""
        size = row_bytes * rows
        if size > self._scratch_limit:
            raise OutOfMemory(
                f"an overlapping copy of {size} bytes, {self._scratch_limit} is the most",
            )
        while not self._take_scratch(size):
            yield
        try:
            scratch = zeroed(size).reshape(rows, row_bytes)
            for part in parts(row_bytes, rows, source):
                offset = source.offset + part.row * source.stride + part.column
                source.buffer.read_rect_into(offset, source.stride, _part_of(scratch, part))
                yield
            for part in parts(row_bytes, rows, to):
                offset = to.offset + part.row * to.stride + part.column
                to.buffer.write_rect(offset, to.stride, _part_of(scratch, part))
                yield
        finally:
            with self._scratch_freed:
                self._scratch_left += size
                self._scratch_freed.notify_all()

    def _take_spare(self) -> NDArray[np.uint8]:
        """Return a buffer for a chunk, or for a step of a checksum."""
        try:
            return self._spare.pop()
        except IndexError:
            return np.empty(max(_CHUNK, _CRC_STEP * BYTES_PER_NS), np.uint8)

    def _take_scratch(self, size: int) -> bool:
        """Wait for a moment until scratch is free; return whether it was taken.

        Whoever has some may need this thread to go on, so no step waits for long.
        """
        with self._scratch_freed:
            if not self._scratch_freed.wait_for(lambda: size <= self._scratch_left, _WAIT):
                return False
            self._scratch_left -= size
            return True


def blit_cost(to: Place, source: Place, row_bytes: int, rows: int) -> int:
    """Return about how many nanoseconds a copy takes; the arguments have been checked."""
    total = cost(row_bytes, rows, to, source)
    simple = to.buffer.simple and source.buffer.simple
    if total and not simple and (to.buffer.fragments > 1 or source.buffer.fragments > 1):
        for buffer, offset, stride in (to, source):
            total += _ORDER_COST * buffer.extents_in(offset, (rows - 1) * stride + row_bytes)
    return total


def order_memory(to: Place, source: Place, row_bytes: int, rows: int) -> int:
    """Return how many bytes a copy takes to find its order; the arguments have been checked."""
    if not row_bytes or not rows or to.buffer.fragments == source.buffer.fragments == 1:
        return 0
    written, read = (
        buffer.extents_in(offset, (rows - 1) * stride + row_bytes)
        for buffer, offset, stride in (to, source)
    )
    # Both are sorted, the source first, from one array to another.
    return PLACE.itemsize * max(2 * read, read + 2 * written)


def crc32_cost(source: Place, length: int) -> int:
    """Return about how many nanoseconds a checksum takes; the arguments have been checked."""
    return STEP // _CRC_STEP * cost(length, 1, source)


def _finish(steps: Generator[None, None, _R]) -> _R:
    while True:
        try:
            next(steps)
        except StopIteration as end:
            result: _R = end.value
            return result


def _part_of(scratch: NDArray[np.uint8], part: Part) -> NDArray[np.uint8]:
    row, rows, column, width = part
    return scratch[row : row + rows, column : column + width]


def _order(
    dst: Extents, dst_offset: int, dst_length: int, src: Extents, src_offset: int, src_length: int
) -> Generator[None, None, _Order]:
    """Return the order for a destination and a source, by where they share memory.

    A chunk's write is wrong if it overwrites what a later chunk reads. So ascending order is right
    if memory that both have is never read later than it is written, that is, if no byte has a
    higher position in the source than in the destination; descending order is right if none has a
    lower one. A guest may list the same page twice, in which case there may be both.
    """
    to, from_ = dst.canonical_address(dst_offset), src.canonical_address(src_offset)
    if to is not None and from_ is not None:
        return _order_of_ranges(to, dst_length, from_, src_length)
    source = yield from _places(src, src_offset, src_length)
    target = yield from _places(dst, dst_offset, dst_length)
    overlap = yield from overlap_steps(source, target)
    if not overlap.shared:
        return _Order.ANY
    # A page that is twice in one list does no harm where no page is in both lists: ascending order
    # writes the last position last, as one big write would.
    if overlap.twice or (overlap.later and overlap.earlier):
        return _Order.NONE
    return _Order.BACKWARD if overlap.earlier else _Order.FORWARD


def _order_of_ranges(to: int, to_length: int, from_: int, from_length: int) -> _Order:
    """Return the order for two contiguous ranges, by their canonical addresses."""
    if to >= from_ + from_length or from_ >= to + to_length:
        return _Order.ANY
    return _Order.FORWARD if to <= from_ else _Order.BACKWARD


def _places(buffer: Extents, offset: int, length: int) -> Generator[None, None, NDArray[np.void]]:
    """Return the extents of a range in rising order of their canonical addresses."""
    count = buffer.extents_in(offset, length)
    places = zeroed(PLACE.itemsize * count).view(PLACE)
    at = done = 0
    while done < length:
        if done:
            yield
        ranges = buffer.ranges(offset + done, length - done)
        block = places[at : at + ranges.addresses.size]
        block["start"] = ranges.addresses
        block["end"] = ranges.addresses + ranges.lengths
        block["position"] = ranges.positions + done
        at += block.size
        done += int(ranges.positions[-1] + ranges.lengths[-1])
    return (yield from sort_steps(places, zeroed(PLACE.itemsize * count).view(PLACE)))
