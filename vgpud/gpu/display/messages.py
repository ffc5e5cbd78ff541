"""The messages of the vhost-user-gpu display protocol.

The back-end sends requests, and the front-end replies to some of them: `encode` makes the former,
`DisplayReplyReader` reads the latter. Numbers are in native byte order, except in the virtio
structs of two of the replies. Not here: DMABUF_SCANOUT, DMABUF_UPDATE and DMABUF_SCANOUT2, which
the daemon does not send.

Source: QEMU, docs/interop/vhost-user-gpu.rst; GET_EDID and the feature bits as QEMU's
hw/display/vhost-user-gpu.c has them.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from enum import IntEnum, IntFlag
from struct import Struct
from typing import Final, TypeAlias

from vgpud.errors import PeerError
from vgpud.gpu.wire import responses
from vgpud.gpu.wire.header import HEADER_SIZE as VIRTIO_HEADER_SIZE
from vgpud.gpu.wire.header import Bytes
from vgpud.gpu.wire.protocol import ScanoutId

FLAG_REPLY: Final = 0x4

CURSOR_SIZE: Final = 64
"""Width and height of a cursor's image, pixels; there is no other size."""

CURSOR_BYTES: Final = CURSOR_SIZE * CURSOR_SIZE * 4

_HEADER = Struct("=III")  # request, flags, size
HEADER_SIZE: Final = _HEADER.size
assert HEADER_SIZE == 12


class DisplayRequestId(IntEnum):
    """The number of a request; a reply has the number of its request."""

    GET_PROTOCOL_FEATURES = 1
    SET_PROTOCOL_FEATURES = 2
    GET_DISPLAY_INFO = 3
    CURSOR_POS = 4
    CURSOR_POS_HIDE = 5
    CURSOR_UPDATE = 6
    SCANOUT = 7
    UPDATE = 8
    GET_EDID = 11


class DisplayFeature(IntFlag):
    """A protocol feature: what a front-end may offer beyond the first ten requests."""

    EDID = 1 << 0


@dataclass(frozen=True, slots=True)
class DisplayGetProtocolFeatures:
    """Asks for the front-end's protocol features; answered by DisplayFeatures."""


@dataclass(frozen=True, slots=True)
class DisplaySetProtocolFeatures:
    """Acknowledges the offered features that will be used."""

    features: int


@dataclass(frozen=True, slots=True)
class DisplayGetInfo:
    """Asks for the outputs' modes; answered by responses.DisplayInfo."""


@dataclass(frozen=True, slots=True)
class DisplayGetEdid:
    """Asks for an output's EDID; answered by responses.Edid. Needs DisplayFeature.EDID."""

    scanout_id: ScanoutId


@dataclass(frozen=True, slots=True)
class DisplayCursorMove:
    """CURSOR_POS: shows the cursor at a position; u32 as the guest sent it."""

    scanout_id: ScanoutId
    x: int
    y: int


@dataclass(frozen=True, slots=True)
class DisplayCursorHide:
    """CURSOR_POS_HIDE: hides the cursor."""

    scanout_id: ScanoutId
    x: int
    y: int


@dataclass(frozen=True, slots=True)
class DisplayCursorUpdate:
    """Sets a cursor's image: 64 x 64 pixels of a8r8g8b8 as little-endian u32, from the top."""

    scanout_id: ScanoutId
    x: int
    y: int
    hot_x: int
    hot_y: int
    data: bytes


@dataclass(frozen=True, slots=True)
class DisplayScanout:
    """Sets an output's size in pixels; 0 x 0 turns it off."""

    scanout_id: ScanoutId
    width: int
    height: int


@dataclass(frozen=True, slots=True)
class DisplayUpdate:
    """Replaces the pixels of a rectangle of an output.

    `encode` makes all of the message but the pixels, which the sender appends uncopied:
    `data_size` bytes of x8r8g8b8, rows without gaps.
    """

    scanout_id: ScanoutId
    x: int
    y: int
    width: int
    height: int

    @property
    def data_size(self) -> int:
        """The size of the pixels that follow, in bytes."""
        return self.width * self.height * 4


DisplayRequest: TypeAlias = (
    DisplayGetProtocolFeatures
    | DisplaySetProtocolFeatures
    | DisplayGetInfo
    | DisplayGetEdid
    | DisplayCursorMove
    | DisplayCursorHide
    | DisplayCursorUpdate
    | DisplayScanout
    | DisplayUpdate
)


@dataclass(frozen=True, slots=True)
class DisplayFeatures:
    """The front-end's protocol features, including bits that this module does not know."""

    features: int


DisplayReply: TypeAlias = DisplayFeatures | responses.DisplayInfo | responses.Edid

