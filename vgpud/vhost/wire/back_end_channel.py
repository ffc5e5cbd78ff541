"""The channel on which the back-end asks and the front-end answers, sans-IO, both ends.

It has the three requests that a GPU back-end makes (SHMEM_MAP, SHMEM_UNMAP, CONFIG_CHANGE_MSG), and
says which answer belongs to which request. The fd of a SHMEM_MAP travels with its bytes.
Source: vhost-user.rst, "Back-end communication" and "Back-end message types".

A front-end may send requests on the main channel before it answers here (QEMU sends SET_MEM_TABLE
before it answers a map): never wait for an answer without serving the main channel.

While the front-end has only `first_byte` of a message, the rest can still be chosen: `withdrawal`
makes it a request that no front-end knows, and so does nothing about.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from struct import Struct
from typing import ClassVar, Final, Self, TypeVar

from vgpud.errors import PeerError
from vgpud.vhost.wire.header import MessageHeader, decode_header, encode_header
from vgpud.vhost.wire.payload import Payload
from vgpud.vhost.wire.protocol import HEADER, REQUEST_FLAGS_MASK, BackEndRequestId, HeaderFlag

MMAP_WRITABLE: Final = 1 << 0
"""VhostUserMMap.flags: pages are mapped read-write, not read-only."""

_STATUS = Struct("=Q")
_UNKNOWN: Final = 1 << 16
"""Added to a request's id, makes it one that does not exist, with the same first byte."""


class BackEndMessage(Payload):
    """The base of what the back-end can ask; the class variables come from `back_end_request`.

    `always_answered`: the message asks for its status even if REPLY_ACK was not negotiated.
    """

    __slots__ = ()

    request_id: ClassVar[BackEndRequestId]
    always_answered: ClassVar[bool]


_M = TypeVar("_M", bound=BackEndMessage)

BACK_END_MESSAGES: Final[dict[BackEndRequestId, type[BackEndMessage]]] = {}
"""The class of each message that has been declared; others can't be decoded."""


def back_end_request(
    request_id: BackEndRequestId, layout: str = "=", *, always_answered: bool = False
) -> Callable[[type[_M]], type[_M]]:
    """Declare a dataclass to be a request of the back-end; `layout` is the format of its fields.

    Raises `ValueError` if there is one with this id.
    """

    def declare(cls: type[_M]) -> type[_M]:
        if request_id in BACK_END_MESSAGES:
            raise ValueError(f"{request_id.name} ({request_id.value}) is declared twice")
        cls.request_id, cls.layout = request_id, Struct(layout)
        cls.always_answered = always_answered
        BACK_END_MESSAGES[request_id] = cls
        return cls

    return declare


@back_end_request(BackEndRequestId.SHMEM_MAP, "=B7xQQQQ", always_answered=True)
@dataclass(frozen=True, slots=True)
class ShmemMap(BackEndMessage):
    """Map `length` bytes of a file, from `fd_offset`, at `shm_offset` of region `shmid`; one fd.

    Refused over an existing mapping, beyond the region, and beyond the file.
    """

    shmid: int
    fd_offset: int
    shm_offset: int
    length: int
    writable: bool

    @classmethod
    def unpack(cls, payload: bytes) -> Self:
        """Return the value of a payload. Raises `PeerError` for an undefined flag."""
        shmid, fd_offset, shm_offset, length, flags = cls.layout.unpack(payload)
        if flags & ~MMAP_WRITABLE:
            raise PeerError(f"SHMEM_MAP (9) has flags {flags:#x}: only 0x1 is defined")
        return cls(shmid, fd_offset, shm_offset, length, bool(flags & MMAP_WRITABLE))

    def pack(self) -> bytes:
        """Return the payload of this value."""
        flags = MMAP_WRITABLE if self.writable else 0
        return self.layout.pack(self.shmid, self.fd_offset, self.shm_offset, self.length, flags)


# Its payload is a VhostUserMMap, too, whose fd_offset and flags are ignored.
@back_end_request(BackEndRequestId.SHMEM_UNMAP, "=B7x8xQQ8x", always_answered=True)
@dataclass(frozen=True, slots=True)
class ShmemUnmap(BackEndMessage):
    """Undo one whole mapping of region `shmid`; refused for part of one."""

    shmid: int
    shm_offset: int
    length: int


