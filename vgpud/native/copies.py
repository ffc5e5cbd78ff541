"""Copies on the native side of the border, timed there: for `vgpud bench` only.

Owns the facade of bench.c, as `native.spans` does of the rest: `Any` stops here.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vgpud.native._native import ffi, lib
from vgpud.native.spans import address_of, cpu_features


class Way(IntEnum):
    """How bytes are copied; bench.c has the details."""

    MEMCPY = lib.VGPUD_BENCH_MEMCPY
    MEMCPY_CLWB = lib.VGPUD_BENCH_MEMCPY_CLWB
    MEMCPY_FLUSH = lib.VGPUD_BENCH_MEMCPY_FLUSH
    FLUSH_MEMCPY = lib.VGPUD_BENCH_FLUSH_MEMCPY
    WRITE = lib.VGPUD_BENCH_WRITE
    READ = lib.VGPUD_BENCH_READ


class Source(IntEnum):
    """Where the bytes are before each copy; to bring them there takes none of its time."""

    CACHE = lib.VGPUD_BENCH_FROM_CACHE
    MEMORY = lib.VGPUD_BENCH_FROM_MEMORY


def seconds(
    way: Way, source: Source, to: NDArray[np.uint8], from_: NDArray[np.uint8], times: int
) -> float:
    """Copy (rows, bytes) of uint8 `times` times, and return the seconds that one took on average.

    ValueError if the two are of different shapes, one's rows have gaps in them or overlap, or this
    CPU lacks the instruction.
    """
    if way is Way.MEMCPY_CLWB and "clwb" not in cpu_features():
        raise ValueError("no clwb")
    if to.shape != from_.shape or to.ndim != 2 or not to.size or times < 1:
        raise ValueError("nothing to copy, or not as much as there is room for")
    spent = lib.vgpud_bench_copies(
        way, source, *_place(to), *_place(from_), to.shape[1], to.shape[0], times
    )
    if spent < 0:
        raise ValueError("rows overlap")
    return float(spent) / times / 1e9


def _place(array: NDArray[np.uint8]) -> tuple[Any, int]:
    if array.strides[1] != 1 or array.strides[0] < array.shape[1] or not array.flags.writeable:
        raise ValueError("rows must be contiguous, writable, and follow each other")
    return ffi.cast("uint8_t *", address_of(array)), array.strides[0]
