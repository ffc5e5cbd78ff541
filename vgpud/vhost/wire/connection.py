"""The back-end's end of a vhost-user connection, sans-IO: bytes and handles in, requests out.

It checks what a front-end sends and when: framing, header flags, feature negotiation, the protocol
feature that each request needs, the number of descriptors, and whether an answer is due. It has no
policy: every request that is legal is returned. A descriptor is an opaque handle here, of whatever
type the caller's transport has. Source: vhost-user.rst, "Communication" and "Front-end message
types".

    connection = Connection[Fd](features, protocol_features)
    while True:
        match connection.next_event():
            case NeedData():
                data, fds = ...  # at most connection.bytes_wanted bytes
                connection.receive_data(data, fds)  # or connection.receive_eof()
            case Received() as received:
                answer = connection.reply(received, ...)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Generic, TypeVar

from vgpud.errors import PeerError
from vgpud.vhost.wire.header import MessageHeader, decode_header, named
from vgpud.vhost.wire.messages import (
    GetConfig,
    SetFeatures,
    SetLogBase,
    SetProtocolFeatures,
    SetVringEnable,
)
from vgpud.vhost.wire.protocol import (
    F_FRONT_END_RING,
    F_LOG_ALL,
    F_PROTOCOL_FEATURES,
    HEADER,
    MAX_FDS,
    REQUEST_FLAGS_MASK,
    REQUIRES,
    UNSUPPORTED,
    FrontEndRequest,
    HeaderFlag,
    ProtocolFeature,
)
from vgpud.vhost.wire.replies import ConfigReply, EmptyReply, MessageReply, U64Reply, encode_reply
from vgpud.vhost.wire.requests import REQUESTS, Request, decode_request, request_class

SUPPORTED: Final = (
    ProtocolFeature.MQ
    | ProtocolFeature.LOG_SHMFD
    | ProtocolFeature.REPLY_ACK
    | ProtocolFeature.BACKEND_REQ
    | ProtocolFeature.CONFIG
    | ProtocolFeature.BACKEND_SEND_FD
    | ProtocolFeature.RESET_DEVICE
    | ProtocolFeature.SHMEM
)
"""What may be offered: the protocol features whose messages are implemented."""

H = TypeVar("H")
"""A handle of a descriptor."""


@dataclass(frozen=True, slots=True)
class Received(Generic[H]):
    """A legal request, with the handles that came with it, which are the receiver's now.

    `need_reply`: the front-end waits for an answer, which is the reply that some requests have, or
    the acknowledgement that it can ask for with any other. `Connection.reply` knows which.
    """

    message: Request
    handles: tuple[H, ...]
    need_reply: bool


@dataclass(frozen=True, slots=True)
class NeedData:
    """No whole request yet: read up to `bytes_wanted` bytes more."""


NEED_DATA: Final = NeedData()


def _beyond(features: ProtocolFeature, limit: ProtocolFeature) -> ProtocolFeature:
    # In ints: ~ on a flag inverts the bits that have a name, and would let all others through.
    return ProtocolFeature(int(features) & ~int(limit))


class Connection(Generic[H]):
    """The state of one connection, from the first byte to `close`.

    `features` is what the device offers in virtio's terms. The bits that belong to vhost are added
    here: VHOST_USER_F_PROTOCOL_FEATURES always, VHOST_F_LOG_ALL if LOG_SHMFD is offered. Raises
    `ValueError` for a protocol feature that is not in `SUPPORTED`.

    Calls that break the order below raise `RuntimeError`: they are bugs, not a front-end's doing.
    What a front-end does wrong raises `PeerError`, then and at every later call; only `close`
    remains.
    """

    def __init__(self, features: int, protocol_features: ProtocolFeature) -> None:
        if unknown := _beyond(protocol_features, SUPPORTED):
            raise ValueError(f"protocol features {unknown!r} are not implemented")
        log = F_LOG_ALL if ProtocolFeature.LOG_SHMFD in protocol_features else 0
        self._offered_features = int(features) | F_PROTOCOL_FEATURES | log
        self._offered_protocol_features = protocol_features
        self._features = 0
        self._protocol_features = ProtocolFeature(0)
        self._buffer = bytearray()
        self._handles: list[H] = []
        self._header: MessageHeader | None = None  # of the message in the buffer, once judged
        self._owed: Received[H] | None = None  # the request that the front-end waits for
        self._failure = ""
        self._closed = False

    @property
    def offered_features(self) -> int:
        """The answer to GET_FEATURES."""
        return self._offered_features

    @property
    def offered_protocol_features(self) -> ProtocolFeature:
        """The answer to GET_PROTOCOL_FEATURES."""
        return self._offered_protocol_features

    @property
    def features(self) -> int:
        """Features of the last SET_FEATURES, with vhost's own bits; 0 before the first."""
        return self._features

    @property
    def protocol_features(self) -> ProtocolFeature:
        """Features of the last SET_PROTOCOL_FEATURES; none before the first."""
        return self._protocol_features

    @property
    def bytes_wanted(self) -> int:
        """How many bytes to read at most, so that descriptors stay with their message.

        First a header's, then a payload's; 0 if `next_event` is to be called first.
        """
        return self._end - len(self._buffer)

    @property
    def _end(self) -> int:
        return HEADER.size + (self._header.size if self._header else 0)

    def receive_data(self, data: bytes, handles: Sequence[H] = ()) -> None:
        """Take bytes just read, and the handles that came with them, until `close` or a request
        returns them.

        Judges nothing: call `next_event`. Raises `RuntimeError` for more than `bytes_wanted`, or
        for none (the end of the stream is `receive_eof`).
        """
        self._handles += handles  # first of all: however this ends, close() must find them
        self._check_open()
        if not 0 < len(data) <= self.bytes_wanted:
            raise RuntimeError(f"{len(data)} bytes received, {self.bytes_wanted} wanted")
        self._buffer += data

    def receive_eof(self) -> None:
        """End the input. Raises `PeerError` if the front-end left in the middle of a message."""
        self._check_open()
        if self._buffer:
            request = f"{self._header.request}" if self._header else "unknown"
            self._fail(
                f"the front-end left in the middle of a message (request {request}, "
                f"{len(self._buffer)} bytes of it came)"
            )

    def next_event(self) -> Received[H] | NeedData:
        """Return the next request, or `NeedData`.

        Raises `PeerError` if the front-end broke the protocol, `RuntimeError` if the request before
        this one has not been answered: replies have no other tie to their request than their order.
        """
        self._check_open()
        if self._owed is not None:
            request = self._owed.message.request_id
            raise RuntimeError(f"{named(request)} has not been answered")
        try:
            return self._next_event()
        except PeerError as error:
            self._failure = str(error)
            raise

    def reply(self, received: Received[H], reply: MessageReply | None = None) -> bytes:
        """Return the answer to `received`: `reply`, or an acknowledgement if it asks for one, or no
        bytes.

        A request that has a reply of its own needs one of the right type (SET_LOG_BASE's may be
        left out), all others must have none; a GET_CONFIG's must be of the requested offset and
        size. Raises `TypeError` or `ValueError` otherwise.
        """
        request = received.message.request_id
        reply_type = received.message.reply
        if reply is None:
            reply = EmptyReply() if reply_type is EmptyReply else None
        if not isinstance(reply, reply_type or type(None)):
            raise TypeError(f"{named(request)} can't be answered with {reply!r}")
        if isinstance(received.message, GetConfig) and isinstance(reply, ConfigReply):
            asked = received.message
            if (asked.offset, asked.size) != (reply.offset, len(reply.data)):
                raise ValueError(f"{asked!r} can't be answered with {reply!r}")
        return self._answer(received, reply or U64Reply(0))

    def refuse(self, received: Received[H]) -> bytes:
        """Return the answer that `received` failed; no bytes if the front-end does not wait.

        Raises `PeerError`, which ends the connection, for a request whose reply has no form for a
        failure.
        """
        match received.message:
            case GetConfig():
                return self._answer(received, EmptyReply())
            case SetLogBase():
                # A u64 where an empty reply was due: more than the specification says, but
                # front-ends that look at the payload see a failure, and the others are not left
                # waiting.
                return self._answer(received, U64Reply(1))
            case message:
                if message.reply is not None:
                    self._fail(f"{message!r} can't be answered")
                return self._answer(received, U64Reply(1))

    def close(self) -> tuple[H, ...]:
        """End the connection, and return the handles that no request returned, to be closed."""
        handles = tuple(self._handles)
        self._handles.clear()
        self._buffer.clear()
        self._header = None
        self._owed = None
        self._closed = True
        return handles

    # -- Judging -----------------------------------------------------------------------------------

    def _check_open(self) -> None:
        if self._failure:
            raise PeerError(f"the session is over: {self._failure}")
        if self._closed:
            raise RuntimeError("the session has been closed")

    def _fail(self, failure: str) -> None:
        self._failure = failure
        raise PeerError(failure)

    def _next_event(self) -> Received[H] | NeedData:
        # Also with half a header: a front-end must not be able to use up our fd table a byte at a
        # time.
        if len(self._handles) > MAX_FDS:
            raise PeerError(f"a message has {len(self._handles)} fds: {MAX_FDS} is the most of any")
        if self._header is None:
            if len(self._buffer) < HEADER.size:
                return NEED_DATA
            self._header = self._judge_header(decode_header(self._buffer))
        request = FrontEndRequest(self._header.request)
        if len(self._handles) > REQUESTS[request].max_fds:
            raise PeerError(f"{named(request)} has {len(self._handles)} fds, too many")
        if len(self._buffer) < self._end:
            return NEED_DATA
        message = decode_request(request, bytes(self._buffer[HEADER.size :]))
        if len(self._handles) != message.fd_count():
            raise PeerError(
                f"{named(request)} has {len(self._handles)} fds, must have {message.fd_count()}"
            )
        self._negotiate(message)
        return self._hand_out(message, self._header)

    def _judge_header(self, header: MessageHeader) -> MessageHeader:
        try:
            request = FrontEndRequest(header.request)
        except ValueError:
            raise PeerError(f"request {header.request:#x} is unknown") from None
        if header.flags & ~REQUEST_FLAGS_MASK != HeaderFlag.VERSION_1:
            raise PeerError(f"{named(request)} has flags {header.flags:#x}, not 0x1 or 0x9")
        feature = REQUIRES.get(request)
        if feature is not None and feature not in self._protocol_features:
            raise PeerError(f"{named(request)} needs {feature.name}, which was not negotiated")
        request_class(request, header.size)  # raises for one that can't be decoded
        return header

    def _negotiate(self, message: Request) -> None:
        match message:
            case SetFeatures(features):
                if unoffered := features & ~(self._offered_features | F_FRONT_END_RING):
                    reasons = (text for bit, text in UNSUPPORTED.items() if unoffered & bit)
                    raise PeerError(
                        f"{named(FrontEndRequest.SET_FEATURES)} has {unoffered:#x}, "
                        + "; ".join(["which was not offered", *reasons])
                    )
                self._features = features
            case SetProtocolFeatures(protocol_features):
                if other := _beyond(protocol_features, self._offered_protocol_features):
                    raise PeerError(
                        f"{named(FrontEndRequest.SET_PROTOCOL_FEATURES)} has {int(other):#x}, "
                        "which was not offered"
                    )
                self._protocol_features = protocol_features
            case SetVringEnable() if not self._features & F_PROTOCOL_FEATURES:
                # Without that bit a ring runs from the start, and there is nothing to enable.
                raise PeerError(
                    f"{named(FrontEndRequest.SET_VRING_ENABLE)} needs "
                    "VHOST_USER_F_PROTOCOL_FEATURES, "
                    f"which SET_FEATURES did not have ({self._features:#x})"
                )
            case _:
                pass

    def _hand_out(self, message: Request, header: MessageHeader) -> Received[H]:
        # After _negotiate: the message that turns REPLY_ACK on can itself ask for an
        # acknowledgement. Without REPLY_ACK the flag means nothing, and must not be answered.
        asked = header.flags & HeaderFlag.NEED_REPLY
        acknowledge = bool(asked) and ProtocolFeature.REPLY_ACK in self._protocol_features
        received = Received(message, tuple(self._handles), message.reply is not None or acknowledge)
        self._handles.clear()
        self._buffer.clear()
        self._header = None
        self._owed = received if received.need_reply else None
        return received

    def _answer(self, received: Received[H], reply: MessageReply) -> bytes:
        self._check_open()
        if not received.need_reply:
            return b""
        if received is not self._owed:
            raise RuntimeError(f"{received.message!r} is not the request to be answered")
        self._owed = None
        return encode_reply(received.message.request_id, reply)
