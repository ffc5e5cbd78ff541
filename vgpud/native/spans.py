"""Lists of spans, and rectangles of bytes in them: the facade of rect.c.

Every call releases the GIL while it runs. Arguments that point outside of their arrays are bugs in
the caller and raise ValueError; what a guest sends is checked before.
"""

from __future__ import annotations

from bisect import bisect_right
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from vgpud.native._native import ffi, lib
from vgpud.native.arrays import address_of, pointer_to

#: A run of bytes in this process: `vgpud_span` of native.h.
SPAN: Final = np.dtype([("address", "<u8"), ("length", "<u8")])
assert SPAN.itemsize == ffi.sizeof("vgpud_span")

FLUSH_BEFORE_READ: Final[int] = lib.VGPUD_FLUSH_BEFORE_READ
NON_TEMPORAL_WRITE: Final[int] = lib.VGPUD_NON_TEMPORAL_WRITE
BACKWARD: Final[int] = lib.VGPUD_BACKWARD

#: What a row, a span and a new page cost, and a byte, in nanoseconds: native.h has the reasons.
COST_ROW: Final[int] = lib.VGPUD_COST_ROW
COST_SPAN: Final[int] = lib.VGPUD_COST_SPAN
COST_PAGE: Final[int] = lib.VGPUD_COST_PAGE
BYTES_PER_NS: Final[int] = lib.VGPUD_BYTES_PER_NS

_SPAN = ffi.typeof("vgpud_span *")
_NULL = ffi.NULL
_COPY = lib.vgpud_copy


class SpanList:
    """The spans of one buffer in order, from a SPAN array.

    Immutable. The caller keeps the memory mapped. Empty spans are left out.
    """

    __slots__ = ("_count", "_first", "_pointer", "_sorted", "array", "ends", "size")

    array: NDArray[np.void]
    #: The buffer offset of each span's end.
    ends: NDArray[np.int64]
    size: int

    def __init__(self, spans: NDArray[np.void]) -> None:
        if spans.dtype != SPAN or spans.ndim != 1:
            raise ValueError("spans must be a one-dimensional SPAN array")
        lengths = spans["length"]
        # A copy in any case: the spans must not change once they are checked.
        spans = spans.copy() if lengths.all() else spans[lengths != 0]
        spans.flags.writeable = False
        self.array = spans
        self._pointer = ffi.from_buffer(_SPAN, spans)
        lengths = spans["length"]
        # By halves of words, whose sums don't wrap.
        self.size = (int((lengths >> 32).sum()) << 32) + int((lengths & 0xFFFFFFFF).sum())
        if self.size >= 1 << 63:
            raise ValueError("a buffer of 2**63 bytes or more")
        self.ends = lengths.astype(np.int64).cumsum()
        self._count = len(spans)
        self._sorted = memoryview(self.ends.data)  # bisect takes a tenth of searchsorted's time
        self._first = self._sorted[0] if self._count else 0

    @property
    def address(self) -> int:
        """The address of the list itself."""
        return address_of(self.array)

    def covered(self, offset: int, length: int) -> int:
        """Return how many spans a range of one byte or more covers."""
        first = bisect_right(self._sorted, offset)
        return bisect_right(self._sorted, offset + length - 1, first) - first + 1

    def tail(self, offset: int) -> tuple[Any, int, int]:
        """Return a pointer to the span at an offset, the spans from it on, and the offset in these.

        So the C does not count through thousands of pages for each small access.
        """
        count = self._count
        if offset >= self._first:
            skipped = bisect_right(self._sorted, offset)
            if skipped < count:
                return (
                    self._pointer + skipped,
                    count - skipped,
                    offset - self._sorted[skipped - 1],
                )
        return self._pointer, count, offset

    def gather(self, offset: int, stride: int, out: NDArray[Any], flags: int = 0) -> None:
        """Read len(out) rows, `stride` bytes apart from `offset` on, into an array of rows."""
        buffer, buffer_stride, row_bytes, rows = _rows(out, writable=True)
        pointer, count, start = self.tail(offset)
        _check(
            lib.vgpud_gather(
                pointer, count, start, stride, buffer, buffer_stride, row_bytes, rows, flags
            )
        )

    def scatter(self, offset: int, stride: int, data: NDArray[Any], flags: int = 0) -> None:
        """Write an array of rows, `stride` bytes apart from `offset` on."""
        buffer, buffer_stride, row_bytes, rows = _rows(data, writable=False)
        pointer, count, start = self.tail(offset)
        _check(
            lib.vgpud_scatter(
                pointer, count, start, stride, buffer, buffer_stride, row_bytes, rows, flags
            )
        )

    def fill(self, offset: int, length: int, pattern: int, flags: int = 0) -> None:
        """Repeat a 32-bit little-endian pattern over `length` bytes, its first byte at `offset`."""
        pointer, count, start = self.tail(offset)
        _check(lib.vgpud_fill(pointer, count, start, length, pattern, flags))

    def flush(self, offset: int, length: int) -> None:
        """Write back and invalidate the cache lines of a range; later loads come from memory."""
        pointer, count, start = self.tail(offset)
        _check(lib.vgpud_flush(pointer, count, start, length))

    def copy_from(
        self,
        offset: int,
        stride: int,
        source: SpanList,
        source_offset: int,
        source_stride: int,
        *,
        row_bytes: int,
        rows: int,
        scratch: NDArray[np.uint8] | None = None,
        flags: int = 0,
    ) -> None:
        """Copy a rectangle of another buffer to this one.

        Without `scratch` the two must not overlap. With it, they are copied in chunks of its size,
        each read completely before it is written; BACKWARD takes the last chunk first.
        """
        to, to_count, to_start = self.tail(offset)
        from_, from_count, from_start = source.tail(source_offset)
        _check(
            _COPY(
                to,
                to_count,
                to_start,
                stride,
                from_,
                from_count,
                from_start,
                source_stride,
                row_bytes,
                rows,
                _NULL if scratch is None else pointer_to(scratch, writable=True),
                0 if scratch is None else scratch.nbytes,
                flags,
            )
        )


def _rows(array: NDArray[Any], *, writable: bool) -> tuple[Any, int, int, int]:
    """Return an array's pointer, stride, bytes per row and rows.

    A row is all axes but the first, which must be contiguous.
    """
    if array.ndim < 2:
        raise ValueError("rows need an array of two dimensions or more")
    if array.size == 0:
        return ffi.NULL, 0, 0, 0
    rows = array.shape[0]
    row_bytes = array.nbytes // rows
    # Numpy may report any stride for an axis of length 1.
    stride = array.strides[0] if rows > 1 else row_bytes
    if stride < row_bytes:
        raise ValueError("rows must follow each other in memory")
    return pointer_to(array[0], writable=writable), stride, row_bytes, rows


def _check(result: int) -> None:
    if result != 0:
        raise ValueError("a rectangle leaves its buffer, or its rows overlap")
