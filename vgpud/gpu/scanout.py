"""One scanout: the part of a resource that an output shows.

A scanout has no pixels of its own: it is a view of a resource, which is read for a display or a
screenshot.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from vgpud.gpu.errors import InvalidParameter
from vgpud.gpu.resources import BYTES_PER_PIXEL, Resource
from vgpud.gpu.state import ScanoutState
from vgpud.gpu.wire.formats import xrgb_order
from vgpud.gpu.wire.header import Rect
from vgpud.gpu.wire.protocol import Format
from vgpud.gpu.wire.value import value
from vgpud.memory.steps import Place, cost
from vgpud.native.spans import BYTES_PER_NS
from vgpud.uapi.page import PAGE_SIZE

MAX_SIDE: Final = 16384
"""Pixels of a scanout's width and height: what GPUs scan out at most. A whole picture is 1 GiB
then, which every field of the messages about it can hold."""


FAR: Final = 400
"""Nanoseconds that an extent costs in addition, or a row where each is in a page of its own: such
pages have often not been used before."""

REORDERED: Final = 4
"""How many times as long as reading it takes to reorder bytes of other formats, in addition."""

FLUSHED: Final = 8
"""How many times as long as reading it takes to flush cache lines one by one, in addition."""

_IDENTITY: Final = xrgb_order(Format.B8G8R8X8_UNORM)


@value
class Scanout:
    """What one output shows: `view` of a resource."""

    view: ScanoutState
    resource: Resource

    @property
    def size(self) -> tuple[int, int]:
        """The width and height in pixels."""
        return self.view.rect.width, self.view.rect.height

    @property
    def whole(self) -> Rect:
        """The whole scanout as a rectangle in its own coordinates."""
        return Rect(0, 0, *self.size)

    def pixels(self, rect: Rect) -> NDArray[np.uint8]:
        """Read a part, in the scanout's own coordinates: (height, width, 4) of uint8 as the format
        says.

        Raises `VgpudError` where the resource's backing is gone.
        """
        rows = self.resource.contents().read_rect(
            self.offset_of(rect), self.view.stride, rect.width * BYTES_PER_PIXEL, rect.height
        )
        return rows.reshape(rect.height, rect.width, BYTES_PER_PIXEL)

    def cost(self, rect: Rect) -> int:
        """Return about how many nanoseconds it takes to read a part, also into another order of
        bytes.

        Raises `VgpudError` where the resource's backing is gone.
        """
        contents, stride, offset = self.resource.contents(), self.view.stride, self.offset_of(rect)
        row_bytes = rect.width * BYTES_PER_PIXEL
        total = cost(row_bytes, rect.height, Place(contents, offset, stride))
        if not contents.simple:
            length = (rect.height - 1) * stride + row_bytes
            total += (contents.extents_in(offset, length) - 1) * FAR
        if stride >= max(4 * row_bytes, PAGE_SIZE):
            total += rect.height * FAR
        extra = 0 if xrgb_order(self.view.format) == _IDENTITY else REORDERED
        if contents.access.flush_before_read:
            extra += FLUSHED
        return total + extra * row_bytes * rect.height // BYTES_PER_NS

    def offset_of(self, rect: Rect) -> int:
        """Return where a part begins in the resource, in bytes."""
        x, y = self.view.rect.x + rect.x, self.view.rect.y + rect.y
        return self.view.offset + y * self.view.stride + x * BYTES_PER_PIXEL


def check_side(rect: Rect) -> Rect:
    """Return a scanout's rectangle; raise `InvalidParameter` if it is larger than a picture can
    be."""
    if max(rect.width, rect.height) > MAX_SIDE:
        raise InvalidParameter(
            f"a scanout of {rect.width}x{rect.height} pixels: at most {MAX_SIDE} in each direction"
        )
    return rect
