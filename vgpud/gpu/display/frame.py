"""A frame on its way to a display: DisplayUpdate messages as a stream of bytes.

The pixels are read from a shadow while the frame is being sent. So before the shadow changes, what
has not been sent has to be detached from it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from vgpud.gpu.display import messages
from vgpud.gpu.wire.header import Rect
from vgpud.gpu.wire.protocol import ScanoutId
from vgpud.memory.pages import zeroed

BYTES_PER_PIXEL: Final = 4

STEP: Final = 4 << 20
"""Bytes that one step of `detach` copies: a fraction of a millisecond."""


@dataclass(slots=True, eq=False)
class _Part:
    """A message: row number `row` of the rectangle is the next to be sent, and `pixels`,
    (rows, width, 4), begin with row number `first`."""

    rect: Rect
    pixels: NDArray[np.uint8]
    first: int = 0
    row: int = 0
    begun: bool = False


class Frame:
    """Rectangles of a scanout, a message each, and their pixels: (height, width, 4) of B, G, R,
    X."""

    def __init__(
        self, scanout_id: ScanoutId, parts: Sequence[tuple[Rect, NDArray[np.uint8]]]
    ) -> None:
        self.updates = len(parts)
        self.detached = False
        self._scanout_id = scanout_id
        self._parts = deque(_Part(rect, pixels) for rect, pixels in parts)

    @property
    def pixel_bytes(self) -> int:
        """The size of the pixels that are still to be sent."""
        return sum(
            (part.rect.height - part.row) * part.rect.width * BYTES_PER_PIXEL
            for part in self._parts
        )

    def fill(self, buffer: NDArray[np.uint8]) -> int:
        """Copy the next bytes of the stream to a buffer that has room for any row and its header;
        return how many, 0 at the end."""
        at = 0
        while self._parts:
            part = self._parts[0]
            row_bytes = part.rect.width * BYTES_PER_PIXEL
            header = b"" if part.begun else self._header(part.rect)
            rows = min((len(buffer) - at - len(header)) // row_bytes, part.rect.height - part.row)
            if rows <= 0:
                break
            buffer[at : at + len(header)] = np.frombuffer(header, np.uint8)
            at += len(header)
            begin = part.row - part.first
            shape = rows, part.rect.width, BYTES_PER_PIXEL
            buffer[at : at + rows * row_bytes].reshape(shape)[:] = part.pixels[begin : begin + rows]
            at += rows * row_bytes
            part.row += rows
            part.begun = True
            if part.row == part.rect.height:
                self._parts.popleft()
        return at

    def drop_rest(self) -> None:
        """Drop the messages that have not begun; the display expects all of one that has."""
        self._parts = deque(part for part in self._parts if part.begun)

    def detach(self) -> Iterator[None]:
        """Copy the pixels that are still to be sent, in steps, between which `fill` may be
        called."""
        for part in list(self._parts):
            first = part.row
            source = part.pixels[first - part.first :]
            copy = zeroed(source.nbytes).reshape(source.shape)
            rows = max(STEP // (part.rect.width * BYTES_PER_PIXEL), 1)
            for begin in range(0, len(copy), rows):
                copy[begin : begin + rows] = source[begin : begin + rows]
                yield
            part.pixels, part.first = copy, first
        self.detached = True

    def _header(self, rect: Rect) -> bytes:
        update = messages.DisplayUpdate(self._scanout_id, rect.x, rect.y, rect.width, rect.height)
        return messages.encode(update)
