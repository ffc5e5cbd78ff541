"""Addresses of numpy arrays: how the facades hand an array's memory to C."""

from __future__ import annotations

from typing import Any

from numpy.typing import NDArray

from vgpud.native._native import ffi

_U8 = ffi.typeof("uint8_t *")


def address_of(array: NDArray[Any]) -> int:
    """Return the address of an array's first element; it holds for as long as the array lives."""
    address: int = array.__array_interface__["data"][0]
    return address


def pointer_to(array: NDArray[Any], *, writable: bool) -> Any:
    """Return a cffi pointer to the bytes of an array, which the pointer keeps alive.

    Raises ValueError if the array is not contiguous, or is read-only though it must be `writable`.
    """
    try:
        return ffi.from_buffer(_U8, array, require_writable=writable)
    except BufferError as error:
        raise ValueError(str(error)) from error
