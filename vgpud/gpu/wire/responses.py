"""Responses to and from bytes, and the device's configuration space.

Each response is a value without a header: `encode` makes one out of the command's own, so that no
path can forget to echo a fence.

Specification: virtio 1.3, 5.7.4 "Device configuration layout", 5.7.6.7 to 5.7.6.9.
"""

from __future__ import annotations

from dataclasses import dataclass
from struct import Struct
from typing import TYPE_CHECKING, Final, TypeAlias, assert_never

from vgpud.gpu.wire.header import HEADER_SIZE, Bytes, Header, Rect, decode_header, echo
from vgpud.gpu.wire.protocol import MAX_SCANOUTS, ResponseType

if TYPE_CHECKING:
    from collections.abc import Callable

EDID_SIZE: Final = 1024
"""Room for an EDID in OK_EDID, bytes: eight blocks."""

UUID_SIZE: Final = 16
"""Bytes of a resource's UUID."""

_CONFIG = Struct("<IIIII")  # events_read, events_clear, num_scanouts, num_capsets, blob_alignment
_DISPLAY_ONE = Struct("<IIIIII")  # rect, enabled, flags
_CAPSET_INFO = Struct("<III4x")  # capset_id, capset_max_version, capset_max_size
_EDID = Struct(f"<I4x{EDID_SIZE}s")  # size, edid
_MAP_INFO = Struct("<I4x")  # map_info

DISPLAY_INFO_SIZE: Final = HEADER_SIZE + MAX_SCANOUTS * _DISPLAY_ONE.size
EDID_RESPONSE_SIZE: Final = HEADER_SIZE + _EDID.size
"""Bytes of a whole OK_DISPLAY_INFO and a whole OK_EDID."""
assert (DISPLAY_INFO_SIZE, EDID_RESPONSE_SIZE) == (408, 1056)

CONFIG_SIZE: Final = _CONFIG.size
assert CONFIG_SIZE == 20


@dataclass(frozen=True, slots=True)
class OkNoData:
    """Done."""


@dataclass(frozen=True, slots=True)
class DisplayMode:
    """One output: its position and preferred size in pixels, and whether anything is plugged in."""

    rect: Rect
    enabled: bool
    flags: int = 0


@dataclass(frozen=True, slots=True)
class DisplayInfo:
    """All outputs, by scanout id. Fewer than 16 are filled up with disabled ones on the wire."""

    modes: tuple[DisplayMode, ...]


@dataclass(frozen=True, slots=True)
class CapsetInfo:
    """What capability set is at the index asked for; its size in bytes."""

    capset_id: int
    max_version: int
    max_size: int


@dataclass(frozen=True, slots=True)
class CapsetData:
    """A capability set, whose layout depends on its id."""

    data: bytes


@dataclass(frozen=True, slots=True)
class Edid:
    """An output's EDID, at most 1024 bytes."""

    data: bytes


@dataclass(frozen=True, slots=True)
class ResourceUuid:
    """The 16 bytes of a resource's UUID."""

    uuid: bytes


@dataclass(frozen=True, slots=True)
class MappedBlob:
    """How the guest is to map a blob that has just been mapped: a `protocol.MapInfo`."""

    map_info: int


@dataclass(frozen=True, slots=True)
class Error:
    """The command was not done; `code` is one of `protocol.ResponseType`'s ERR_*."""

    code: int


Response: TypeAlias = (
    OkNoData | DisplayInfo | CapsetInfo | CapsetData | Edid | ResourceUuid | MappedBlob | Error
)

_OK_NODATA: Final = int(ResponseType.OK_NODATA)
_UNPLUGGED = DisplayMode(Rect(0, 0, 0, 0), enabled=False)


def encode(response: Response, header: Header) -> bytes:
    """Encode the response to the command that came with `header`, echoing its fence.

    Raises ValueError if a value does not fit its field; no request of a guest causes that.
    """
    match response:
        case OkNoData():  # first, as nearly all are
            return echo(header, _OK_NODATA)
        case Error(code):
            return _message(header, code, b"")
        case MappedBlob(map_info):
            return _message(header, ResponseType.OK_MAP_INFO, _MAP_INFO.pack(map_info))
        case DisplayInfo(modes):
            return _message(header, ResponseType.OK_DISPLAY_INFO, _pack_modes(modes))
        case CapsetInfo(capset_id, version, size):
            body = _CAPSET_INFO.pack(capset_id, version, size)
            return _message(header, ResponseType.OK_CAPSET_INFO, body)
        case CapsetData(data):
            return _message(header, ResponseType.OK_CAPSET, data)
        case Edid(data):
            if len(data) > EDID_SIZE:
                raise ValueError(f"an EDID of {len(data)} bytes, {EDID_SIZE} is the most")
            return _message(header, ResponseType.OK_EDID, _EDID.pack(len(data), data))
        case ResourceUuid(uuid):
            if len(uuid) != UUID_SIZE:
                raise ValueError(f"a UUID of {len(uuid)} bytes, not {UUID_SIZE}")
            return _message(header, ResponseType.OK_RESOURCE_UUID, uuid)
        case _ as unreachable:
            assert_never(unreachable)


