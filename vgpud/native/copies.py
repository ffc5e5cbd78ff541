"""Copies that are timed in C, for `vgpud bench` only: the facade of bench.c."""

from __future__ import annotations

from enum import IntEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vgpud.native._native import ffi, lib
from vgpud.native.arrays import address_of
from vgpud.native.cpu import cpu_features


class Way(IntEnum):
    """How bytes are copied; native.h describes each way."""

    MEMCPY = lib.VGPUD_BENCH_MEMCPY
    MEMCPY_CLWB = lib.VGPUD_BENCH_MEMCPY_CLWB
    MEMCPY_FLUSH = lib.VGPUD_BENCH_MEMCPY_FLUSH
    FLUSH_MEMCPY = lib.VGPUD_BENCH_FLUSH_MEMCPY
    WRITE = lib.VGPUD_BENCH_WRITE
    READ = lib.VGPUD_BENCH_READ


class CopySource(IntEnum):
    """Where the bytes are before each copy; the time to bring them there is not counted."""

    CACHE = lib.VGPUD_BENCH_FROM_CACHE
    MEMORY = lib.VGPUD_BENCH_FROM_MEMORY


def seconds(
    way: Way, source: CopySource, to: NDArray[np.uint8], from_: NDArray[np.uint8], times: int
) -> float:
    """Copy (rows, bytes) of uint8 `times` times; return the seconds that one copy took on average.

    Raises ValueError if the two are of different shapes, if the rows of one have gaps or overlap,
    or if this CPU lacks the instruction.
    """
    if way is Way.MEMCPY_CLWB and "clwb" not in cpu_features():
        raise ValueError("no clwb")
    if to.shape != from_.shape or to.ndim != 2 or not to.size or times < 1:
        raise ValueError("nothing to copy, or different shapes")
    spent = lib.vgpud_bench_copies(
        way, source, *_rows(to), *_rows(from_), to.shape[1], to.shape[0], times
    )
    if spent < 0:
        raise ValueError("rows overlap")
    return float(spent) / times / 1e9


def _rows(array: NDArray[np.uint8]) -> tuple[Any, int]:
    if array.strides[1] != 1 or array.strides[0] < array.shape[1] or not array.flags.writeable:
        raise ValueError("rows must be contiguous, writable, and follow each other")
    return ffi.cast("uint8_t *", address_of(array)), array.strides[0]
