"""Buffers as lists of extents, with checked accesses to their bytes.

Every access checks its bounds, since a guest chooses offsets, strides and sizes; flushes and writes
past the caches where the memory needs it; and marks guest pages that it writes in the dirty log.
native/cache_lines.c says why accesses differ.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from struct import Struct
from typing import Any, Final, Protocol

import numpy as np
from numpy.typing import NDArray

from vgpud.errors import OutOfRange
from vgpud.memory import mapping
from vgpud.memory.dirty_log import DirtyLog
from vgpud.native.arrays import address_of
from vgpud.native.spans import BACKWARD, FLUSH_BEFORE_READ, NON_TEMPORAL_WRITE, SPAN, SpanList
from vgpud.native.tiles import TileShadow


@dataclass(frozen=True, slots=True)
class MemoryAccess:
    """How a buffer is read and written.

    `flush_before_read`: its cache lines are written back and invalidated before a read, so that the
    bytes come from memory. `non_temporal_write`: the bytes are in memory, and not in a cache of
    this mapping, when a write returns. `flush_around_write`: the lines are flushed before a write
    and again after it; for an uncached mapping of memory that others have in the caches.
    """

    flush_before_read: bool = False
    non_temporal_write: bool = False
    flush_around_write: bool = False


_SPAN = Struct("<QQ")

_FEW: Final = 8192
# Extents whose addresses are found at once, which takes a fraction of a millisecond.

#: For memory that all parties access through the caches.
PLAIN: Final = MemoryAccess()
#: For memory that some party accesses past the caches.
NON_COHERENT: Final = MemoryAccess(flush_before_read=True, non_temporal_write=True)


class DirtySink(Protocol):
    """Says whether writes to guest-physical addresses are logged at the moment."""

    @property
    def log(self) -> DirtyLog | None:
        """The dirty log; None while there is none."""


@dataclass(frozen=True, slots=True)
class GuestPages:
    """The guest-physical addresses of a buffer's extents, one for each."""

    sink: DirtySink
    addresses: NDArray[np.uint64]


@dataclass(frozen=True, slots=True, eq=False)
class MemoryRanges:
    """The memory of a range of a buffer, as arrays of int64, one element for each extent.

    `addresses` are the canonical addresses (see `mapping`) of the extents' first bytes, `positions`
    their distances from the start of the range, `lengths` their lengths.
    """

    addresses: NDArray[np.int64]
    positions: NDArray[np.int64]
    lengths: NDArray[np.int64]


