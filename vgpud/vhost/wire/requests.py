"""The bytes of what a vhost-user front-end asks.

Owns layouts and the checks that need nothing but the message itself. Which message may come when,
and with how many fds it came, is `session`'s to judge. Both directions are here, so that a
front-end can be made of the same parts. Source: vhost-user.rst, "Payload" and "Front-end message
types".
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from types import MappingProxyType
from typing import Final, assert_never

from vgpud.errors import PeerError
from vgpud.memory.addresses import Gpa, Uva
from vgpud.vhost.wire import messages as m
from vgpud.vhost.wire.header import Header, encode_header, named
from vgpud.vhost.wire.protocol import (
    MAX_CONFIG_SIZE,
    MAX_MEM_REGIONS,
    VRING_F_LOG,
    VRING_IDX_MASK,
    VRING_NOFD,
    FrontEndRequest,
    HeaderFlag,
    ProtocolFeature,
)

_U64 = struct.Struct("=Q")
_VRING_STATE = struct.Struct("=II")
_VRING_ADDR = struct.Struct("=IIQQQQ")
_MEM_TABLE = struct.Struct("=I4x")
_MEM_REGION = struct.Struct("=QQQQ")
_LOG = struct.Struct("=QQ")
_CONFIG = struct.Struct("=III")


def _exactly(size: int) -> range:
    return range(size, size + 1)


_MEM_TABLE_SIZES = range(
    _MEM_TABLE.size,
    _MEM_TABLE.size + MAX_MEM_REGIONS * _MEM_REGION.size + 1,
    _MEM_REGION.size,
)
_CONFIG_SIZES = range(_CONFIG.size, _CONFIG.size + MAX_CONFIG_SIZE + 1)

PAYLOAD_SIZES: Final[Mapping[FrontEndRequest, range]] = MappingProxyType(
    {
        FrontEndRequest.GET_FEATURES: _exactly(0),
        FrontEndRequest.SET_FEATURES: _exactly(_U64.size),
        FrontEndRequest.SET_OWNER: _exactly(0),
        FrontEndRequest.RESET_OWNER: _exactly(0),
        FrontEndRequest.SET_MEM_TABLE: _MEM_TABLE_SIZES,
        FrontEndRequest.SET_LOG_BASE: _exactly(_LOG.size),
        FrontEndRequest.SET_LOG_FD: _exactly(0),
        FrontEndRequest.SET_VRING_NUM: _exactly(_VRING_STATE.size),
        FrontEndRequest.SET_VRING_ADDR: _exactly(_VRING_ADDR.size),
        FrontEndRequest.SET_VRING_BASE: _exactly(_VRING_STATE.size),
        FrontEndRequest.GET_VRING_BASE: _exactly(_VRING_STATE.size),
        FrontEndRequest.SET_VRING_KICK: _exactly(_U64.size),
        FrontEndRequest.SET_VRING_CALL: _exactly(_U64.size),
        FrontEndRequest.SET_VRING_ERR: _exactly(_U64.size),
        FrontEndRequest.GET_PROTOCOL_FEATURES: _exactly(0),
        FrontEndRequest.SET_PROTOCOL_FEATURES: _exactly(_U64.size),
        FrontEndRequest.GET_QUEUE_NUM: _exactly(0),
        FrontEndRequest.SET_VRING_ENABLE: _exactly(_VRING_STATE.size),
        FrontEndRequest.SET_BACKEND_REQ_FD: _exactly(0),
        FrontEndRequest.GET_CONFIG: _CONFIG_SIZES,
        FrontEndRequest.SET_CONFIG: _CONFIG_SIZES,
        FrontEndRequest.GPU_SET_SOCKET: _exactly(0),
        FrontEndRequest.RESET_DEVICE: _exactly(0),
        FrontEndRequest.GET_SHMEM_CONFIG: _exactly(0),
    }
)
"""The payload sizes in bytes that each request can have; what is not here can't be decoded."""

MAX_REQUEST_FDS: Final[Mapping[FrontEndRequest, int]] = MappingProxyType(
    {
        FrontEndRequest.SET_MEM_TABLE: MAX_MEM_REGIONS,
        FrontEndRequest.SET_LOG_BASE: 1,
        FrontEndRequest.SET_LOG_FD: 1,
        FrontEndRequest.SET_VRING_KICK: 1,
        FrontEndRequest.SET_VRING_CALL: 1,
        FrontEndRequest.SET_VRING_ERR: 1,
        FrontEndRequest.SET_BACKEND_REQ_FD: 1,
        FrontEndRequest.GPU_SET_SOCKET: 1,
    }
)
"""How many fds a request can have at most; one that is not here has none."""


