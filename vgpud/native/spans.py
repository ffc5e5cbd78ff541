"""Typed facade over the native module: shared words, span lists, guarded mappings.

Owns the border where numpy arrays become addresses; `Any` stops here. What the C does and why is
told in cache_lines.c, rect.c, tiles.c and mapping.c.

Every call releases the GIL while it runs. Arguments that point outside of their arrays are bugs in
the caller and raise ValueError or IndexError; what a guest sends is checked before it comes here.
"""

from __future__ import annotations

import os
from bisect import bisect_right
from collections.abc import Collection
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from vgpud.native._native import ffi, lib

#: A run of bytes in this process: `vgpud_span` of native.h.
SPAN: Final = np.dtype([("address", "<u8"), ("length", "<u8")])
assert SPAN.itemsize == ffi.sizeof("vgpud_span")

FLUSH_BEFORE_READ: Final[int] = lib.VGPUD_FLUSH_BEFORE_READ
NON_TEMPORAL_WRITE: Final[int] = lib.VGPUD_NON_TEMPORAL_WRITE
BACKWARD: Final[int] = lib.VGPUD_BACKWARD
#: A tile's width and height in pixels.
TILE: Final[tuple[int, int]] = lib.VGPUD_TILE_WIDTH, lib.VGPUD_TILE_HEIGHT
#: Bytes in a cache line, as CPUID tells it.
CACHE_LINE: Final[int] = lib.vgpud_cache_line_size()

_U8 = ffi.typeof("uint8_t *")
_U16 = ffi.typeof("uint16_t *")
_SPAN = ffi.typeof("vgpud_span *")
_NULL = ffi.NULL
_COPY = lib.vgpud_copy


_CPU_FEATURES: Final[dict[str, int]] = {
    "clflushopt": lib.VGPUD_CPU_CLFLUSHOPT,
    "clwb": lib.VGPUD_CPU_CLWB,
    "avx2": lib.VGPUD_CPU_AVX2,
    "avx512f": lib.VGPUD_CPU_AVX512,
    "self-snoop": lib.VGPUD_CPU_SELF_SNOOP,
    "hypervisor": lib.VGPUD_CPU_HYPERVISOR,
}


def cpu_features() -> frozenset[str]:
    """Return which of clflushopt, clwb, avx2, avx512f, self-snoop, hypervisor this CPU has."""
    bits = lib.vgpud_cpu_features()
    return frozenset(name for name, bit in _CPU_FEATURES.items() if bits & bit)


def limit_cpu_features(allowed: Collection[str] = _CPU_FEATURES) -> None:
    """Act as a CPU with no other features than these would; without argument, use them all again.

    For tests of the fallbacks: process-wide, not to be called while other threads work.
    """
    lib.vgpud_limit_cpu_features(sum(_CPU_FEATURES[name] for name in set(allowed)))


def address_of(array: NDArray[Any]) -> int:
    """Return the address of an array's first element; it holds for as long as the array lives."""
    address: int = array.__array_interface__["data"][0]
    return address


def _bytes(array: NDArray[Any], *, writable: bool) -> Any:
    """Return a pointer to a contiguous array, which it keeps alive; ValueError if it is not so."""
    try:
        return ffi.from_buffer(_U8, array, require_writable=writable)
    except BufferError as error:
        raise ValueError(str(error)) from error


class SharedU16:
    """A little-endian 16-bit word in shared memory: loads acquire, stores release.

    Bind one per ring index and keep it: binding costs more than the access. Keeps the array (and
    so the mapping) alive. Raises ValueError for an odd address (a word across two cache lines is
    not atomic) and IndexError outside the array.
    """

    __slots__ = ("_array", "_word")

    def __init__(self, array: NDArray[np.uint8], byte_offset: int = 0) -> None:
        if not 0 <= byte_offset <= array.nbytes - 2:
            raise IndexError(f"no 16-bit word at byte {byte_offset} of {array.nbytes}")
        self._array = _bytes(array, writable=True)
        self._word = ffi.cast(_U16, self._array + byte_offset)
        if int(ffi.cast("uintptr_t", self._word)) % 2:
            raise ValueError("a shared word must be aligned")

    def load(self) -> int:
        """Load; what the other side wrote before it stored this value is visible afterwards."""
        value: int = lib.vgpud_load_acquire_u16(self._word)
        return value

    def store(self, value: int) -> None:
        """Store the low 16 bits; whoever sees them sees all that was written before."""
        lib.vgpud_store_release_u16(self._word, value & 0xFFFF)