class Extents:
    """A buffer: `size` bytes in one or more extents, in order, read and written as `access` says.

    Every method checks its arguments before it accesses memory, and raises `OutOfRange` for a range
    that leaves the buffer or rows that overlap. Arguments are Python integers, so no sum wraps. A
    size of zero is no error and does nothing. Rows are `stride` bytes apart, the first at `offset`.
    """

    __slots__ = (
        "_addresses",
        "_array",
        "_first_address",
        "_spans",
        "access",
        "guest",
        "owners",
        "simple",
        "size",
    )

    access: MemoryAccess
    size: int
    owners: tuple[object, ...]
    guest: GuestPages | None
    #: Whether it is one extent, and bytes between rows are neither flushed nor logged.
    simple: bool

    def __init__(
        self,
        spans: NDArray[np.void],
        owners: tuple[object, ...],
        *,
        access: MemoryAccess = PLAIN,
        guest: GuestPages | None = None,
    ) -> None:
        """Make a buffer of a SPAN array without empty spans; `owners` keep the memory mapped."""
        self._spans = SpanList(spans)
        self.owners = owners
        self.guest = guest
        self._array: NDArray[np.uint8] | None = None
        self._addresses: NDArray[np.int64] | None = None
        self._first_address: int | None = None
        self.access = access
        self.size = self._spans.size
        self.simple = len(spans) == 1 and guest is None and not access.flush_around_write

    @classmethod
    def from_array(cls, array: NDArray[np.uint8], *, access: MemoryAccess = PLAIN) -> Extents:
        """Make a buffer of a contiguous array, which it keeps alive and does not copy."""
        if not array.flags.c_contiguous:
            raise ValueError("a buffer must be contiguous")
        extents = cls(_span_of(array), (array,), access=access)
        extents._array = array.reshape(-1).view(np.uint8)
        return extents

    @classmethod
    def join(cls, parts: Sequence[Extents]) -> Extents:
        """Make a buffer of the extents of others, one after the other, which have the same access
        and guest memory."""
        owners = {id(owner): owner for part in parts for owner in part.owners}
        guests = [part.guest for part in parts if part.guest is not None]
        guest = None
        if guests:
            addresses = np.concatenate([one.addresses for one in guests])
            guest = GuestPages(guests[0].sink, addresses)
        spans = np.concatenate([part.spans.array for part in parts])
        return cls(spans, tuple(owners.values()), access=parts[0].access, guest=guest)

    @property
    def array(self) -> NDArray[np.uint8] | None:
        """The bytes as an array, without a copy, if the buffer was made from one.

        Accesses to the array ignore `access`: it is for memory that all parties access through the
        caches.
        """
        return self._array

    @property
    def spans(self) -> SpanList:
        """The extents, for native code; the list is valid as long as this buffer exists."""
        return self._spans

    def check(self, offset: int, length: int) -> None:
        """Raise `OutOfRange` unless a range lies in the buffer."""
        if not 0 <= offset <= self.size - length or length < 0:
            raise _invalid(f"{length} bytes at 0x{offset:x} of a buffer of {self.size}")

    def check_rect(self, offset: int, stride: int, row_bytes: int, rows: int) -> int:
        """Raise `OutOfRange` unless a rectangle lies in the buffer and its rows do not overlap.

        Return the length from its first byte to its last, 0 if it is empty.
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

        Rows of `out` must be contiguous, but may be part of longer ones, as in a part of a frame.
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
        """Update a rectangle of a shadow from pixels of four bytes in this buffer.

        Return the changed tiles, as `TileShadow.update` does.
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
        self._log_write(offset, stride, row_bytes, len(data))

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
        self._log_write(offset, length, length, 1)

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
        """Copy a rectangle of another buffer to this one, each by its own access.

        Without `scratch` the two must not share memory. If they may, `engine.Engine` passes some,
        and the order in which chunks are safe.
        """
        # One quick check of all conditions; check_rect() finds which one does not hold.
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
        self._log_write(offset, stride, row_bytes, rows)

    def flush(self, offset: int, length: int) -> None:
        """Write back and invalidate a range's cache lines at a sync point, whatever the access."""
        self.check(offset, length)
        self._spans.flush(offset, length)

    def canonical_address(self, offset: int) -> int | None:
        """Return the canonical address (see `mapping`) of a byte, if the buffer is contiguous.

        Those of other bytes then follow by distance. None for a buffer of several extents.
        """
        if self._first_address is None and len(self._spans.array) == 1:
            address = int(self._spans.array[0]["address"])
            self._first_address = mapping.canonical_address(address)
        return None if self._first_address is None else self._first_address + offset

    def ranges(self, offset: int, length: int, most: int = _FEW) -> MemoryRanges:
        """Return the memory of a range of one byte or more, or of its first `most` extents."""
        spans = self._spans.array
        first, last = self._range(offset, length)
        last = min(last, first + most - 1)
        ends = self._spans.ends[first : last + 1]
        starts = ends - spans["length"][first : last + 1].astype(np.int64)
        begin: NDArray[np.int64] = np.maximum(starts, offset)
        lengths: NDArray[np.int64] = np.minimum(ends, offset + length) - begin
        addresses = self._canonical_addresses(first, last + 1) + (begin - starts)
        return MemoryRanges(addresses, begin - offset, lengths)

    def _canonical_addresses(self, first: int, end: int) -> NDArray[np.int64]:
        spans = self._spans.array
        if len(spans) > _FEW:
            return mapping.canonical_addresses(spans["address"][first:end])
        if self._addresses is None:  # it takes a while where there are many mappings
            self._addresses = mapping.canonical_addresses(spans["address"])
        return self._addresses[first:end]

    @property
    def fragments(self) -> int:
        """How many extents the buffer consists of."""
        return len(self._spans.array)

    def extents_in(self, offset: int, length: int) -> int:
        """Return how many extents a range of one byte or more covers."""
        return 1 if len(self._spans.array) == 1 else self._spans.covered(offset, length)

    @property
    def logged(self) -> bool:
        """Whether writes are marked in a dirty log at the moment."""
        return self.guest is not None and self.guest.sink.log is not None

    @property
    def _read_flags(self) -> int:
        return FLUSH_BEFORE_READ if self.access.flush_before_read else 0

    @property
    def _write_flags(self) -> int:
        return NON_TEMPORAL_WRITE if self.access.non_temporal_write else 0

    def _flush_around(self, offset: int, length: int) -> None:
        """Flush before or after a write, if `access` says so; also the bytes between rows."""
        if self.access.flush_around_write:
            self._spans.flush(offset, length)

    def _range(self, offset: int, length: int) -> tuple[int, int]:
        """Return the indices of the first and the last extent of a range of one byte or more."""
        ends = self._spans.ends
        first, last = ends.searchsorted([offset, offset + length - 1], "right")
        return int(first), int(last)

    def _log_write(self, offset: int, stride: int, row_bytes: int, rows: int) -> None:
        guest = self.guest
        if guest is not None and (log := guest.sink.log) is not None:
            log.set_rect(self._spans, guest.addresses, offset, stride, row_bytes, rows)


def _span_of(array: NDArray[np.uint8]) -> NDArray[np.void]:
    """Return the span of an array, made from bytes in a quarter of numpy's time for a tuple."""
    if not array.nbytes:
        return np.empty(0, SPAN)
    return np.frombuffer(_SPAN.pack(address_of(array), array.nbytes), SPAN)


def _invalid(reason: str) -> OutOfRange:
    return OutOfRange(reason)
