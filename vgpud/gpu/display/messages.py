"""The vhost-user-gpu display protocol: what a back-end tells the front-end to show.

Owns the messages, in both directions, and readers that turn a stream into them: `ReplyReader` for
the back-end, `RequestReader` for a front-end. The back-end asks, the front-end answers some of the
requests. Numbers are in native byte order, but for the virtio structs in two of the replies.

Specification: QEMU, docs/interop/vhost-user-gpu.rst; GET_EDID, DMABUF_SCANOUT2 and the feature bits
as QEMU's hw/display/vhost-user-gpu.c has them.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from enum import IntEnum, IntFlag
from struct import Struct
from typing import TYPE_CHECKING, Final, NoReturn, TypeAlias, assert_never

from vgpud.errors import PeerError
from vgpud.gpu.wire import responses
from vgpud.gpu.wire.header import HEADER_SIZE as VIRTIO_HEADER_SIZE
from vgpud.gpu.wire.header import Bytes, Header
from vgpud.gpu.wire.protocol import ScanoutId

if TYPE_CHECKING:
    from collections.abc import Callable

FLAG_REPLY: Final = 0x4

CURSOR_SIZE: Final = 64
"""Width and height of a cursor's image, pixels; there is no other size."""

CURSOR_BYTES: Final = CURSOR_SIZE * CURSOR_SIZE * 4

_HEADER = Struct("=III")  # request, flags, size
HEADER_SIZE: Final = _HEADER.size
assert HEADER_SIZE == 12


class RequestId(IntEnum):
    """What a back-end may send; a reply bears the number of its request."""

    GET_PROTOCOL_FEATURES = 1
    SET_PROTOCOL_FEATURES = 2
    GET_DISPLAY_INFO = 3
    CURSOR_POS = 4
    CURSOR_POS_HIDE = 5
    CURSOR_UPDATE = 6
    SCANOUT = 7
    UPDATE = 8
    DMABUF_SCANOUT = 9
    DMABUF_UPDATE = 10
    GET_EDID = 11
    DMABUF_SCANOUT2 = 12


class ProtocolFeature(IntFlag):
    """What a front-end may offer beyond the first ten requests."""

    EDID = 1 << 0
    DMABUF2 = 1 << 1


@dataclass(frozen=True, slots=True)
class GetProtocolFeatures:
    """Ask what the front-end can do; answered by ProtocolFeatures."""


@dataclass(frozen=True, slots=True)
class SetProtocolFeatures:
    """Say which of the offered features will be used."""

    features: int


@dataclass(frozen=True, slots=True)
class GetDisplayInfo:
    """Ask for the outputs; answered by responses.DisplayInfo."""


@dataclass(frozen=True, slots=True)
class GetEdid:
    """Ask for an output's EDID; answered by responses.Edid. Needs ProtocolFeature.EDID."""

    scanout_id: ScanoutId


@dataclass(frozen=True, slots=True)
class CursorPos:
    """Show the cursor, and where; u32 as the guest sent it."""

    scanout_id: ScanoutId
    x: int
    y: int


@dataclass(frozen=True, slots=True)
class CursorPosHide:
    """Hide the cursor."""

    scanout_id: ScanoutId
    x: int
    y: int


@dataclass(frozen=True, slots=True)
class CursorUpdate:
    """Show a cursor's image: 64 x 64 pixels of a8r8g8b8 as little-endian u32, rows from the top."""

    scanout_id: ScanoutId
    x: int
    y: int
    hot_x: int
    hot_y: int
    data: bytes


@dataclass(frozen=True, slots=True)
class Scanout:
    """Set an output's size in pixels; 0 x 0 turns it off."""

    scanout_id: ScanoutId
    width: int
    height: int


@dataclass(frozen=True, slots=True)
class Update:
    """New content for a rectangle of an output.

    `encode` makes all of the message but the pixels, which the sender puts behind it uncopied:
    `data_size` bytes of x8r8g8b8, rows without gaps.
    """

    scanout_id: ScanoutId
    x: int
    y: int
    width: int
    height: int

    @property
    def data_size(self) -> int:
        """Bytes of pixels that follow."""
        return self.width * self.height * 4


@dataclass(frozen=True, slots=True)
class DmabufScanout:
    """Set an output's content to a part of a dma-buf, whose fd rides on the message.

    No fd and 0 x 0 turn the output off.
    """

    scanout_id: ScanoutId
    x: int
    y: int
    width: int
    height: int
    fd_width: int
    fd_height: int
    fd_stride: int
    fd_flags: int
    fd_drm_fourcc: int