def encode_request(message: m.Request, *, need_reply: bool = False) -> bytes:
    """`message` with its header, as a front-end sends it; `need_reply` asks to be answered."""
    payload = _request_payload(message)
    flags = HeaderFlag.VERSION_1 | (HeaderFlag.NEED_REPLY if need_reply else 0)
    return encode_header(Header(request_of(message), flags, len(payload))) + payload


def request_of(message: m.Request) -> FrontEndRequest:
    """The id under which `message` is sent."""
    return _REQUESTS[type(message)]


def fd_count(message: m.Request) -> int:
    """How many fds `message` must come with."""
    match message:
        case m.SetMemTable(regions):
            return len(regions)
        case m.SetVringKick(_, has_fd) | m.SetVringCall(_, has_fd) | m.SetVringErr(_, has_fd):
            return int(has_fd)
        case m.SetLogBase() | m.SetLogFd() | m.SetBackendReqFd() | m.GpuSetSocket():
            return 1
        case _:
            return 0


def decode_request(request: FrontEndRequest, payload: bytes) -> m.Request:
    """The value of a request's payload.

    Raises `PeerError` for a size that the request can't have, and for a field that has no meaning.
    """
    sizes = PAYLOAD_SIZES.get(request)
    if sizes is None:
        raise PeerError(f"{named(request)} is not a message to this kind of back-end")
    if len(payload) not in sizes:
        raise PeerError(f"{named(request)} has a payload of {len(payload)} bytes")
    match request:
        case FrontEndRequest.SET_FEATURES:
            return m.SetFeatures(*_U64.unpack(payload))
        case FrontEndRequest.SET_PROTOCOL_FEATURES:
            return m.SetProtocolFeatures(ProtocolFeature(*_U64.unpack(payload)))
        case FrontEndRequest.SET_MEM_TABLE:
            return _decode_mem_table(payload)
        case FrontEndRequest.SET_LOG_BASE:
            return m.SetLogBase(*_LOG.unpack(payload))
        case FrontEndRequest.SET_VRING_NUM:
            return m.SetVringNum(*_VRING_STATE.unpack(payload))
        case FrontEndRequest.SET_VRING_ADDR:
            return _decode_vring_addr(payload)
        case FrontEndRequest.SET_VRING_BASE:
            return m.SetVringBase(*_VRING_STATE.unpack(payload))
        case FrontEndRequest.GET_VRING_BASE:
            index, _ = _VRING_STATE.unpack(payload)
            return m.GetVringBase(index)
        case FrontEndRequest.SET_VRING_KICK:
            return m.SetVringKick(*_decode_vring_fd(request, payload))
        case FrontEndRequest.SET_VRING_CALL:
            return m.SetVringCall(*_decode_vring_fd(request, payload))
        case FrontEndRequest.SET_VRING_ERR:
            return m.SetVringErr(*_decode_vring_fd(request, payload))
        case FrontEndRequest.SET_VRING_ENABLE:
            index, enable = _VRING_STATE.unpack(payload)
            if enable not in (0, 1):
                raise PeerError(
                    f"{named(request)} has num {enable:#x} for ring {index}, not 0 or 1"
                )
            return m.SetVringEnable(index, bool(enable))
        case FrontEndRequest.GET_CONFIG:
            offset, flags, data = _decode_config(request, payload)
            return m.GetConfig(offset, len(data), flags)
        case FrontEndRequest.SET_CONFIG:
            return m.SetConfig(*_decode_config(request, payload))
        case _:
            return _EMPTY[request]


def _request_payload(message: m.Request) -> bytes:
    match message:
        case m.SetFeatures(features) | m.SetProtocolFeatures(features):
            return _U64.pack(features)
        case m.SetMemTable(regions):
            return _MEM_TABLE.pack(len(regions)) + b"".join(
                _MEM_REGION.pack(r.guest_phys_addr, r.memory_size, r.userspace_addr, r.mmap_offset)
                for r in regions
            )
        case m.SetLogBase(size, offset):
            return _LOG.pack(size, offset)
        case m.SetVringNum(index, num) | m.SetVringBase(index, num):
            return _VRING_STATE.pack(index, num)
        case m.SetVringAddr(index, flags, desc, used, avail, log):
            return _VRING_ADDR.pack(index, flags, desc, used, avail, log)
        case m.GetVringBase(index):
            return _VRING_STATE.pack(index, 0)
        case m.SetVringEnable(index, enable):
            return _VRING_STATE.pack(index, enable)
        case (
            m.SetVringKick(index, has_fd)
            | m.SetVringCall(index, has_fd)
            | m.SetVringErr(index, has_fd)
        ):
            return _U64.pack(index | (0 if has_fd else VRING_NOFD))
        case m.GetConfig(offset, size, flags):
            # The request has room for the answer, as the specification wants and QEMU does.
            return _CONFIG.pack(offset, size, flags) + bytes(size)
        case m.SetConfig(offset, flags, data):
            return _CONFIG.pack(offset, len(data), flags) + data
        case (
            m.GetFeatures()
            | m.GetProtocolFeatures()
            | m.GetQueueNum()
            | m.SetOwner()
            | m.ResetOwner()
            | m.ResetDevice()
            | m.SetLogFd()
            | m.SetBackendReqFd()
            | m.GpuSetSocket()
            | m.GetShmemConfig()
        ):
            return b""
        case _:
            assert_never(message)


