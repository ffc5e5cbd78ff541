"""PNG files: 8 bits of R, G and B a pixel, no filter, no interlace.

Source: the PNG specification (ISO/IEC 15948), 5 "Datastream
structure" and 11.2 "Critical chunks".
"""

from __future__ import annotations

import struct
import zlib
from typing import Final

import numpy as np
from numpy.typing import NDArray

_SIGNATURE: Final = b"\x89PNG\r\n\x1a\n"
_BITS, _COLOUR_RGB = 8, 2


def encode(picture: NDArray[np.uint8]) -> bytes:
    """Return `picture`, (height, width, 3) of R, G, B, as a file's contents."""
    height, width, _ = picture.shape
    header = struct.pack(">IIBBBBB", width, height, _BITS, _COLOUR_RGB, 0, 0, 0)
    # Each row begins with the number of its filter.
    rows = np.zeros((height, 1 + 3 * width), np.uint8)
    rows[:, 1:] = picture.reshape(height, 3 * width)
    chunks = (
        _chunk(b"IHDR", header),
        _chunk(b"IDAT", zlib.compress(rows.tobytes())),
        _chunk(b"IEND", b""),
    )
    return _SIGNATURE + b"".join(chunks)


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
