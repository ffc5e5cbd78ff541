"""Words that another program accesses at the same time: the facade of shared_words.c."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from vgpud.native._native import ffi, lib
from vgpud.native.arrays import pointer_to

_U16 = ffi.typeof("uint16_t *")


class SharedU16:
    """A little-endian 16-bit word in shared memory: loads acquire, stores release.

    Make one for each ring index and keep it: making it takes longer than an access. It keeps the
    array, and so the mapping, alive. Raises ValueError for an odd address (a word across two cache
    lines is not atomic) and IndexError outside the array.
    """

    __slots__ = ("_array", "_word")

    def __init__(self, array: NDArray[np.uint8], byte_offset: int = 0) -> None:
        if not 0 <= byte_offset <= array.nbytes - 2:
            raise IndexError(f"no 16-bit word at byte {byte_offset} of {array.nbytes}")
        self._array = pointer_to(array, writable=True)
        self._word = ffi.cast(_U16, self._array + byte_offset)
        if int(ffi.cast("uintptr_t", self._word)) % 2:
            raise ValueError("a shared word must be aligned")

    def load(self) -> int:
        """Load; what the other side wrote before it stored this value is visible afterwards."""
        value: int = lib.vgpud_load_acquire_u16(self._word)
        return value

    def store(self, value: int) -> None:
        """Store the low 16 bits; who loads them sees all that was written before."""
        lib.vgpud_store_release_u16(self._word, value & 0xFFFF)


def full_fence() -> None:
    """Order all loads and stores before it with all after it, also a store with a later load."""
    lib.vgpud_full_fence()
