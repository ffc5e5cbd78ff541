"""Buffers as lists of spans, and how they may be touched.

Owns bounds checks (a guest picks offsets, strides and sizes), the choice of plain, flushing and
non-temporal access, and the dirty log of what is written. Knows nothing of resources or commands.
Why accesses differ is told in native/cache_lines.c.
"""

from __future__ import annotations

from dataclasses import dataclass
from struct import Struct
from typing import Any, Final, Protocol

import numpy as np
from numpy.typing import NDArray

from vgpud.errors import OutOfRange
from vgpud.memory import mapping
from vgpud.memory.dirty_log import LOG_PAGE
from vgpud.native.arrays import address_of
from vgpud.native.spans import BACKWARD, FLUSH_BEFORE_READ, NON_TEMPORAL_WRITE, SPAN, SpanList
from vgpud.native.tiles import TileShadow


@dataclass(frozen=True, slots=True)
class Access:
    """How a buffer is read and written.

    `flush_before_read`: its cache lines are written back and dropped first, so that the bytes come
    from memory. `non_temporal_write`: the bytes are in memory, and in no cache, when a write
    returns. `flush_around_write`: also in nobody else's, where ours is a mapping past the caches:
    the lines are flushed before the write, and again after it.
    """

    flush_before_read: bool = False
    non_temporal_write: bool = False
    flush_around_write: bool = False


_SPAN = Struct("<QQ")

#: For memory that all sides reach through their caches.
PLAIN: Final = Access()
#: For memory that somebody reaches past the caches.
NON_COHERENT: Final = Access(flush_before_read=True, non_temporal_write=True)


class DirtySink(Protocol):
    """Who wants to know of writes to guest-physical addresses."""

    @property
    def log(self) -> object | None:
        """Where it is noted; None while nobody wants to know."""

    def mark_dirty(self, guest_phys_addr: int, length: int) -> None:
        """Note that a range was written."""


@dataclass(frozen=True, slots=True)
class GuestPages:
    """Where in the guest's memory the spans are: one guest-physical address a span."""

    sink: DirtySink
    addresses: NDArray[np.uint64]


@dataclass(frozen=True, slots=True, eq=False)
class Pieces:
    """A range of a buffer, as pieces of memory.

    `names` are what `mapping.names` says of each piece's first byte, `positions` the pieces'
    distances from the start of the range, `lengths` their lengths; all int64.
    """

    names: NDArray[np.int64]
    positions: NDArray[np.int64]
    lengths: NDArray[np.int64]


