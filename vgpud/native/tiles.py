"""Which tiles of a picture have changed since the last comparison: the facade of tiles.c."""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from vgpud.native._native import ffi, lib
from vgpud.native.arrays import pointer_to
from vgpud.native.spans import SpanList

#: A tile's width and height in pixels.
TILE: Final[tuple[int, int]] = lib.VGPUD_TILE_WIDTH, lib.VGPUD_TILE_HEIGHT


class TileShadow:
    """A copy of a picture, for comparisons with it: `pixels` is (height, width, 4) of uint8.

    All pixels are 0 at first, and no tile is known: a tile is known once all of it was compared.
    """

    __slots__ = ("_known", "_scratch", "_shadow", "pixels")

    pixels: NDArray[np.uint8]

    def __init__(self, pixels: NDArray[np.uint8]) -> None:
        """Make a shadow in an array of zeros."""
        across, down = TILE
        height, width, _ = pixels.shape
        self.pixels = pixels
        self._known = np.zeros((-(-height // down), -(-width // across)), np.uint8)
        self._scratch = np.empty((down, width, 4), np.uint8)
        self._shadow = ffi.new("vgpud_shadow *")
        self._shadow.pixels = pointer_to(self.pixels, writable=True)
        self._shadow.known = pointer_to(self._known, writable=True)
        self._shadow.scratch = pointer_to(self._scratch, writable=True)
        self._shadow.width, self._shadow.height = width, height

    @staticmethod
    def size(width: int, height: int) -> int:
        """Return about how many bytes a shadow takes."""
        return (height + TILE[1]) * width * 4

    def update(
        self,
        spans: SpanList,
        offset: int,
        stride: int,
        x: int,
        y: int,
        width: int,
        height: int,
        *,
        order: tuple[int, int, int, int],
        flags: int = 0,
    ) -> NDArray[np.uint8]:
        """Update a rectangle of the shadow from rows of pixels, `stride` bytes apart from `offset`.

        Byte n of a pixel here is byte `order[n]` of a pixel there. Return which of the tiles that
        the rectangle touches have changed, or were not known: (rows, columns) of 0 and 1.
        Raises ValueError if the rectangle leaves the shadow, or the rows leave their buffer.
        """
        across, down = TILE
        if not (width and height):
            return np.zeros((0, 0), np.uint8)
        tiles = (
            (y + height - 1) // down - y // down + 1,
            (x + width - 1) // across - x // across + 1,
        )
        changed = np.empty(tiles, np.uint8)
        found = lib.vgpud_update_tiles(
            *spans.tail(offset),
            stride,
            self._shadow,
            x,
            y,
            width,
            height,
            int.from_bytes(bytes(order), "little"),
            pointer_to(changed, writable=True),
            flags,
        )
        if found < 0:
            raise ValueError("a rectangle leaves its buffer or the shadow")
        return changed
