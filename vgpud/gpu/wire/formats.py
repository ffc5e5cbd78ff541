"""The eight pixel formats of virtio-GPU's 2D resources, as orders of the same four bytes.

Every format is four bytes a pixel, so each is a permutation of every other. Displays take
x8r8g8b8 as a little-endian u32, which is B, G, R, X in memory. A format's fourth byte, alpha or
unused, is copied to X unchanged, so that the same bytes serve as a8r8g8b8 for cursors.

Specification: virtio 1.3, 5.7.6.8 `enum virtio_gpu_formats`; names spell bytes in memory order.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np

from vgpud.gpu.wire.protocol import Format

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

BYTES_PER_PIXEL: Final = 4
"""The same for all formats."""

# Where B, G, R and the fourth byte are in each format's memory order.
_BGRX: Final[dict[Format, tuple[int, int, int, int]]] = {
    Format.B8G8R8A8_UNORM: (0, 1, 2, 3),
    Format.B8G8R8X8_UNORM: (0, 1, 2, 3),
    Format.A8R8G8B8_UNORM: (3, 2, 1, 0),
    Format.X8R8G8B8_UNORM: (3, 2, 1, 0),
    Format.R8G8B8A8_UNORM: (2, 1, 0, 3),
    Format.R8G8B8X8_UNORM: (2, 1, 0, 3),
    Format.A8B8G8R8_UNORM: (1, 2, 3, 0),
    Format.X8B8G8R8_UNORM: (1, 2, 3, 0),
}
_IDENTITY: Final = (0, 1, 2, 3)
_REVERSAL: Final = (3, 2, 1, 0)

_ALPHA: Final = frozenset(
    {
        Format.B8G8R8A8_UNORM,
        Format.A8R8G8B8_UNORM,
        Format.R8G8B8A8_UNORM,
        Format.A8B8G8R8_UNORM,
    }
)


def is_known(value: int) -> bool:
    """Return whether a number that a guest sent is a `Format`."""
    return value in _BGRX


def has_alpha(pixel_format: Format) -> bool:
    """Return whether the fourth byte is alpha; if not, it is unused."""
    return pixel_format in _ALPHA


def xrgb_order(pixel_format: Format) -> tuple[int, int, int, int]:
    """Return the positions of B, G, R and the fourth byte in a pixel of this format."""
    return _BGRX[pixel_format]


def to_xrgb(pixels: NDArray[np.uint8], pixel_format: Format) -> NDArray[np.uint8]:
    """Reorder pixels of a format to B, G, R, X (pixman's x8r8g8b8).

    `pixels` is uint8 of any shape (..., 4); so is the result, which is `pixels` itself where the
    format is that order already, and otherwise new.
    """
    return _reorder(pixels, _BGRX[pixel_format])


def from_xrgb(pixels: NDArray[np.uint8], pixel_format: Format) -> NDArray[np.uint8]:
    """Reorder pixels from B, G, R, X to a format: what `to_xrgb` undoes."""
    order = _BGRX[pixel_format]
    return _reorder(pixels, tuple(order.index(channel) for channel in range(BYTES_PER_PIXEL)))


def to_rgb(pixels: NDArray[np.uint8], pixel_format: Format) -> NDArray[np.uint8]:
    """Reorder pixels of a format to R, G, B, a new array of shape (..., 3), for pictures."""
    blue, green, red, _ = _BGRX[pixel_format]
    return _gather(pixels, (red, green, blue))


def _reorder(pixels: NDArray[np.uint8], order: tuple[int, ...]) -> NDArray[np.uint8]:
    if order == _IDENTITY:
        return pixels
    if order == _REVERSAL and pixels.flags.c_contiguous:
        # A third of the time of four strided copies.
        return pixels.view(np.uint32).byteswap().view(np.uint8)
    return _gather(pixels, order)


def _gather(pixels: NDArray[np.uint8], order: Sequence[int]) -> NDArray[np.uint8]:
    """Copy channel by channel: as quick as fancy indexing, and the result is always contiguous."""
    gathered = np.empty((*pixels.shape[:-1], len(order)), np.uint8)
    for target, source in enumerate(order):
        gathered[..., target] = pixels[..., source]
    return gathered
