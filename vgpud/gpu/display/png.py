"""PNG files: 8 bits of R, G and B a pixel, no filter, no interlace.

Source: the PNG specification (ISO/IEC 15948), 5 "Datastream
structure" and 11.2 "Critical chunks".
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterable, Iterator
from typing import Final

import numpy as np
from numpy.typing import NDArray

_SIGNATURE: Final = b"\x89PNG\r\n\x1a\n"
_BITS, _COLOUR_RGB = 8, 2
_CHUNK: Final = 64 << 10  # bytes of pixels in a chunk, about
_LEVEL: Final = 1  # of compression: others take several times as long, for little


def encode(picture: NDArray[np.uint8]) -> bytes:
    """Return `picture`, (height, width, 3) of R, G, B, as a file's contents."""
    height, width, _ = picture.shape
    return b"".join(stream(width, height, [picture]))


def stream(width: int, height: int, blocks: Iterable[NDArray[np.uint8]]) -> Iterator[bytes]:
    """Yield a file's contents in parts; each block is some rows, (rows, width, 3) of R, G, B."""
    yield _SIGNATURE
    yield _chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, _BITS, _COLOUR_RGB, 0, 0, 0))
    compressor, packed = zlib.compressobj(_LEVEL), b""
    for block in blocks:
        # Each row begins with the number of its filter.
        rows = np.zeros((len(block), 1 + 3 * width), np.uint8)
        rows[:, 1:] = block.reshape(len(block), 3 * width)
        packed += compressor.compress(rows.data)
        if len(packed) >= _CHUNK:
            yield _chunk(b"IDAT", packed)
            packed = b""
    yield _chunk(b"IDAT", packed + compressor.flush())
    yield _chunk(b"IEND", b"")


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
