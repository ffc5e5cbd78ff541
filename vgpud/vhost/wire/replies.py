"""The replies of a vhost-user back-end, as values and as bytes.

A request's own reply is named where the request is declared, in `messages`; an acknowledgement,
which any other request may ask for, is a `U64Reply`. Both directions are here, so that a front-end
can be made of the same parts. Source: vhost-user.rst, "Payload", "Communication" and
"VHOST_USER_PROTOCOL_F_REPLY_ACK".
"""

from __future__ import annotations

from dataclasses import dataclass
from struct import Struct
from typing import Self

from vgpud.errors import PeerError
from vgpud.vhost.wire.header import MessageHeader, encode_header
from vgpud.vhost.wire.payload import Payload
from vgpud.vhost.wire.protocol import MAX_SHMEM_REGIONS, FrontEndRequest, HeaderFlag


class MessageReply(Payload):
    """The base of all replies."""

    __slots__ = ()


@dataclass(frozen=True, slots=True)
class U64Reply(MessageReply):
    """A number; as an acknowledgement (REPLY_ACK), 0 is success and all else failure."""

    layout = Struct("=Q")

    value: int


@dataclass(frozen=True, slots=True)
class VringState(MessageReply):
    """Ring `index` has stopped; `base` is the next entry of its available ring."""

    layout = Struct("=II")

    index: int
    base: int


@dataclass(frozen=True, slots=True)
class ConfigReply(MessageReply):
    """`data` is the config space from `offset`, as long as was asked for."""

    layout = Struct("=III")  # offset, size, flags; then the data

    offset: int
    flags: int
    data: bytes

    @classmethod
    def can_have(cls, size: int) -> bool:
        """Return whether `size` bytes have room for the numbers before the data."""
        return size >= cls.layout.size

    @classmethod
    def unpack(cls, payload: bytes) -> Self:
        """Return the value of a payload. Raises `PeerError` if its size field is wrong."""
        offset, size, flags = cls.layout.unpack_from(payload)
        data = payload[cls.layout.size :]
        if size != len(data):
            raise PeerError(f"the reply to GET_CONFIG has size {size} and {len(data)} bytes")
        return cls(offset, flags, data)

    def pack(self) -> bytes:
        """Return the payload of this value."""
        return self.layout.pack(self.offset, len(self.data), self.flags) + self.data


@dataclass(frozen=True, slots=True)
class ShmemConfig(MessageReply):
    """The size in bytes of each shared-memory region, by shmid; 0 where there is none.

    A size must be a power of two (QEMU makes a PCI BAR of it). Unpacked, the tuple ends at the last
    region.
    """

    layout = Struct(f"=I4x{MAX_SHMEM_REGIONS}Q")

    sizes: tuple[int, ...]

    @classmethod
    def unpack(cls, payload: bytes) -> Self:
        """Return the value of a payload. Raises `PeerError` if the regions are miscounted."""
        count, *sizes = cls.layout.unpack(payload)
        while sizes and not sizes[-1]:
            sizes.pop()
        if count != sum(size != 0 for size in sizes):
            raise PeerError(
                f"the reply to GET_SHMEM_CONFIG counts {count} regions, its sizes don't"
            )
        return cls(tuple(sizes))

    def pack(self) -> bytes:
        """Return the payload of this value. Raises `ValueError` for a size that QEMU can't take."""
        for shmid, size in enumerate(self.sizes):
            if size & (size - 1):
                # QEMU makes a PCI BAR of it, asserts, and takes the guest with it.
                raise ValueError(f"shared-memory region {shmid}: {size:#x} is not a power of two")
        absent = (0,) * (MAX_SHMEM_REGIONS - len(self.sizes))
        # nregions counts the regions that there are, not the length of the table: front-ends stop
        # looking once they have found as many.
        return self.layout.pack(sum(size != 0 for size in self.sizes), *self.sizes, *absent)


@dataclass(frozen=True, slots=True)
class EmptyReply(MessageReply):
    """A reply without a payload: SET_LOG_BASE is done, or GET_CONFIG failed."""


def encode_reply(request: FrontEndRequest, reply: MessageReply) -> bytes:
    """Return `reply` to `request`, with its header, as a back-end sends it."""
    payload = reply.pack()
    flags = HeaderFlag.VERSION_1 | HeaderFlag.REPLY
    return encode_header(MessageHeader(request, flags, len(payload))) + payload