@dataclass(frozen=True, slots=True)
class DmabufScanout2:
    """DmabufScanout with a format modifier. Needs ProtocolFeature.DMABUF2."""

    scanout_id: ScanoutId
    x: int
    y: int
    width: int
    height: int
    fd_width: int
    fd_height: int
    fd_stride: int
    fd_flags: int
    fd_drm_fourcc: int
    modifier: int


@dataclass(frozen=True, slots=True)
class DmabufUpdate:
    """Present a rectangle of the dma-buf shown; answered by DmabufUpdated, perhaps much later."""

    scanout_id: ScanoutId
    x: int
    y: int
    width: int
    height: int


Request: TypeAlias = (
    GetProtocolFeatures
    | SetProtocolFeatures
    | GetDisplayInfo
    | GetEdid
    | CursorPos
    | CursorPosHide
    | CursorUpdate
    | Scanout
    | Update
    | DmabufScanout
    | DmabufScanout2
    | DmabufUpdate
)


@dataclass(frozen=True, slots=True)
class ProtocolFeatures:
    """The front-end's features, bits that this module does not know included."""

    features: int


@dataclass(frozen=True, slots=True)
class DmabufUpdated:
    """The dma-buf may be drawn to again."""


Reply: TypeAlias = ProtocolFeatures | responses.DisplayInfo | responses.Edid | DmabufUpdated

MAX_UPDATE_SIZE: Final = 256 << 20
"""Pixels that a front-end takes in one Update, bytes: 8192 x 8192, beyond any display of today."""

_REQUESTS: Final[tuple[tuple[RequestId, type[Request], Struct], ...]] = (
    (RequestId.GET_PROTOCOL_FEATURES, GetProtocolFeatures, Struct("=")),
    (RequestId.SET_PROTOCOL_FEATURES, SetProtocolFeatures, Struct("=Q")),
    (RequestId.GET_DISPLAY_INFO, GetDisplayInfo, Struct("=")),
    (RequestId.CURSOR_POS, CursorPos, Struct("=3I")),
    (RequestId.CURSOR_POS_HIDE, CursorPosHide, Struct("=3I")),
    (RequestId.CURSOR_UPDATE, CursorUpdate, Struct(f"=5I{CURSOR_BYTES}s")),
    (RequestId.SCANOUT, Scanout, Struct("=3I")),
    (RequestId.UPDATE, Update, Struct("=5I")),
    (RequestId.DMABUF_SCANOUT, DmabufScanout, Struct("=9Ii")),
    (RequestId.DMABUF_UPDATE, DmabufUpdate, Struct("=5I")),
    (RequestId.GET_EDID, GetEdid, Struct("=I")),
    (RequestId.DMABUF_SCANOUT2, DmabufScanout2, Struct("=9IiQ")),
)
_BY_ID: Final = {int(request_id): (kind, layout) for request_id, kind, layout in _REQUESTS}
_BY_CLASS: Final = {kind: (request_id, layout) for request_id, kind, layout in _REQUESTS}

_U64 = Struct("=Q")


def encode(request: Request) -> bytes:
    """Encode a request, of an Update all but the pixels; ValueError if a cursor's size is wrong."""
    if isinstance(request, CursorUpdate) and len(request.data) != CURSOR_BYTES:
        raise ValueError(f"a cursor of {len(request.data)} bytes, not {CURSOR_BYTES}")
    request_id, layout = _BY_CLASS[type(request)]
    payload = layout.pack(*(getattr(request, field.name) for field in fields(request)))
    size = len(payload) + (request.data_size if isinstance(request, Update) else 0)
    return _HEADER.pack(request_id, 0, size) + payload


def encode_reply(reply: Reply) -> bytes:
    """Encode a reply, as a front-end would."""
    match reply:
        case ProtocolFeatures(features):
            request_id, payload = RequestId.GET_PROTOCOL_FEATURES, _U64.pack(features)
        case responses.DisplayInfo():
            request_id, payload = RequestId.GET_DISPLAY_INFO, responses.encode(reply, Header(0))
        case responses.Edid():
            request_id, payload = RequestId.GET_EDID, responses.encode(reply, Header(0))
        case DmabufUpdated():
            request_id, payload = RequestId.DMABUF_UPDATE, b""
        case _ as unreachable:
            assert_never(unreachable)
    return _HEADER.pack(request_id, FLAG_REPLY, len(payload)) + payload