def decode(message: Bytes) -> tuple[Header, Response]:
    """Decode a response, as a driver would.

    Raises ValueError if it is short or of no known type.
    """
    header = decode_header(message)
    if header is None:
        raise ValueError(f"a response of {len(message)} bytes, a header is {HEADER_SIZE}")
    return header, decode_body(header.type, bytes(message[HEADER_SIZE:]))


def decode_body(response_type: int, body: bytes) -> Response:
    """Decode what follows a response's header; raises ValueError as `decode` does."""
    if response_type & ~0xFF == ResponseType.ERR_UNSPEC:
        return Error(response_type)
    decoder = _DECODERS.get(response_type)
    if decoder is None:
        raise ValueError(f"unknown response {response_type:#06x}")
    size, build = decoder
    if len(body) < size:
        name = ResponseType(response_type).name
        raise ValueError(f"{name}: {len(body)} bytes after the header, the struct has {size}")
    return build(body)


def config_space(
    *, events_read: int, num_scanouts: int, num_capsets: int, blob_alignment: int
) -> bytes:
    """Return the 20 bytes of the configuration space; `events_clear` reads as zero.

    `blob_alignment` is in bytes; a driver that did not negotiate BLOB_ALIGNMENT reads 16 bytes.
    """
    return _CONFIG.pack(events_read, 0, num_scanouts, num_capsets, blob_alignment)


def _message(header: Header, response_type: int, body: bytes) -> bytes:
    return echo(header, response_type) + body


def _pack_modes(modes: tuple[DisplayMode, ...]) -> bytes:
    if len(modes) > MAX_SCANOUTS:
        raise ValueError(f"{len(modes)} outputs, {MAX_SCANOUTS} is the most")
    padded = modes + (_UNPLUGGED,) * (MAX_SCANOUTS - len(modes))
    return b"".join(
        _DISPLAY_ONE.pack(
            mode.rect.x,
            mode.rect.y,
            mode.rect.width,
            mode.rect.height,
            mode.enabled,
            mode.flags,
        )
        for mode in padded
    )


def unpack_display_info(body: bytes) -> DisplayInfo:
    """Read the outputs of an OK_DISPLAY_INFO whose header is off; 384 bytes or more."""
    ones = _DISPLAY_ONE.iter_unpack(body[: MAX_SCANOUTS * _DISPLAY_ONE.size])
    return DisplayInfo(
        tuple(DisplayMode(Rect(*rect), bool(enabled), flags) for *rect, enabled, flags in ones)
    )


def unpack_edid(body: bytes) -> Edid:
    """Read the EDID of an OK_EDID whose header is off; 1032 bytes or more."""
    size, data = _EDID.unpack_from(body)
    return Edid(data[:size])


_DECODERS: Final[dict[int, tuple[int, Callable[[bytes], Response]]]] = {
    int(response_type): (size, build)
    for response_type, size, build in (
        (ResponseType.OK_NODATA, 0, lambda _: OkNoData()),
        (ResponseType.OK_DISPLAY_INFO, MAX_SCANOUTS * _DISPLAY_ONE.size, unpack_display_info),
        (
            ResponseType.OK_CAPSET_INFO,
            _CAPSET_INFO.size,
            lambda body: CapsetInfo(*_CAPSET_INFO.unpack_from(body)),
        ),
        (ResponseType.OK_CAPSET, 0, CapsetData),
        (ResponseType.OK_EDID, _EDID.size, unpack_edid),
        (ResponseType.OK_RESOURCE_UUID, UUID_SIZE, lambda body: ResourceUuid(body[:UUID_SIZE])),
        (
            ResponseType.OK_MAP_INFO,
            _MAP_INFO.size,
            lambda body: MappedBlob(*_MAP_INFO.unpack_from(body)),
        ),
    )
}