def _decode_mem_table(payload: bytes) -> m.SetMemTable:
    (count,) = _MEM_TABLE.unpack_from(payload)
    table = payload[_MEM_TABLE.size :]
    if count * _MEM_REGION.size != len(table):
        raise PeerError(
            f"{named(FrontEndRequest.SET_MEM_TABLE)} has num regions {count} "
            f"and {len(table)} bytes of regions"
        )
    return m.SetMemTable(
        tuple(
            m.MemRegion(Gpa(guest), size, Uva(user), offset)
            for guest, size, user, offset in _MEM_REGION.iter_unpack(table)
        )
    )


def _decode_vring_addr(payload: bytes) -> m.SetVringAddr:
    message = m.SetVringAddr(*_VRING_ADDR.unpack(payload))
    if message.flags & ~VRING_F_LOG:
        raise PeerError(
            f"{named(FrontEndRequest.SET_VRING_ADDR)} has flags {message.flags:#x}: "
            f"only {VRING_F_LOG:#x} is defined"
        )
    return message


def _decode_vring_fd(request: FrontEndRequest, payload: bytes) -> tuple[int, bool]:
    (value,) = _U64.unpack(payload)
    if value & ~(VRING_IDX_MASK | VRING_NOFD):
        raise PeerError(f"{named(request)} has {value:#x}: only bits 0 to 8 are defined")
    return value & VRING_IDX_MASK, not value & VRING_NOFD


def _decode_config(request: FrontEndRequest, payload: bytes) -> tuple[int, int, bytes]:
    offset, size, flags = _CONFIG.unpack_from(payload)
    data = payload[_CONFIG.size :]
    if size != len(data):
        raise PeerError(f"{named(request)} has size {size} and {len(data)} bytes of config space")
    return offset, flags, data


# -- Which value goes under which id ---------------------------------------------------------------

_EMPTY: Final[Mapping[FrontEndRequest, m.Request]] = MappingProxyType(
    {
        FrontEndRequest.GET_FEATURES: m.GetFeatures(),
        FrontEndRequest.SET_OWNER: m.SetOwner(),
        FrontEndRequest.RESET_OWNER: m.ResetOwner(),
        FrontEndRequest.SET_LOG_FD: m.SetLogFd(),
        FrontEndRequest.GET_PROTOCOL_FEATURES: m.GetProtocolFeatures(),
        FrontEndRequest.GET_QUEUE_NUM: m.GetQueueNum(),
        FrontEndRequest.SET_BACKEND_REQ_FD: m.SetBackendReqFd(),
        FrontEndRequest.GPU_SET_SOCKET: m.GpuSetSocket(),
        FrontEndRequest.RESET_DEVICE: m.ResetDevice(),
        FrontEndRequest.GET_SHMEM_CONFIG: m.GetShmemConfig(),
    }
)

_REQUESTS: Final[Mapping[type[m.Request], FrontEndRequest]] = MappingProxyType(
    {type(message): request for request, message in _EMPTY.items()}
    | {
        m.SetFeatures: FrontEndRequest.SET_FEATURES,
        m.SetMemTable: FrontEndRequest.SET_MEM_TABLE,
        m.SetLogBase: FrontEndRequest.SET_LOG_BASE,
        m.SetVringNum: FrontEndRequest.SET_VRING_NUM,
        m.SetVringAddr: FrontEndRequest.SET_VRING_ADDR,
        m.SetVringBase: FrontEndRequest.SET_VRING_BASE,
        m.GetVringBase: FrontEndRequest.GET_VRING_BASE,
        m.SetVringKick: FrontEndRequest.SET_VRING_KICK,
        m.SetVringCall: FrontEndRequest.SET_VRING_CALL,
        m.SetVringErr: FrontEndRequest.SET_VRING_ERR,
        m.SetProtocolFeatures: FrontEndRequest.SET_PROTOCOL_FEATURES,
        m.SetVringEnable: FrontEndRequest.SET_VRING_ENABLE,
        m.GetConfig: FrontEndRequest.GET_CONFIG,
        m.SetConfig: FrontEndRequest.SET_CONFIG,
    }
)