class _Stream:
    """Cuts a stream into messages; a bad header is found before anything is kept for it."""

    def __init__(self, check: Callable[[int, int, int], None]) -> None:
        self._check = check
        self._buffer = bytearray()
        self._header: tuple[int, int, int] | None = None
        self._error: PeerError | None = None

    def receive_data(self, data: Bytes) -> None:
        """Take bytes as they come off the socket, in pieces of any size."""
        if self._error is None:
            self._buffer += data

    def next_message(self) -> tuple[int, bytes] | None:
        """Return the next message's request number and payload, or None if it is not all there."""
        if self._error is not None:
            raise self._error
        if self._header is None:
            if len(self._buffer) < HEADER_SIZE:
                return None
            self._header = _HEADER.unpack_from(self._buffer)
            try:
                self._check(*self._header)
            except PeerError as error:
                self.fail(error)
        request_id, _flags, size = self._header
        end = HEADER_SIZE + size
        if len(self._buffer) < end:
            return None
        payload = bytes(memoryview(self._buffer)[HEADER_SIZE:end])
        del self._buffer[:end]
        self._header = None
        return request_id, payload

    def fail(self, error: PeerError) -> NoReturn:
        """Close for good: where a message was wrong, nobody knows where the next one begins."""
        self._error = error
        self._buffer.clear()
        raise error


_REPLY_SIZES: Final = {
    int(RequestId.GET_PROTOCOL_FEATURES): _U64.size,
    int(RequestId.GET_DISPLAY_INFO): responses.DISPLAY_INFO_SIZE,
    int(RequestId.GET_EDID): responses.EDID_RESPONSE_SIZE,
    int(RequestId.DMABUF_UPDATE): 0,
}


class ReplyReader:
    """What a front-end answers, as values; whether it was asked is for the caller to know.

    After a PeerError every call raises it again. What is held back is never more than one reply's
    1068 bytes and what was handed in last.
    """

    def __init__(self) -> None:
        self._stream = _Stream(_check_reply)

    def receive_data(self, data: Bytes) -> None:
        """Take bytes as they come off the socket, in pieces of any size."""
        self._stream.receive_data(data)

    def next_reply(self) -> Reply | None:
        """Return the next reply, or None if it is not all there yet; raises PeerError."""
        message = self._stream.next_message()
        if message is None:
            return None
        request_id, payload = message
        match request_id:
            case RequestId.GET_PROTOCOL_FEATURES:
                return ProtocolFeatures(*_U64.unpack(payload))
            case RequestId.GET_DISPLAY_INFO:
                return responses.unpack_display_info(payload[VIRTIO_HEADER_SIZE:])
            case RequestId.GET_EDID:
                return responses.unpack_edid(payload[VIRTIO_HEADER_SIZE:])
            case _:
                return DmabufUpdated()


def _check_reply(request_id: int, flags: int, size: int) -> None:
    expected = _REPLY_SIZES.get(request_id)
    if expected is None or not flags & FLAG_REPLY:
        raise PeerError(f"display: message {request_id} with flags {flags:#x} is no reply")
    if size != expected:
        name = RequestId(request_id).name
        raise PeerError(f"display: reply to {name} of {size} bytes, not {expected}")


class RequestReader:
    """What a back-end sends, as values, for front-ends; after a PeerError every call raises it."""

    def __init__(self) -> None:
        self._stream = _Stream(_check_request)

    def receive_data(self, data: Bytes) -> None:
        """Take bytes as they come off the socket, in pieces of any size."""
        self._stream.receive_data(data)

    def next_request(self) -> tuple[Request, bytes] | None:
        """Return the next request with an Update's pixels (else b""), or None if not all is there.

        Raises PeerError.
        """
        message = self._stream.next_message()
        if message is None:
            return None
        request_id, payload = message
        kind, layout = _BY_ID[request_id]
        request = kind(*layout.unpack_from(payload))
        data = payload[layout.size :]
        if isinstance(request, Update) and request.data_size != len(data):
            self._stream.fail(PeerError(f"display: {request} with {len(data)} bytes of pixels"))
        return request, data


def _check_request(request_id: int, flags: int, size: int) -> None:
    known = _BY_ID.get(request_id)
    if known is None or flags:
        raise PeerError(f"display: message {request_id} with flags {flags:#x} is no request")
    kind, layout = known
    room = MAX_UPDATE_SIZE if kind is Update else 0
    if not layout.size <= size <= layout.size + room:
        name = RequestId(request_id).name
        raise PeerError(f"display: {name} of {size} bytes, the struct has {layout.size}")
