"""The shadow of one scanout: a copy of the pixels that a display has been sent.

The comparison of tiles is native/tiles.c.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from vgpud.gpu.wire.header import Rect
from vgpud.memory.extents import Extents
from vgpud.memory.pages import zeroed
from vgpud.native import tiles as native

TILE: Final = native.TILE
"""A tile's width and height in pixels; tiles are compared as a whole."""


class Shadow:
    """`width` x `height` pixels of B, G, R, X, all of them unknown at first."""

    __slots__ = ("_tiles", "height", "width")

    def __init__(self, width: int, height: int) -> None:
        self.width, self.height = width, height
        self._tiles = native.TileShadow(zeroed(width * height * 4).reshape(height, width, 4))

    @staticmethod
    def size(width: int, height: int) -> int:
        """Return how many bytes a shadow takes, about."""
        return native.TileShadow.size(width, height)

    def take(
        self,
        rect: Rect,
        contents: Extents,
        offset: int,
        stride: int,
        order: tuple[int, int, int, int],
    ) -> NDArray[np.uint8]:
        """Bring a rectangle up to date with pixels that begin at `offset` of a buffer.

        `order` is the position of B, G, R and X in a pixel. Returns the tiles that the rectangle
        touches, (rows, columns): 1 where a pixel has changed or was unknown, 0 elsewhere. Raises
        `OutOfRange` for pixels that are not in the buffer.
        """
        return contents.update_tiles(
            offset, stride, self._tiles, rect.x, rect.y, rect.width, rect.height, order
        )

    def pixels(self, rect: Rect) -> NDArray[np.uint8]:
        """Return a rectangle, (height, width, 4), as a view that is valid until the next `take`."""
        return self._tiles.pixels[rect.y : rect.y + rect.height, rect.x : rect.x + rect.width]