def load_acquire_u16(array: NDArray[np.uint8], byte_offset: int) -> int:
    """Load one word once; a `SharedU16` is quicker where it is read again."""
    return SharedU16(array, byte_offset).load()


def store_release_u16(array: NDArray[np.uint8], byte_offset: int, value: int) -> None:
    """Store one word once; a `SharedU16` is quicker where it is written again."""
    SharedU16(array, byte_offset).store(value)


def full_fence() -> None:
    """Order all loads and stores before it with all after it, also a store with a later load."""
    lib.vgpud_full_fence()


def dirty_log_set(bitmap: NDArray[np.uint8], first_page: int, pages: int) -> None:
    """Or the bits of `pages` pages into a log that a front-end may clear at the same time.

    Pages beyond the log are left out. A full barrier: what was written before is visible to
    whoever sees a bit.
    """
    lib.vgpud_dirty_log_set(_bytes(bitmap, writable=True), bitmap.nbytes, first_page, pages)


def _rows(array: NDArray[Any], *, writable: bool) -> tuple[Any, int, int, int]:
    """Return address, stride, bytes a row and rows; a row is all but the first axis, gapless."""
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
    return _bytes(array[0], writable=writable), stride, row_bytes, rows


class SpanList:
    """The pieces of one buffer in order: a SPAN array, bound once.

    Immutable. Whoever makes it keeps the memory mapped. Empty spans are left out.
    """

    __slots__ = ("_count", "_first", "_pointer", "_sorted", "array", "ends", "size")

    array: NDArray[np.void]
    #: Where each span ends in the buffer.
    ends: NDArray[np.int64]
    size: int

    def __init__(self, spans: NDArray[np.void]) -> None:
        if spans.dtype != SPAN or spans.ndim != 1:
            raise ValueError("spans must be a one-dimensional SPAN array")
        lengths = spans["length"]
        # A copy in any case: nobody else may change it once it was checked.
        spans = spans.copy() if lengths.all() else spans[lengths != 0]
        spans.flags.writeable = False
        self.array = spans
        self._pointer = ffi.from_buffer(_SPAN, spans)
        self.size = sum(spans["length"].tolist())
        if self.size >= 1 << 63:
            raise ValueError("a buffer of 2**63 bytes or more")
        self.ends = spans["length"].astype(np.int64).cumsum()
        self._count = len(spans)
        self._sorted = memoryview(self.ends.data)  # bisect takes a tenth of searchsorted's time
        self._first = self._sorted[0] if self._count else 0

    @property
    def address(self) -> int:
        """Where the list itself is."""
        return address_of(self.array)

    def _from(self, offset: int) -> tuple[Any, int, int]:
        """Return the tail of the list from the span at an offset on, and the offset in that tail.

        Keeps the C from counting through thousands of pages for each small access.
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
        pointer, count, start = self._from(offset)
        _check(
            lib.vgpud_gather(
                pointer, count, start, stride, buffer, buffer_stride, row_bytes, rows, flags
            )
        )

    def scatter(self, offset: int, stride: int, data: NDArray[Any], flags: int = 0) -> None:
        """Write an array of rows, `stride` bytes apart from `offset` on."""
        buffer, buffer_stride, row_bytes, rows = _rows(data, writable=False)
        pointer, count, start = self._from(offset)
        _check(
            lib.vgpud_scatter(
                pointer, count, start, stride, buffer, buffer_stride, row_bytes, rows, flags
            )
        )

    def fill(self, offset: int, length: int, pattern: int, flags: int = 0) -> None:
        """Repeat a 32-bit little-endian pattern over `length` bytes, its first byte at `offset`."""
        pointer, count, start = self._from(offset)
        _check(lib.vgpud_fill(pointer, count, start, length, pattern, flags))

    def flush(self, offset: int, length: int) -> None:
        """Write back and drop the cache lines of a range; loads after it come from memory."""
        pointer, count, start = self._from(offset)
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
        """Copy a rectangle of another buffer here.

        Without scratch the two must not overlap. With it, they are copied in chunks of its size,
        each read whole before it is written; BACKWARD takes the last chunk first.
        """
        to, to_count, to_start = self._from(offset)
        from_, from_count, from_start = source._from(source_offset)
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
                _NULL if scratch is None else _bytes(scratch, writable=True),
                0 if scratch is None else scratch.nbytes,
                flags,
            )
        )

    def update_tiles(
        self,
        offset: int,
        stride: int,
        shadow: TileShadow,
        x: int,
        y: int,
        width: int,
        height: int,
        *,
        order: tuple[int, int, int, int],
        flags: int = 0,
    ) -> NDArray[np.uint8]:
        """Bring a rectangle of a shadow up to date with rows of pixels here.

        Byte n of the shadow's pixels is byte `order[n]` of ours. Return which of the tiles that the
        rectangle touches have changed, or were not known: (rows, columns) of 0 and 1.
        """
        across, down = TILE
        if not (width and height):
            return np.zeros((0, 0), np.uint8)
        tiles = (
            (y + height - 1) // down - y // down + 1,
            (x + width - 1) // across - x // across + 1,
        )
        changed = np.empty(tiles, np.uint8)
        pointer, count, start = self._from(offset)
        found = lib.vgpud_update_tiles(
            pointer,
            count,
            start,
            stride,
            shadow.pointer,
            x,
            y,
            width,
            height,
            int.from_bytes(bytes(order), "little"),
            _bytes(changed, writable=True),
            flags,
        )
        if found < 0:
            raise ValueError("a rectangle leaves its buffer or the shadow")
        return changed


class TileShadow:
    """A copy of a picture, to compare it with: `pixels` is (height, width, 4) of uint8.

    Nothing of it is known at first: a tile is from when all of it was looked at.
    """

    __slots__ = ("_known", "_scratch", "pixels", "pointer")

    pixels: NDArray[np.uint8]

    def __init__(self, width: int, height: int) -> None:
        across, down = TILE
        self.pixels = np.empty((height, width, 4), np.uint8)
        self._known = np.zeros((-(-height // down), -(-width // across)), np.uint8)
        self._scratch = np.empty((down, width, 4), np.uint8)
        self.pointer = ffi.new("vgpud_shadow *")
        self.pointer.pixels = _bytes(self.pixels, writable=True)
        self.pointer.known = _bytes(self._known, writable=True)
        self.pointer.scratch = _bytes(self._scratch, writable=True)
        self.pointer.width, self.pointer.height = width, height

    @staticmethod
    def size(width: int, height: int) -> int:
        """Return about how many bytes one takes."""
        return (height + TILE[1]) * width * 4


def _check(result: int) -> None:
    if result != 0:
        raise ValueError("a rectangle leaves its buffer, or its rows overlap")


class GuardedMapping:
    """A shared mapping of a file that survives the file's shrinking.

    An access to a lost page finds zeros and turns `faulted` into True. `address` is where the
    mapping is, `length` its length in bytes. Raises OSError as mmap(2) does.
    """

    __slots__ = ("_handle", "address", "length")

    _handle: Any
    address: int
    length: int

    def __init__(self, fd: int, offset: int, length: int, page_size: int, writable: bool) -> None:
        handle = lib.vgpud_map_shared(fd, offset, length, page_size, writable)
        if handle == ffi.NULL:
            raise OSError(ffi.errno, os.strerror(ffi.errno))
        self._handle = handle
        self.address = lib.vgpud_mapping_address(handle)
        self.length = length

    @property
    def faulted(self) -> bool:
        """Whether an access found its page gone."""
        return self._handle is not None and bool(lib.vgpud_mapping_faulted(self._handle))

    def unmap(self) -> None:
        """Unmap; nobody may touch the memory any more. A second call does nothing."""
        handle, self._handle = self._handle, None
        if handle is not None:
            lib.vgpud_unmap(handle)


def punch_hole(fd: int, offset: int, length: int) -> None:
    """Give a file's pages back, so that the range reads as zeros.

    Raises OSError as fallocate(2) does.
    """
    if lib.vgpud_punch_hole(fd, offset, length) != 0:
        raise OSError(ffi.errno, os.strerror(ffi.errno))