_REQUESTS: Final[tuple[tuple[DisplayRequestId, type[DisplayRequest], Struct], ...]] = (
    (DisplayRequestId.GET_PROTOCOL_FEATURES, DisplayGetProtocolFeatures, Struct("=")),
    (DisplayRequestId.SET_PROTOCOL_FEATURES, DisplaySetProtocolFeatures, Struct("=Q")),
    (DisplayRequestId.GET_DISPLAY_INFO, DisplayGetInfo, Struct("=")),
    (DisplayRequestId.CURSOR_POS, DisplayCursorMove, Struct("=3I")),
    (DisplayRequestId.CURSOR_POS_HIDE, DisplayCursorHide, Struct("=3I")),
    (DisplayRequestId.CURSOR_UPDATE, DisplayCursorUpdate, Struct(f"=5I{CURSOR_BYTES}s")),
    (DisplayRequestId.SCANOUT, DisplayScanout, Struct("=3I")),
    (DisplayRequestId.UPDATE, DisplayUpdate, Struct("=5I")),
    (DisplayRequestId.GET_EDID, DisplayGetEdid, Struct("=I")),
)
_BY_CLASS: Final = {kind: (request_id, layout) for request_id, kind, layout in _REQUESTS}

_U64 = Struct("=Q")


def encode(request: DisplayRequest) -> bytes:
    """Return a request as bytes, a DisplayUpdate without its pixels.

    Raises `ValueError` for a cursor's image of a wrong size.
    """
    if isinstance(request, DisplayCursorUpdate) and len(request.data) != CURSOR_BYTES:
        raise ValueError(f"a cursor of {len(request.data)} bytes, not {CURSOR_BYTES}")
    request_id, layout = _BY_CLASS[type(request)]
    payload = layout.pack(*(getattr(request, field.name) for field in fields(request)))
    size = len(payload) + (request.data_size if isinstance(request, DisplayUpdate) else 0)
    return _HEADER.pack(request_id, 0, size) + payload


def request_name(request: DisplayRequest) -> str:
    """Return the request's name in the specification."""
    return _BY_CLASS[type(request)][0].name


_REPLY_SIZES: Final = {
    int(DisplayRequestId.GET_PROTOCOL_FEATURES): _U64.size,
    int(DisplayRequestId.GET_DISPLAY_INFO): responses.DISPLAY_INFO_SIZE,
    int(DisplayRequestId.GET_EDID): responses.EDID_RESPONSE_SIZE,
}


class DisplayReplyReader:
    """Cuts a stream into the front-end's replies; whether they were asked for is for the caller to
    check.

    After a PeerError every call raises it again. The reader buffers at most one reply's 1068 bytes
    and the last piece that it received.
    """

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._header: tuple[int, int, int] | None = None
        self._error: PeerError | None = None

    def receive_data(self, data: Bytes) -> None:
        """Take bytes as they come off the socket, in pieces of any size."""
        if self._error is None:
            self._buffer += data

    def next_reply(self) -> DisplayReply | None:
        """Return the next reply, or None if it is not all there yet; raise PeerError."""
        if self._error is not None:
            raise self._error.with_traceback(None)
        if self._header is None:
            if len(self._buffer) < HEADER_SIZE:
                return None
            self._header = _HEADER.unpack_from(self._buffer)
            self._check_header(*self._header)
        request_id, _flags, size = self._header
        end = HEADER_SIZE + size
        if len(self._buffer) < end:
            return None
        payload = bytes(memoryview(self._buffer)[HEADER_SIZE:end])
        del self._buffer[:end]
        self._header = None
        return _decode_reply(request_id, payload)

    def _check_header(self, request_id: int, flags: int, size: int) -> None:
        """Raise PeerError for a bad header, before anything is buffered for it.

        After a bad message it is not known where the next one begins: the reader stays closed.
        """
        expected = _REPLY_SIZES.get(request_id)
        if expected is None or not flags & FLAG_REPLY:
            error = f"display: message {request_id} with flags {flags:#x} is no reply"
        elif size != expected:
            name = DisplayRequestId(request_id).name
            error = f"display: reply to {name} of {size} bytes, not {expected}"
        else:
            return
        self._error = PeerError(error)
        self._buffer.clear()
        raise self._error


def _decode_reply(request_id: int, payload: bytes) -> DisplayReply:
    match request_id:
        case DisplayRequestId.GET_PROTOCOL_FEATURES:
            return DisplayFeatures(*_U64.unpack(payload))
        case DisplayRequestId.GET_DISPLAY_INFO:
            return responses.unpack_display_info(payload[VIRTIO_HEADER_SIZE:])
        case _:
            return responses.unpack_edid(payload[VIRTIO_HEADER_SIZE:])
