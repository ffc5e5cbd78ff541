"""Host memory for a guest's resources and pictures."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Final

import numpy as np
from numpy.typing import NDArray

from vgpud.errors import OutOfMemory


def zeroed(size: int) -> NDArray[np.uint8]:
    """Allocate `size` zero bytes; raise `OutOfMemory` if the host has none."""
    try:
        return np.zeros(size, np.uint8)
    except MemoryError as error:
        raise OutOfMemory(f"the host has no {size} bytes") from error


FREE_IN_THREAD: Final = 32 << 20
"""Bytes from which pages are freed in a thread: half a millisecond."""


def free(held: list[NDArray[np.uint8]]) -> None:
    """Empty a list that has the last references to arrays, in a thread if they are large."""
    if sum(array.nbytes for array in held) >= FREE_IN_THREAD:
        with suppress(RuntimeError):  # the loop is being closed
            asyncio.get_running_loop().run_in_executor(None, held.clear)
            return
    held.clear()
