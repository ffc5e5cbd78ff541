"""The front-end's side of the display protocol's messages, for tests.

Layouts and numbers are written out here once more, so that a wrong one in the package is noticed.
"""

from __future__ import annotations

import struct

from vgpud.errors import PeerError
from vgpud.gpu.display.messages import (
    CURSOR_BYTES,
    HEADER_SIZE,
    DisplayCursorHide,
    DisplayCursorMove,
    DisplayCursorUpdate,
    DisplayFeatures,
    DisplayGetEdid,
    DisplayGetInfo,
    DisplayGetProtocolFeatures,
    DisplayReply,
    DisplayRequest,
    DisplayScanout,
    DisplaySetProtocolFeatures,
    DisplayUpdate,
)
from vgpud.gpu.wire import responses
from vgpud.gpu.wire.header import Bytes, Header

_REQUESTS: dict[int, tuple[type[DisplayRequest], str]] = {
    1: (DisplayGetProtocolFeatures, "="),
    2: (DisplaySetProtocolFeatures, "=Q"),
    3: (DisplayGetInfo, "="),
    4: (DisplayCursorMove, "=3I"),
    5: (DisplayCursorHide, "=3I"),
    6: (DisplayCursorUpdate, f"=5I{CURSOR_BYTES}s"),
    7: (DisplayScanout, "=3I"),
    8: (DisplayUpdate, "=5I"),
    11: (DisplayGetEdid, "=I"),
}


def encode_reply(reply: DisplayReply) -> bytes:
    """Return a reply as bytes."""
    match reply:
        case DisplayFeatures(features):
            number, payload = 1, struct.pack("=Q", features)
        case responses.DisplayInfo():
            number, payload = 3, responses.encode(reply, Header(0))
        case responses.Edid():
            number, payload = 11, responses.encode(reply, Header(0))
    return struct.pack("=III", number, 4, len(payload)) + payload


class DisplayRequestReader:
    """Cuts a stream into the back-end's requests."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def receive_data(self, data: Bytes) -> None:
        self._buffer += data

    def next_request(self) -> tuple[DisplayRequest, bytes] | None:
        """Return the next request with an update's pixels (else b""), or None if it is not all
        there; raise PeerError for a malformed one."""
        if len(self._buffer) < HEADER_SIZE:
            return None
        number, flags, size = struct.unpack_from("=III", self._buffer)
        if number not in _REQUESTS or flags:
            raise PeerError(f"message {number} with flags {flags:#x} is no request")
        kind, layout = _REQUESTS[number]
        fixed = struct.calcsize(layout)
        if size < fixed or (kind is not DisplayUpdate and size != fixed):
            raise PeerError(f"{kind.__name__} of {size} bytes, the struct has {fixed}")
        end = HEADER_SIZE + size
        if len(self._buffer) < end:
            return None
        payload = bytes(self._buffer[HEADER_SIZE:end])
        del self._buffer[:end]
        request = kind(*struct.unpack_from(layout, payload))
        pixels = payload[fixed:]
        if isinstance(request, DisplayUpdate) and request.data_size != len(pixels):
            raise PeerError(f"{request} with {len(pixels)} bytes of pixels")
        return request, pixels
