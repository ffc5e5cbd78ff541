"""The bits of a dirty log, which a front-end may clear at the same time: the facade of dirty_log.c.

Pages beyond the log are left out. Each call is a full barrier: a front-end that sees a bit sees
what was written before the call.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from vgpud.native._native import ffi, lib
from vgpud.native.arrays import pointer_to
from vgpud.native.spans import SpanList

_ADDRESSES: Final = ffi.typeof("uint64_t *")


def dirty_log_set(bitmap: NDArray[np.uint8], first_page: int, pages: int) -> None:
    """Set the bits of `pages` pages."""
    lib.vgpud_dirty_log_set(pointer_to(bitmap, writable=True), bitmap.nbytes, first_page, pages)


def dirty_log_rect(
    bitmap: NDArray[np.uint8],
    spans: SpanList,
    addresses: NDArray[np.uint64],
    offset: int,
    stride: int,
    row_bytes: int,
    rows: int,
) -> None:
    """Set the bits of the pages of a rectangle that has been written.

    `addresses` are the guest-physical addresses of the spans, one for each. Raises ValueError if
    the rectangle leaves its buffer.
    """
    if addresses.shape != spans.array.shape or addresses.dtype != np.uint64:
        raise ValueError("one guest address for each span is needed")
    pointer, count, start = spans.tail(offset)
    first = len(addresses) - count
    done = lib.vgpud_dirty_log_rect(
        pointer_to(bitmap, writable=True),
        bitmap.nbytes,
        pointer,
        ffi.from_buffer(_ADDRESSES, addresses) + first,
        count,
        start,
        stride,
        row_bytes,
        rows,
    )
    if done != 0:
        raise ValueError("a rectangle leaves its buffer, or its rows overlap")
