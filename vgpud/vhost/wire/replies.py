"""The bytes of what a vhost-user back-end answers.

Owns the layouts of replies and which request has one of its own; an acknowledgement, which any
request may ask for, is a `U64Reply`. Both directions are here, so that a front-end can be made of
the same parts. Source: vhost-user.rst, "Payload", "Communication" and
"VHOST_USER_PROTOCOL_F_REPLY_ACK".
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from types import MappingProxyType
from typing import Final, assert_never

from vgpud.errors import PeerError
from vgpud.vhost.wire import messages as m
from vgpud.vhost.wire.header import Header, encode_header, named
from vgpud.vhost.wire.protocol import MAX_SHMEM_REGIONS, FrontEndRequest, HeaderFlag

_U64 = struct.Struct("=Q")
_VRING_STATE = struct.Struct("=II")
_CONFIG = struct.Struct("=III")
_SHMEM_CONFIG = struct.Struct(f"=I4x{MAX_SHMEM_REGIONS}Q")

REPLY_TYPES: Final[Mapping[FrontEndRequest, type[m.Reply]]] = MappingProxyType(
    {
        FrontEndRequest.GET_FEATURES: m.U64Reply,
        FrontEndRequest.SET_LOG_BASE: m.EmptyReply,
        FrontEndRequest.GET_VRING_BASE: m.VringState,
        FrontEndRequest.GET_PROTOCOL_FEATURES: m.U64Reply,
        FrontEndRequest.GET_QUEUE_NUM: m.U64Reply,
        FrontEndRequest.GET_CONFIG: m.ConfigReply,
        FrontEndRequest.GET_SHMEM_CONFIG: m.ShmemConfig,
    }
)
"""The requests that have a reply of their own; others are acknowledged, if they ask for it."""


def encode_reply(request: FrontEndRequest, reply: m.Reply) -> bytes:
    """`reply` to `request`, with its header, as a back-end sends it."""
    payload = _reply_payload(reply)
    flags = HeaderFlag.VERSION_1 | HeaderFlag.REPLY
    return encode_header(Header(request, flags, len(payload))) + payload


def decode_reply(request: FrontEndRequest, payload: bytes) -> m.Reply:
    """The value of a reply's payload, given what was asked.

    No payload at all is an `EmptyReply`, whatever was asked. A u64 in place of a SET_LOG_BASE's
    empty reply is a failure. Raises `PeerError` for a reply of the wrong size.
    """
    if not payload:
        return m.EmptyReply()
    match request:
        case FrontEndRequest.GET_VRING_BASE if len(payload) == _VRING_STATE.size:
            return m.VringState(*_VRING_STATE.unpack(payload))
        case FrontEndRequest.GET_CONFIG if len(payload) >= _CONFIG.size:
            return _decode_config(payload)
        case FrontEndRequest.GET_SHMEM_CONFIG if len(payload) == _SHMEM_CONFIG.size:
            return _decode_shmem_config(payload)
        case (
            FrontEndRequest.GET_VRING_BASE
            | FrontEndRequest.GET_CONFIG
            | FrontEndRequest.GET_SHMEM_CONFIG
        ):
            pass
        case _ if len(payload) == _U64.size:
            return m.U64Reply(*_U64.unpack(payload))
    raise PeerError(f"the reply to {named(request)} has a payload of {len(payload)} bytes")


def _reply_payload(reply: m.Reply) -> bytes:
    match reply:
        case m.U64Reply(value):
            return _U64.pack(value)
        case m.VringState(index, base):
            return _VRING_STATE.pack(index, base)
        case m.ConfigReply(offset, flags, data):
            return _CONFIG.pack(offset, len(data), flags) + data
        case m.ShmemConfig(sizes):
            return _encode_shmem_config(sizes)
        case m.EmptyReply():
            return b""
        case _:
            assert_never(reply)


def _decode_config(payload: bytes) -> m.ConfigReply:
    offset, size, flags = _CONFIG.unpack_from(payload)
    data = payload[_CONFIG.size :]
    if size != len(data):
        raise PeerError(f"the reply to GET_CONFIG has size {size} and {len(data)} bytes")
    return m.ConfigReply(offset, flags, data)


def _encode_shmem_config(sizes: tuple[int, ...]) -> bytes:
    for shmid, size in enumerate(sizes):
        if size & (size - 1):
            # QEMU makes a PCI BAR of it, asserts, and takes the guest with it.
            raise ValueError(f"shared-memory region {shmid}: {size:#x} is not a power of two")
    absent = (0,) * (MAX_SHMEM_REGIONS - len(sizes))
    # nregions counts the regions that there are, not the length of the table: front-ends stop
    # looking once they have found as many.
    return _SHMEM_CONFIG.pack(sum(size != 0 for size in sizes), *sizes, *absent)


def _decode_shmem_config(payload: bytes) -> m.ShmemConfig:
    count, *sizes = _SHMEM_CONFIG.unpack(payload)
    while sizes and not sizes[-1]:
        sizes.pop()
    if count != sum(size != 0 for size in sizes):
        raise PeerError(f"the reply to GET_SHMEM_CONFIG counts {count} regions, its sizes don't")
    return m.ShmemConfig(tuple(sizes))
