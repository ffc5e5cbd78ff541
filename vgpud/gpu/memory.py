"""Zeroed host memory for a guest's resources."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from vgpud.errors import OutOfMemory


def zeroed(size: int) -> NDArray[np.uint8]:
    """Allocate `size` zero bytes; raise `OutOfMemory` if the host has none."""
    try:
        return np.zeros(size, np.uint8)
    except MemoryError as error:
        raise OutOfMemory(f"the host has no {size} bytes") from error
