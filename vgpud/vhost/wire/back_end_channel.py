"""The channel on which the back-end asks and the front-end answers, sans-IO, both ends.

Owns the three requests that a GPU back-end makes (SHMEM_MAP, SHMEM_UNMAP, CONFIG_CHANGE_MSG), their
bytes, and which answer belongs to which request. The fd of a SHMEM_MAP travels beside its bytes.
Source: vhost-user.rst, "Back-end communication" and "Back-end message types".

A front-end may send requests on the main channel before it answers here (QEMU sends SET_MEM_TABLE
before it answers a map): never wait for an answer without serving the main channel.
"""

from __future__ import annotations

import struct
from collections import deque
from dataclasses import dataclass
from typing import Final, assert_never

from vgpud.errors import PeerError
from vgpud.vhost.wire.header import Header, decode_header, encode_header
from vgpud.vhost.wire.protocol import HEADER, REQUEST_FLAGS_MASK, BackEndRequestId, HeaderFlag

MMAP_WRITABLE: Final = 1 << 0
"""VhostUserMMap.flags: pages are mapped read-write, not read-only."""

_MMAP = struct.Struct("=B7xQQQQ")
_STATUS = struct.Struct("=Q")


@dataclass(frozen=True, slots=True)
class ShmemMap:
    """Map `length` bytes of a file, from `fd_offset`, at `shm_offset` of region `shmid`; one fd.

    Refused over an existing mapping, beyond the region, and beyond the file.
    """

    shmid: int
    fd_offset: int
    shm_offset: int
    length: int
    writable: bool


@dataclass(frozen=True, slots=True)
class ShmemUnmap:
    """Undo one whole mapping of region `shmid`; refused for part of one."""

    shmid: int
    shm_offset: int
    length: int


@dataclass(frozen=True, slots=True)
class ConfigChange:
    """The config space has changed: the front-end reads it anew and interrupts the guest."""


BackEndMessage = ShmemMap | ShmemUnmap | ConfigChange
"""What the back-end can ask."""


@dataclass(frozen=True, slots=True)
class FrontEndReply:
    """The front-end's answer to the oldest request that waited for one; `status` 0 is success."""

    request: BackEndMessage
    status: int


@dataclass(frozen=True, slots=True)
class ReceivedBackEndMessage:
    """A request as the front-end sees it; `need_reply`: the back-end waits for a status."""

    message: BackEndMessage
    need_reply: bool


class BackEndRequester:
    """The back-end's end: requests out, statuses in, in the order asked.

    `reply_ack`: REPLY_ACK was negotiated. A map or an unmap asks for its status in any case, since
    nothing that follows is true before it is done, and SHMEM front-ends answer; a config change
    asks only if REPLY_ACK lets it.
    """

    def __init__(self, *, reply_ack: bool) -> None:
        self._reply_ack = reply_ack
        self._waiting: deque[BackEndMessage] = deque()
        self._buffer = bytearray()
        self._failure = ""

    @property
    def waiting(self) -> tuple[BackEndMessage, ...]:
        """The requests that have not been answered, oldest first."""
        return tuple(self._waiting)

    def send(self, message: BackEndMessage) -> bytes:
        """The bytes of `message`. They must be sent in the order of these calls."""
        if self._failure:
            raise PeerError(f"the back-end channel is over: {self._failure}")
        need_reply = self._reply_ack or not isinstance(message, ConfigChange)
        if need_reply:
            self._waiting.append(message)
        return encode_back_end_message(message, need_reply=need_reply)

    def receive_data(self, data: bytes) -> None:
        """Take bytes just read, however many; call `next_reply` until it has none."""
        self._buffer += data

    def next_reply(self) -> FrontEndReply | None:
        """The next answer, or None if it is not all there.

        Raises `PeerError`, then and ever after, for one that answers nothing or is malformed.
        """
        if self._failure:
            raise PeerError(f"the back-end channel is over: {self._failure}")
        try:
            return self._next_reply()
        except PeerError as error:
            self._failure = str(error)
            raise

    def close(self) -> tuple[BackEndMessage, ...]:
        """End the channel; the requests that will never be answered, oldest first."""
        self._failure = self._failure or "closed"
        unanswered = tuple(self._waiting)
        self._waiting.clear()
        self._buffer.clear()
        return unanswered

    def _next_reply(self) -> FrontEndReply | None:
        if len(self._buffer) < HEADER.size:
            return None
        header = decode_header(self._buffer)
        if not self._waiting:
            raise PeerError(f"an answer to request {header.request} came: nothing was asked")
        expected = back_end_request_of(self._waiting[0])
        if header.request != expected:
            raise PeerError(
                f"an answer to request {header.request} came: "
                f"{expected.name} ({expected.value}) waits for one"
            )
        if header.flags != HeaderFlag.VERSION_1 | HeaderFlag.REPLY:
            raise PeerError(f"the answer to {expected.name} has flags {header.flags:#x}, not 0x5")
        if header.size != _STATUS.size:
            raise PeerError(f"the answer to {expected.name} has {header.size} bytes of payload")
        end = HEADER.size + _STATUS.size
        if len(self._buffer) < end:
            return None
        (status,) = _STATUS.unpack_from(self._buffer, HEADER.size)
        del self._buffer[:end]
        return FrontEndReply(self._waiting.popleft(), status)


