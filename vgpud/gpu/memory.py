"""Host memory of the daemon's own that a guest asked for."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from vgpud.errors import OutOfMemory


def zeroed(size: int) -> NDArray[np.uint8]:
    """Host memory of our own, zeros; raises `OutOfMemory` where there is none."""
    try:
        return np.zeros(size, np.uint8)
    except MemoryError as error:
        raise OutOfMemory(f"the host has no {size} bytes") from error
