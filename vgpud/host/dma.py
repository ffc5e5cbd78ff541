"""The DMA engine: moves data past the caches, as a device that does not snoop them would.

Owns the semantics of the DMA context's packets on memory: what overlaps behaves as if all of the
source were read before any of the destination is written (memmove), whatever pages, blobs and
mappings the two are made of. Every argument is checked before anything is written. Blocking: long
work belongs on a thread; the GIL is released while bytes move. Must not import anything above
`host`.
"""

from __future__ import annotations

import threading
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from enum import Enum, auto
from typing import Final

import numpy as np
from numpy.typing import NDArray

from vgpud.errors import GuestError
from vgpud.host.extents import Extents, Pieces
from vgpud.wire.gpu.protocol import ResponseType

# A chunk of an overlapping copy and its scratch: both fit in a 64 KiB half of a small L2 cache.
_CHUNK: Final = 32 * 1024
# A step of a checksum: long enough that the call does not count.
_CRC_STEP: Final = 256 * 1024


class _Order(Enum):
    """In which order chunks can be copied without reading what was already overwritten."""

    ANY = auto()
    FORWARD = auto()
    BACKWARD = auto()
    NONE = auto()


class Engine:
    """Executes packets; may be used by several threads at once.

    `scratch_limit` bounds the bytes that all of them together may take for copies whose overlap no
    order of chunks can serve; a packet that needs more gets GuestError (ERR_OUT_OF_MEMORY), and one
    that leaves its buffers GuestError (ERR_INVALID_PARAMETER), with nothing written.
    """

    def __init__(self, scratch_limit: int) -> None:
        self._scratch_left = scratch_limit
        self._lock = threading.Lock()

    def fill(self, dst: Extents, offset: int, length: int, pattern: int) -> None:
        """Repeat a 32-bit little-endian pattern over a range, its first byte at `offset`."""
        dst.fill(offset, length, pattern & 0xFFFFFFFF)

    def copy(
        self, dst: Extents, dst_offset: int, src: Extents, src_offset: int, length: int
    ) -> None:
        """Copy a range."""
        self.blit(dst, dst_offset, length, src, src_offset, length, length, 1)

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
        dst_length = dst.check_rect(dst_offset, dst_stride, row_bytes, rows)
        src_length = src.check_rect(src_offset, src_stride, row_bytes, rows)
        if not dst_length:
            return
        to, from_ = dst.place(dst_offset), src.place(src_offset)
        if to is not None and from_ is not None:
            order = _order_of_ranges(to, dst_length, from_, src_length)
        else:
            order = _order(dst.pieces(dst_offset, dst_length), src.pieces(src_offset, src_length))
        # Positions in the buffers compare as positions in the rectangle only if strides agree.
        if rows > 1 and src_stride != dst_stride and order is not _Order.ANY:
            order = _Order.NONE
        if order is _Order.NONE:
            with self._scratch(row_bytes * rows) as scratch:
                bounce = scratch.reshape(rows, row_bytes)
                src.read_rect_into(src_offset, src_stride, bounce)
                dst.write_rect(dst_offset, dst_stride, bounce)
            return
        dst.copy_rect(
            dst_offset,
            dst_stride,
            src,
            src_offset,
            src_stride,
            row_bytes=row_bytes,
            rows=rows,
            scratch=None if order is _Order.ANY else np.empty(_CHUNK, np.uint8),
            backward=order is _Order.BACKWARD,
        )

    def crc32(self, src: Extents, offset: int, length: int) -> int:
        """Return zlib's CRC-32 of a range."""
        src.check(offset, length)
        value = 0
        out = np.empty((1, min(length, _CRC_STEP)), np.uint8)
        for done in range(0, length, _CRC_STEP):
            step = out[:, : min(length - done, _CRC_STEP)]
            src.read_rect_into(offset + done, step.size, step)
            value = zlib.crc32(step[0], value)
        return value

    @contextmanager
    def _scratch(self, size: int) -> Iterator[NDArray[np.uint8]]:
        with self._lock:
            if size > self._scratch_left:
                raise GuestError(
                    ResponseType.ERR_OUT_OF_MEMORY,
                    f"an overlapping copy of {size} bytes, {self._scratch_left} of scratch left",
                )
            self._scratch_left -= size
        try:
            yield np.empty(size, np.uint8)
        finally:
            with self._lock:
                self._scratch_left += size


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