class FrontEndResponder:
    """The front-end's end: requests in, statuses out.

    Read at most `bytes_wanted` bytes at a time: the fd of a map then stays with it.
    """

    def __init__(self) -> None:
        self._buffer = bytearray()

    @property
    def bytes_wanted(self) -> int:
        """How many bytes the message in the making lacks: of its header, then of its payload."""
        end = HEADER.size
        if len(self._buffer) >= HEADER.size:
            end += decode_header(self._buffer).size
        return end - len(self._buffer)

    def receive_data(self, data: bytes) -> None:
        """Take bytes just read."""
        self._buffer += data

    def next_request(self) -> ReceivedBackEndMessage | None:
        """The next request, or None if it is not all there. Raises `PeerError` if malformed."""
        if len(self._buffer) < HEADER.size:
            return None
        header = decode_header(self._buffer)
        request, size = _judge_request(header)
        end = HEADER.size + size
        if len(self._buffer) < end:
            return None
        payload = bytes(self._buffer[HEADER.size : end])
        del self._buffer[:end]
        need_reply = bool(header.flags & HeaderFlag.NEED_REPLY)
        return ReceivedBackEndMessage(decode_back_end_message(request, payload), need_reply)

    def reply(self, received: ReceivedBackEndMessage, status: int) -> bytes:
        """The bytes that answer `received`, or none if not asked for; `status` 0 is success."""
        if not received.need_reply:
            return b""
        request = back_end_request_of(received.message)
        flags = HeaderFlag.VERSION_1 | HeaderFlag.REPLY
        return encode_header(Header(request, flags, _STATUS.size)) + _STATUS.pack(status)


# -- Bytes -----------------------------------------------------------------------------------------

_PAYLOAD_SIZES: Final = {
    BackEndRequestId.CONFIG_CHANGE_MSG: 0,
    BackEndRequestId.SHMEM_MAP: _MMAP.size,
    BackEndRequestId.SHMEM_UNMAP: _MMAP.size,
}


def back_end_request_of(message: BackEndMessage) -> BackEndRequestId:
    """The id under which `message` is sent."""
    match message:
        case ShmemMap():
            return BackEndRequestId.SHMEM_MAP
        case ShmemUnmap():
            return BackEndRequestId.SHMEM_UNMAP
        case ConfigChange():
            return BackEndRequestId.CONFIG_CHANGE_MSG
        case _:
            assert_never(message)


def encode_back_end_message(message: BackEndMessage, *, need_reply: bool) -> bytes:
    """`message` with its header, as a back-end sends it."""
    match message:
        case ShmemMap(shmid, fd_offset, shm_offset, length, writable):
            flags = MMAP_WRITABLE if writable else 0
            payload = _MMAP.pack(shmid, fd_offset, shm_offset, length, flags)
        case ShmemUnmap(shmid, shm_offset, length):
            payload = _MMAP.pack(shmid, 0, shm_offset, length, 0)
        case ConfigChange():
            payload = b""
        case _:
            assert_never(message)
    header_flags = HeaderFlag.VERSION_1 | (HeaderFlag.NEED_REPLY if need_reply else 0)
    return encode_header(Header(back_end_request_of(message), header_flags, len(payload))) + payload


def decode_back_end_message(request: BackEndRequestId, payload: bytes) -> BackEndMessage:
    """The value of a request's payload. Raises `PeerError` for a malformed one."""
    if len(payload) != _PAYLOAD_SIZES.get(request):
        raise PeerError(f"{request.name} ({request.value}) has a payload of {len(payload)} bytes")
    if request is BackEndRequestId.CONFIG_CHANGE_MSG:
        return ConfigChange()
    shmid, fd_offset, shm_offset, length, flags = _MMAP.unpack(payload)
    if request is BackEndRequestId.SHMEM_UNMAP:
        return ShmemUnmap(shmid, shm_offset, length)
    if flags & ~MMAP_WRITABLE:
        raise PeerError(f"SHMEM_MAP (9) has flags {flags:#x}: only 0x1 is defined")
    return ShmemMap(shmid, fd_offset, shm_offset, length, bool(flags & MMAP_WRITABLE))


def _judge_request(header: Header) -> tuple[BackEndRequestId, int]:
    try:
        request = BackEndRequestId(header.request)
    except ValueError:
        raise PeerError(f"request {header.request:#x} is unknown") from None
    if header.flags & ~REQUEST_FLAGS_MASK != HeaderFlag.VERSION_1:
        raise PeerError(f"{request.name} ({request.value}) has flags {header.flags:#x}")
    if header.size != _PAYLOAD_SIZES.get(request):
        raise PeerError(f"{request.name} ({request.value}) has a payload of {header.size} bytes")
    return request, header.size