@back_end_request(BackEndRequestId.CONFIG_CHANGE_MSG)
@dataclass(frozen=True, slots=True)
class ConfigChange(BackEndMessage):
    """Say that the config space has changed: the front-end reads it and interrupts the guest."""


@dataclass(frozen=True, slots=True)
class Withdrawn(BackEndMessage):
    """What a front-end gets of a message that was withdrawn: there is nothing to do or answer.

    `request` is the id that was withdrawn.
    """

    request: int


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

    @property
    def unanswered(self) -> int:
        """How many these are."""
        return len(self._waiting)

    def send(self, message: BackEndMessage) -> bytes:
        """Return the bytes of `message`, which must be sent in the order of these calls."""
        if self._failure:
            raise PeerError(f"the back-end channel is over: {self._failure}")
        need_reply = self._reply_ack or message.always_answered
        if need_reply:
            self._waiting.append(message)
        return encode_back_end_message(message, need_reply=need_reply)

    def receive_data(self, data: bytes) -> None:
        """Take bytes just read, however many; call `next_reply` until it has none."""
        self._buffer += data

    def next_reply(self) -> FrontEndReply | None:
        """Return the next answer, or None if it is not all there.

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
        """End the channel; return the requests that will never be answered, oldest first."""
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
        expected = self._waiting[0].request_id
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
        """Return the next request, None if it is not all there; raise `PeerError` if malformed."""
        if len(self._buffer) < HEADER.size:
            return None
        header = decode_header(self._buffer)
        if (header.request & _UNKNOWN, header.size) == (_UNKNOWN, 0):
            del self._buffer[: HEADER.size]
            withdrawn = Withdrawn(header.request & ~_UNKNOWN)
            return ReceivedBackEndMessage(withdrawn, need_reply=False)
        cls = _judge_request(header)
        end = HEADER.size + header.size
        if len(self._buffer) < end:
            return None
        payload = bytes(self._buffer[HEADER.size : end])
        del self._buffer[:end]
        need_reply = bool(header.flags & HeaderFlag.NEED_REPLY)
        return ReceivedBackEndMessage(cls.unpack(payload), need_reply)

    def reply(self, received: ReceivedBackEndMessage, status: int) -> bytes:
        """Return the bytes that answer `received`, none if not asked for; `status` 0 is success."""
        if not received.need_reply:
            return b""
        request = received.message.request_id
        flags = HeaderFlag.VERSION_1 | HeaderFlag.REPLY
        return encode_header(MessageHeader(request, flags, _STATUS.size)) + _STATUS.pack(status)


def encode_back_end_message(message: BackEndMessage, *, need_reply: bool) -> bytes:
    """Return `message` with its header, as a back-end sends it."""
    payload = message.pack()
    flags = HeaderFlag.VERSION_1 | (HeaderFlag.NEED_REPLY if need_reply else 0)
    return encode_header(MessageHeader(message.request_id, flags, len(payload))) + payload


def first_byte(message: BackEndMessage) -> bytes:
    """Return the first byte of a message, which the front-end may be sent before the rest."""
    return _header(message.request_id)[:1]


def withdrawal(message: BackEndMessage) -> bytes:
    """Return what to send after the first byte of a message instead of the rest of it."""
    return _header(message.request_id | _UNKNOWN)[1:]


def _header(request: int) -> bytes:
    return encode_header(MessageHeader(request, HeaderFlag.VERSION_1, 0))


def _judge_request(header: MessageHeader) -> type[BackEndMessage]:
    try:
        request = BackEndRequestId(header.request)
    except ValueError:
        raise PeerError(f"request {header.request:#x} is unknown") from None
    if header.flags & ~REQUEST_FLAGS_MASK != HeaderFlag.VERSION_1:
        raise PeerError(f"{request.name} ({request.value}) has flags {header.flags:#x}")
    cls = BACK_END_MESSAGES.get(request)
    if cls is None or not cls.can_have(header.size):
        raise PeerError(f"{request.name} ({request.value}) has a payload of {header.size} bytes")
    return cls
