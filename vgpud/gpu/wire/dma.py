"""The DMA context's formats: its capability set, and the packets of SUBMIT_3D.

A context of capset 30 lets a guest on a host without a 3D renderer have vgpud's DMA engine work on
blobs. It is vgpud's own and this module is its definition.

A stream is packets, one after the other, of little-endian dwords. The first dword of a packet is
`opcode | length << 16`, where length counts dwords, that one included. Offsets and lengths are in
bytes and may have any alignment; a source and a destination that overlap act as in memmove. Fields
called zero must be zero, so that they can get a meaning later. A bad packet writes nothing and ends
the stream; what ran before it stays done. A stream of more than MAX_STREAM bytes is refused whole.

    NOP    0   1 dword
    FILL   1   8   u32 resource, u64 offset, u64 length, u32 pattern, u32 zero
    COPY   2  10   u32 source, u32 destination, u32 zero, u64 source offset, u64 destination offset,
                   u64 length
    BLIT   3  12   u32 source, u32 destination, u32 bytes per pixel, u32 source stride,
                   u32 destination stride, u64 source offset, u64 destination offset, u32 width,
                   u32 height
    CRC32  4  10   u32 source, u32 destination, u32 zero, u64 source offset, u64 length,
                   u64 destination offset
"""

from __future__ import annotations

from enum import IntEnum
from struct import Struct
from typing import TYPE_CHECKING, Any, Final, TypeAlias, assert_never

from vgpud.gpu.errors import InvalidParameter
from vgpud.gpu.wire.protocol import ResourceId
from vgpud.gpu.wire.value import value

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from vgpud.gpu.wire.header import Bytes

CAPSET_VERSION: Final = 1

MAX_PACKETS: Final = 4096
"""Packets in one SUBMIT_3D: bounds how long one command can hold its ring."""

_CAPSET = Struct("<IIQ")  # version, max_packets, max_blob_size
CAPSET_SIZE: Final = _CAPSET.size
assert CAPSET_SIZE == 16

_DWORD: Final = 4
_HEADER = Struct("<I")


class Opcode(IntEnum):
    """The low half of a packet's first dword."""

    NOP = 0
    FILL = 1
    COPY = 2
    BLIT = 3
    CRC32 = 4


@value
class DmaCapset:
    """The capability set: what a guest may ask of this context; `max_blob_size` in bytes."""

    version: int
    max_packets: int
    max_blob_size: int

    def pack(self) -> bytes:
        """Return the set's 16 bytes."""
        return _CAPSET.pack(self.version, self.max_packets, self.max_blob_size)

    @classmethod
    def unpack(cls, data: Bytes) -> DmaCapset:
        """Read a set, as a driver would; a later version may be longer."""
        return cls(*_CAPSET.unpack_from(data))


@value
class Nop:
    """Do nothing."""


@value
class Fill:
    """Write `pattern`, little-endian, again and again from `offset` on; the last may be cut."""

    resource_id: ResourceId
    offset: int
    length: int
    pattern: int


@value
class Copy:
    """Copy `length` bytes."""

    src: ResourceId
    dst: ResourceId
    src_offset: int
    dst_offset: int
    length: int


@value
class Blit:
    """Copy `height` rows of `width` pixels of `cpp` bytes; rows begin `stride` bytes apart."""

    src: ResourceId
    dst: ResourceId
    cpp: int
    src_stride: int
    dst_stride: int
    src_offset: int
    dst_offset: int
    width: int
    height: int

    @property
    def row_bytes(self) -> int:
        """Bytes of one row, without what is between rows."""
        return self.width * self.cpp


@value
class Crc32:
    """Write the CRC-32 (zlib's) of `length` bytes of `src` as a little-endian u32 into `dst`."""

    src: ResourceId
    dst: ResourceId
    src_offset: int
    length: int
    dst_offset: int


Packet: TypeAlias = Nop | Fill | Copy | Blit | Crc32


