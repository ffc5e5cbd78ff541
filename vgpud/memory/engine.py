"""The DMA engine: moves data past the caches, as a device that does not snoop them would.

Owns the semantics of the DMA context's packets on memory: what overlaps behaves as if all of the
source were read before any of the destination is written (memmove), whatever pages, blobs and
mappings the two are made of. Every argument is checked before anything is written. Blocking: long
work belongs on a thread; the GIL is released while bytes move.
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
from vgpud.memory.extents import Extents, Pieces

# A chunk of an overlapping copy and its scratch: both fit in a 64 KiB half of a small L2 cache.
_CHUNK: Final = 32 * 1024
# A step of a checksum: long enough that the call does not count.
_CRC_STEP: Final = 256 * 1024

# What is done between two chances to stop: about a tenth of a millisecond, also in rows so narrow
# that it is their cache lines that count, and in buffers of many small pieces.
_STEP: Final = 1024 * 1024
_ROW_COST: Final = 1024
_FEW: Final = 4096

_R = TypeVar("_R")

Steps: TypeAlias = Generator[None, None, None]
"""Work in progress: it stops at each `yield`, and goes on whenever and wherever it is resumed."""


class _Order(Enum):
    """In which order chunks can be copied without reading what was already overwritten."""

    ANY = auto()
    FORWARD = auto()
    BACKWARD = auto()
    NONE = auto()


class Engine:
    """Executes packets; may be used by several threads at once.

    `scratch_limit` bounds the bytes that all of them together may take for copies whose overlap no
    order of chunks can serve: they wait for each other. A packet that needs more gets
    `OutOfMemory`, and one that leaves its buffers `OutOfRange`, with nothing written.
    """

    def __init__(self, scratch_limit: int) -> None:
        self._scratch_limit = self._scratch_left = scratch_limit
        self._given_back = threading.Condition()

    def fill(self, dst: Extents, offset: int, length: int, pattern: int) -> None:
        """Repeat a 32-bit little-endian pattern over a range, its first byte at `offset`."""
        _finish(self.fill_steps(dst, offset, length, pattern))

    def fill_steps(self, dst: Extents, offset: int, length: int, pattern: int) -> Steps:
        """Do what `fill` does, in short steps."""
        dst.check(offset, length)
        step = _step_bytes(dst)  # a multiple of the pattern, so that it goes on
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
        """Do what `copy` does, in short steps."""
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
        """Do what `blit` does, in short steps, but for what no order of steps can serve."""
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
        for row, height, column, width in _tiles(rows, row_bytes, limit, backward=backward):
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
        """Do what `crc32` does, in short steps; the last returns the checksum."""
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
        with self._given_back:
            # Whoever has it is copying, and takes no more before that is done: no deadlock.
            self._given_back.wait_for(lambda: size <= self._scratch_left)
            self._scratch_left -= size
        try:
            yield np.empty(size, np.uint8)
        finally:
            with self._given_back:
                self._scratch_left += size
                self._given_back.notify_all()


def _finish(steps: Generator[None, None, _R]) -> _R:
    while True:
        try:
            next(steps)
        except StopIteration as end:
            result: _R = end.value
            return result


def _step_bytes(buffer: Extents) -> int:
    return _STEP if buffer.fragments <= _FEW else _STEP // 16


def _tiles(
    rows: int, row_bytes: int, limit: int, *, backward: bool
) -> Iterator[tuple[int, int, int, int]]:
    """Cut a rectangle into (row, rows, byte of the row, bytes), in rising or falling order."""
    height = max(limit // max(row_bytes, _ROW_COST), 1)
    width = min(row_bytes, limit)
    tops, lefts = range(0, rows, height), range(0, row_bytes, width)
    for row in reversed(tops) if backward else tops:
        for column in reversed(lefts) if backward else lefts:
            yield row, min(height, rows - row), column, min(width, row_bytes - column)


def _order_of(
    dst: Extents, dst_offset: int, dst_length: int, src: Extents, src_offset: int, src_length: int
) -> _Order:
    to, from_ = dst.place(dst_offset), src.place(src_offset)
    if to is not None and from_ is not None:
        return _order_of_ranges(to, dst_length, from_, src_length)
    return _order(dst.pieces(dst_offset, dst_length), src.pieces(src_offset, src_length))


def _order_of_ranges(to: int, to_length: int, from_: int, from_length: int) -> _Order:
    """Do what `_order` does where both sides are one piece, by their names."""
    if to >= from_ + from_length or from_ >= to + to_length:
        return _Order.ANY
    return _Order.FORWARD if to <= from_ else _Order.BACKWARD


def _order(dst: Pieces, src: Pieces) -> _Order:
    """Compare which position of a source shares memory with which position of a destination.

    A chunk's write does harm if it hits what a later chunk reads. So ascending order is right if
    memory that both have is never read later than it is written, that is, if no byte has a higher
    position in the source than in the destination; descending order is right if none has a lower
    one. A guest may list the same page twice, in which case there may be both.
    """
    to_starts, to_ends, to_shift = _by_name(dst)
    starts, ends, shift = _by_name(src)
    if _any_shared(to_starts, to_ends) or _any_shared(starts, ends):
        # A page that is twice in one list. Without any page in both lists it does no harm:
        # ascending order writes the last position last, as one big write would.
        return _Order.NONE if _touch(to_starts, to_ends, starts, ends) else _Order.ANY
    # Each list is disjoint by itself: there are no more pairs than pieces.
    low = to_ends.searchsorted(starts, "right")
    count = np.maximum(to_starts.searchsorted(ends, "left") - low, 0)
    if not count.any():
        return _Order.ANY
    pair = np.repeat(np.arange(starts.size), count)
    nth = np.arange(pair.size) - np.repeat(np.cumsum(count) - count, count)
    # name - shift is a byte's position: this is its position in src less that in dst.
    later = to_shift[low[pair] + nth] - shift[pair]
    if (later <= 0).all():
        return _Order.FORWARD
    return _Order.BACKWARD if (later >= 0).all() else _Order.NONE


def _by_name(
    pieces: Pieces,
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Return starts and ends in rising order, and what to take off a name to get its position."""
    order = np.argsort(pieces.names, kind="stable")
    starts = pieces.names[order]
    return starts, starts + pieces.lengths[order], starts - pieces.positions[order]


def _any_shared(starts: NDArray[np.int64], ends: NDArray[np.int64]) -> bool:
    return bool((starts[1:] < ends[:-1]).any())


def _touch(
    starts: NDArray[np.int64],
    ends: NDArray[np.int64],
    other_starts: NDArray[np.int64],
    other_ends: NDArray[np.int64],
) -> bool:
    """Whether two lists share a byte, each in rising order of starts."""
    reach = np.maximum.accumulate(ends)
    before = starts.searchsorted(other_ends, "left")
    return bool(((before > 0) & (reach[before - 1] > other_starts)).any())
