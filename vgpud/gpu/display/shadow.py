"""What a display has been sent of one scanout, to find out what it need not be sent again.

Owns the copy; how the tiles are compared is told in uapi/tiles.c.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from vgpud.gpu.wire.header import Rect
from vgpud.memory.extents import Extents
from vgpud.native import tiles as native

TILE: Final = native.TILE
"""Width and height in pixels of what is compared as one."""


class Shadow:
    """`width` x `height` pixels of B, G, R, X; nothing is known of them at first."""

    __slots__ = ("_tiles", "height", "width")

    def __init__(self, width: int, height: int) -> None:
        self.width, self.height = width, height
        self._tiles = native.TileShadow(width, height)

    @staticmethod
    def size(width: int, height: int) -> int:
        """Bytes that one takes, about."""
        return native.TileShadow.size(width, height)

    def take(
        self,
        rect: Rect,
        contents: Extents,
        offset: int,
        stride: int,
        order: tuple[int, int, int, int],
    ) -> NDArray[np.uint8]:
        """Brings a rectangle up to date with pixels whose first is at `offset` of a buffer.

        `order` is where B, G, R and X are in them. Returns the tiles that the rectangle touches,
        (rows, columns), 1 where something has changed or was not known and 0 elsewhere. Raises
        `OutOfRange` for pixels that are not in the buffer.
        """
        return contents.update_tiles(
            offset, stride, self._tiles, rect.x, rect.y, rect.width, rect.height, order
        )

    def pixels(self, rect: Rect) -> NDArray[np.uint8]:
        """A part of it, (height, width, 4), without a copy: to be read before the next `take`."""
        return self._tiles.pixels[rect.y : rect.y + rect.height, rect.x : rect.x + rect.width]
