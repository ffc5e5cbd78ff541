"""Where two buffers share memory: the facade of overlap.c, in steps.

Each step releases the GIL, and takes a fraction of a millisecond.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from vgpud.native._native import ffi, lib

#: An extent of a buffer: `vgpud_place` of native.h.
PLACE: Final = np.dtype([("start", "<i8"), ("end", "<i8"), ("position", "<i8")])
assert PLACE.itemsize == ffi.sizeof("vgpud_place")

_AT_ONCE: Final = 1 << 15
_PLACES = ffi.typeof("vgpud_place *")
_FIRST: Final = -(1 << 63)


@dataclass(frozen=True, slots=True)
class Overlap:
    """What two lists of places share.

    `twice`: some byte is twice in one list. `shared`: some byte is in both. `later` and `earlier`:
    some byte has a higher, or a lower, position in the second list than in the first; both are only
    right if no byte is twice in one list.
    """

    twice: bool
    shared: bool
    later: bool
    earlier: bool


def sort_steps(
    places: NDArray[np.void], spare: NDArray[np.void] | None = None
) -> Generator[None, None, NDArray[np.void]]:
    """Return a PLACE array in rising order of starts; it is used as scratch, and so is `spare`, of
    the same size."""
    if spare is None:
        spare = np.empty_like(places)
    elif spare.size != places.size:
        raise ValueError("spare must be as large as places")
    state = ffi.new("vgpud_sort *")
    arrays = _pointer(places), _pointer(spare)
    while not lib.vgpud_sort_places(*arrays, len(places), state, _AT_ONCE):
        yield
    return spare if state.swapped else places


def overlap_steps(
    first: NDArray[np.void], second: NDArray[np.void]
) -> Generator[None, None, Overlap]:
    """Compare two sorted PLACE arrays without empty places."""
    state = ffi.new("vgpud_sweep *")
    state.last = state.other_last = _FIRST
    lists = _pointer(first), len(first), _pointer(second), len(second)
    while not lib.vgpud_sweep_places(*lists, state, _AT_ONCE):
        yield
    return Overlap(bool(state.twice), bool(state.shared), bool(state.later), bool(state.earlier))


def _pointer(places: NDArray[np.void]) -> Any:
    if places.dtype != PLACE or places.ndim != 1:
        raise ValueError("places must be a one-dimensional PLACE array")
    return ffi.from_buffer(_PLACES, places)