class Extents:
    """A buffer: `size` bytes in one or more spans, in order, read and written as `access` says.

    Every method checks its arguments before it touches anything, and raises `OutOfRange`
    for a range that leaves the buffer or rows that overlap; arguments are
    Python integers, so nothing wraps. A size of zero is no error and does nothing. Rows are
    `stride` bytes apart, the first at `offset`.
    """

    __slots__ = ("_array", "_guest", "_names", "_owners", "_place", "_spans", "access", "size")

    access: Access
    size: int

    def __init__(
        self,
        spans: NDArray[np.void],
        owners: tuple[object, ...],
        *,
        access: Access = PLAIN,
        guest: GuestPages | None = None,
    ) -> None:
        """Make a buffer of spans (dtype SPAN, none of them empty) in memory that `owners` keep."""
        self._spans = SpanList(spans)
        self._owners = owners
        self._guest = guest
        self._array: NDArray[np.uint8] | None = None
        self._names: NDArray[np.int64] | None = None
        self._place: int | None = None
        self.access = access
        self.size = self._spans.size

    @classmethod
    def from_array(cls, array: NDArray[np.uint8], *, access: Access = PLAIN) -> Extents:
        """Make a buffer of a contiguous array's bytes, which it keeps alive and does not copy."""
        if not array.flags.c_contiguous:
            raise ValueError("a buffer must be contiguous")
        extents = cls(_span_of(array), (array,), access=access)
        extents._array = array.reshape(-1).view(np.uint8)
        return extents

    def with_access(self, access: Access) -> Extents:
        """Return the same memory under another access."""
        other = Extents(self._spans.array, self._owners, access=access, guest=self._guest)
        other._array = self._array
        return other

    @property
    def array(self) -> NDArray[np.uint8] | None:
        """The bytes as an array, without a copy, if this was made from one.

        Reading it goes by no `access`: for memory that everybody reaches through the caches.
        """
        return self._array

    @property
    def spans(self) -> SpanList:
        """The pieces, for native code; to be kept no longer than this."""
        return self._spans

    def check(self, offset: int, length: int) -> None:
        """Raise `OutOfRange` unless a range lies in the buffer."""
        if not 0 <= offset <= self.size - length or length < 0:
            raise _invalid(f"{length} bytes at 0x{offset:x} of a buffer of {self.size}")

    def check_rect(self, offset: int, stride: int, row_bytes: int, rows: int) -> int:
        """Raise `OutOfRange` unless a rectangle lies in the buffer, its rows apart.

        Return the bytes from its first to its last, 0 if it has none.
        """
        if row_bytes < 0 or rows < 0:
            raise _invalid(f"a rectangle of {rows} rows of {row_bytes} bytes")
        if not rows or not row_bytes:
            length = 0
        elif rows > 1 and stride < row_bytes:
            raise _invalid(f"rows of {row_bytes} bytes every {stride} bytes overlap")
        else:
            length = (rows - 1) * stride + row_bytes
        self.check(offset, length)
        return length

    def read_rect(self, offset: int, stride: int, row_bytes: int, rows: int) -> NDArray[np.uint8]:
        """Return a copy of a rectangle, (rows, row_bytes) of uint8."""
        self.check_rect(offset, stride, row_bytes, rows)
        out = np.empty((rows, row_bytes), np.uint8)
        self._spans.gather(offset, stride, out, self._read_flags)
        return out

    def read_rect_into(self, offset: int, stride: int, out: NDArray[Any]) -> None:
        """Fill an array of two or more dimensions, the first of them rows, from a rectangle.

        Rows of `out` must be contiguous, but may be part of longer ones: a piece of a frame.
        """
        self.check_rect(offset, stride, out.nbytes // len(out) if len(out) else 0, len(out))
        self._spans.gather(offset, stride, out, self._read_flags)

    def update_tiles(
        self,
        offset: int,
        stride: int,
        shadow: TileShadow,
        x: int,
        y: int,
        width: int,
        height: int,
        order: tuple[int, int, int, int],
    ) -> NDArray[np.uint8]:
        """Bring a shadow's rectangle up to date with one of pixels here, of four bytes each.

        Return its changed tiles, as `TileShadow.update` does.
        """
        self.check_rect(offset, stride, width * 4, height)
        return shadow.update(
            self._spans, offset, stride, x, y, width, height, order=order, flags=self._read_flags
        )

    def write_rect(self, offset: int, stride: int, data: NDArray[Any]) -> None:
        """Write an array of two or more dimensions, the first of them rows, to a rectangle."""
        row_bytes = data.nbytes // len(data) if len(data) else 0
        length = self.check_rect(offset, stride, row_bytes, len(data))
        self._flush_around(offset, length)
        self._spans.scatter(offset, stride, data, self._write_flags)
        self._flush_around(offset, length)
        self._mark_dirty_rect(offset, stride, row_bytes, len(data))

    def read(self, offset: int, length: int) -> NDArray[np.uint8]:
        """Return a copy of a range, (length,) of uint8."""
        return self.read_rect(offset, length, length, 1).reshape(-1)

    def write(self, offset: int, data: NDArray[Any] | bytes | bytearray | memoryview) -> None:
        """Write bytes from `offset` on."""
        if not isinstance(data, np.ndarray):
            data = np.frombuffer(data, np.uint8)
        self.write_rect(offset, data.nbytes, np.ascontiguousarray(data).reshape(1, -1))

    def fill(self, offset: int, length: int, pattern: int) -> None:
        """Repeat a 32-bit little-endian pattern over a range, its first byte at `offset`."""
        self.check(offset, length)
        self._flush_around(offset, length)
        self._spans.fill(offset, length, pattern, self._write_flags)
        self._flush_around(offset, length)
        self._mark_dirty(offset, length)

    def copy_rect(
        self,
        offset: int,
        stride: int,
        source: Extents,
        source_offset: int,
        source_stride: int,
        *,
        row_bytes: int,
        rows: int,
        scratch: NDArray[np.uint8] | None = None,
        backward: bool = False,
    ) -> None:
        """Copy a rectangle of another buffer, each side by its own access.

        Without `scratch` the two must not share memory; what `dma.Engine` does if they may is to
        give some, and say in which order its chunks are safe.
        """
        # What holds is seen here at once; check_rect() finds out what does not, and says it.
        if not (
            rows > 0 < row_bytes
            and 0 <= offset <= self.size - row_bytes - (rows - 1) * stride
            and 0 <= source_offset <= source.size - row_bytes - (rows - 1) * source_stride
            and (rows == 1 or (stride >= row_bytes <= source_stride))
        ):
            self.check_rect(offset, stride, row_bytes, rows)
            source.check_rect(source_offset, source_stride, row_bytes, rows)
        length = (rows - 1) * stride + row_bytes if rows and row_bytes else 0
        self._flush_around(offset, length)
        self._spans.copy_from(
            offset,
            stride,
            source._spans,
            source_offset,
            source_stride,
            row_bytes=row_bytes,
            rows=rows,
            scratch=scratch,
            flags=source._read_flags | self._write_flags | (BACKWARD if backward else 0),
        )
        self._flush_around(offset, length)
        if self._guest is not None:
            self._mark_dirty_rect(offset, stride, row_bytes, rows)

    def copy_from(self, source: Extents) -> None:
        """Copy the whole of a buffer that shares no memory with this one to its beginning."""
        size = source.size
        self.copy_rect(0, size, source, 0, size, row_bytes=size, rows=1)

    def flush(self, offset: int, length: int) -> None:
        """Write back and drop a range's cache lines, whatever the access: a sync point."""
        self.check(offset, length)
        self._spans.flush(offset, length)

    def place(self, offset: int) -> int | None:
        """Return the name (see `mapping.names`) of one byte if all bytes are in one piece.

        Names of other bytes then follow by distance. None for a buffer of several pieces.
        """
        if self._place is None and len(self._spans.array) == 1:
            self._place = mapping.name(int(self._spans.array[0]["address"]))
        return None if self._place is None else self._place + offset

    def pieces(self, offset: int, length: int) -> Pieces:
        """Return what memory a range of one byte or more is made of."""
        spans = self._spans.array
        if self._names is None:
            self._names = mapping.names(spans["address"])
        first, last = self._range(offset, length)
        ends = self._spans.ends[first : last + 1]
        starts = ends - spans["length"][first : last + 1].astype(np.int64)
        begin: NDArray[np.int64] = np.maximum(starts, offset)
        lengths: NDArray[np.int64] = np.minimum(ends, offset + length) - begin
        return Pieces(self._names[first : last + 1] + (begin - starts), begin - offset, lengths)

    def overlaps(self, offset: int, other: Extents, other_offset: int, length: int) -> bool:
        """Whether two ranges share memory, under whatever addresses it is mapped."""
        self.check(offset, length)
        other.check(other_offset, length)
        if not length:
            return False
        ours, theirs = self.pieces(offset, length), other.pieces(other_offset, length)
        order = np.argsort(theirs.names)
        # Theirs may overlap among themselves: for each start, the furthest end up to there.
        names = theirs.names[order]
        reach = np.maximum.accumulate(names + theirs.lengths[order])
        before = names.searchsorted(ours.names + ours.lengths, "left")
        return bool(np.any((before > 0) & (reach[before - 1] > ours.names)))

    @property
    def fragments(self) -> int:
        """In how many pieces of memory the buffer lies."""
        return len(self._spans.array)

    @property
    def _read_flags(self) -> int:
        return FLUSH_BEFORE_READ if self.access.flush_before_read else 0

    @property
    def _write_flags(self) -> int:
        return NON_TEMPORAL_WRITE if self.access.non_temporal_write else 0

    def _flush_around(self, offset: int, length: int) -> None:
        """Comes before and after each write. Between rows it flushes more than it must."""
        if self.access.flush_around_write:
            self._spans.flush(offset, length)

    def _range(self, offset: int, length: int) -> tuple[int, int]:
        """Return the indices of the first and the last span of a range of one byte or more."""
        ends = self._spans.ends
        first, last = ends.searchsorted([offset, offset + length - 1], "right")
        return int(first), int(last)

    def _mark_dirty_rect(self, offset: int, stride: int, row_bytes: int, rows: int) -> None:
        if self._guest is None or not row_bytes or not rows:
            return
        if rows == 1 or stride - row_bytes < LOG_PAGE:  # no page between two rows
            self._mark_dirty(offset, (rows - 1) * stride + row_bytes)
        elif self._guest.sink.log is not None:
            for row in range(rows):
                self._mark_dirty(offset + row * stride, row_bytes)

    def _mark_dirty(self, offset: int, length: int) -> None:
        guest = self._guest
        if guest is None or not length or guest.sink.log is None:
            return
        first, last = self._range(offset, length)
        for index in range(first, last + 1):
            end = int(self._spans.ends[index])
            start = end - int(self._spans.array["length"][index])
            skip = max(0, offset - start)
            address = int(guest.addresses[index]) + skip
            guest.sink.mark_dirty(address, min(end, offset + length) - start - skip)


def _span_of(array: NDArray[np.uint8]) -> NDArray[np.void]:
    """Make the span of an array: from bytes, which is a quarter of what numpy takes for a tuple."""
    if not array.nbytes:
        return np.empty(0, SPAN)
    return np.frombuffer(_SPAN.pack(address_of(array), array.nbytes), SPAN)


def _invalid(reason: str) -> OutOfRange:
    return OutOfRange(reason)