def decode(stream: Bytes, max_packets: int = MAX_PACKETS) -> Iterator[Packet]:
    """Read packets one at a time: each is yielded before the next is read.

    Raises `InvalidParameter` at the first bad packet: an unknown opcode, a length that is not the
    opcode's or leaves the stream, a zero field that is not, a leftover of less than a dword, or one
    packet more than `max_packets`.
    """
    offset = 0
    index = 0
    while offset < len(stream):
        if index >= max_packets:
            raise _bad(index, offset, f"more than {max_packets} packets")
        if len(stream) - offset < _DWORD:
            raise _bad(index, offset, f"{len(stream) - offset} bytes are left, less than a dword")
        (header,) = _HEADER.unpack_from(stream, offset)
        opcode, length = header & 0xFFFF, (header >> 16) * _DWORD
        wire = _PACKETS.get(opcode)
        if wire is None:
            raise _bad(index, offset, f"unknown opcode {opcode}")
        layout, build = wire
        if length != layout.size:
            name = Opcode(opcode).name
            raise _bad(index, offset, f"{name} of {length} bytes, it has {layout.size}")
        if len(stream) - offset < length:
            raise _bad(index, offset, f"{length} bytes, {len(stream) - offset} are left")
        packet = build(layout.unpack_from(stream, offset))
        if packet is None:
            raise _bad(index, offset, "a field that must be zero is not")
        yield packet
        offset += length
        index += 1


def encode(packets: Iterable[Packet]) -> bytes:
    """Encode a stream, as a driver would."""
    return b"".join(map(_pack, packets))


def _bad(index: int, offset: int, reason: str) -> InvalidParameter:
    return InvalidParameter(f"packet {index} at byte {offset}: {reason}")


_NOP = Struct("<I")
_FILL = Struct("<IIQQII")
_COPY = Struct("<IIIIQQQ")
_BLIT = Struct("<IIIIIIQQII")
_CRC32 = Struct("<IIIIQQQ")


def _pack(packet: Packet) -> bytes:
    match packet:
        case Nop():
            return _NOP.pack(_header(Opcode.NOP))
        case Fill(resource_id, offset, length, pattern):
            return _FILL.pack(_header(Opcode.FILL), resource_id, offset, length, pattern, 0)
        case Copy(src, dst, src_offset, dst_offset, length):
            header = _header(Opcode.COPY)
            return _COPY.pack(header, src, dst, 0, src_offset, dst_offset, length)
        case Blit(src, dst, cpp, src_stride, dst_stride, src_offset, dst_offset, width, height):
            header = _header(Opcode.BLIT)
            strides = (src_stride, dst_stride)
            offsets = (src_offset, dst_offset)
            return _BLIT.pack(header, src, dst, cpp, *strides, *offsets, width, height)
        case Crc32(src, dst, src_offset, length, dst_offset):
            header = _header(Opcode.CRC32)
            return _CRC32.pack(header, src, dst, 0, src_offset, length, dst_offset)
        case _ as unreachable:
            assert_never(unreachable)


def _header(opcode: Opcode) -> int:
    layout, _build = _PACKETS[opcode]
    return opcode | (layout.size // _DWORD) << 16


# What struct unpacks, with the packet's first dword. A builder returns None if a zero field is not.
_Fields: TypeAlias = tuple[Any, ...]


def _build_nop(_fields: _Fields) -> Packet | None:
    return Nop()


def _build_fill(fields: _Fields) -> Packet | None:
    _, resource_id, offset, length, pattern, zero = fields
    return None if zero else Fill(resource_id, offset, length, pattern)


def _build_copy(fields: _Fields) -> Packet | None:
    _, src, dst, zero, src_offset, dst_offset, length = fields
    return None if zero else Copy(src, dst, src_offset, dst_offset, length)


def _build_blit(fields: _Fields) -> Packet | None:
    return Blit(*fields[1:])


def _build_crc32(fields: _Fields) -> Packet | None:
    _, src, dst, zero, src_offset, length, dst_offset = fields
    return None if zero else Crc32(src, dst, src_offset, length, dst_offset)


_PACKETS: Final[dict[int, tuple[Struct, Callable[[_Fields], Packet | None]]]] = {
    int(Opcode.NOP): (_NOP, _build_nop),
    int(Opcode.FILL): (_FILL, _build_fill),
    int(Opcode.COPY): (_COPY, _build_copy),
    int(Opcode.BLIT): (_BLIT, _build_blit),
    int(Opcode.CRC32): (_CRC32, _build_crc32),
}

MAX_STREAM: Final = MAX_PACKETS * max(layout.size for layout, _ in _PACKETS.values())
"""Bytes of a stream of as many packets as it may have, all of the longest kind. A device does not
read more: a longer stream is refused, and none of its packets runs."""
