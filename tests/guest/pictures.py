"""The guest programs' deterministic pictures, computed here, and the comparison of screens.

`picture` computes what pixel() in tests/rig/programs/guest.h draws.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Picture = NDArray[np.uint8]


def picture(seed: int, x: int, y: int, width: int, height: int) -> Picture:
    """What the guest draws with `seed` into this rectangle: RGB, shape (height, width, 3)."""
    columns = np.arange(x, x + width, dtype=np.uint32)[None, :]
    rows = np.arange(y, y + height, dtype=np.uint32)[:, None]
    value = columns * np.uint32(0x85EBCA6B) + rows * np.uint32(0xC2B2AE35)
    value += np.uint32(seed * 0x9E3779B1 & 0xFFFFFFFF)
    value ^= value >> np.uint32(15)
    value *= np.uint32(0x2C1B3C6D)
    value ^= value >> np.uint32(12)
    value *= np.uint32(0x297A2D39)
    value ^= value >> np.uint32(15)
    return np.stack([value >> np.uint32(shift) for shift in (16, 8, 0)], axis=-1).astype(np.uint8)


def difference(expected: Picture, seen: Picture) -> str:
    """Empty if the pictures are equal, else how many pixels differ and the box they are in."""
    if expected.shape != seen.shape:
        return f"the picture is {seen.shape}, not {expected.shape}"
    rows, columns = np.nonzero((expected != seen).any(axis=-1))
    if not rows.size:
        return ""
    return (
        f"{rows.size} pixels of {seen.shape[1]}x{seen.shape[0]} differ, "
        f"in x {columns.min()}..{columns.max()}, y {rows.min()}..{rows.max()}"
    )


def settled_difference(
    expected: Picture, look: Callable[[], Picture], patience: float = 2.0
) -> tuple[Picture, str]:
    """Look until the picture is as expected, at most `patience` seconds; return the last look.

    The second value is what differs, as from `difference`.

    Display messages travel on a socket of their own: the guest's fence says nothing about them.
    """
    deadline = time.monotonic() + patience
    while True:
        seen = look()
        differs = difference(expected, seen)
        if not differs or time.monotonic() > deadline:
            return seen, differs
        time.sleep(0.05)
