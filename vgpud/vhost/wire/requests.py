"""Requests of a vhost-user front-end: how one is declared, and turned into bytes and back.

The requests themselves are in `messages`; importing it fills the table `REQUESTS`. The checks here
need nothing but the message itself; `connection` checks the order of requests and the number of
descriptors. Both directions are here, so that a front-end can
be made of the same parts. Source: vhost-user.rst, "Front-end message types".
"""

from __future__ import annotations

from collections.abc import Callable
from struct import Struct
from typing import ClassVar, Final, TypeVar

from vgpud.errors import PeerError
from vgpud.vhost.wire.header import MessageHeader, encode_header, named
from vgpud.vhost.wire.payload import Payload
from vgpud.vhost.wire.protocol import FrontEndRequest, HeaderFlag
from vgpud.vhost.wire.replies import EmptyReply, MessageReply, U64Reply


class Request(Payload):
    """The base of all requests; the class variables come from the decorator `request`.

    `max_fds`: how many descriptors one can come with at most. `reply`: the class of the reply that
    the request always has; None where it is acknowledged, if it asks for that.
    """

    __slots__ = ()

    request_id: ClassVar[FrontEndRequest]
    max_fds: ClassVar[int]
    reply: ClassVar[type[MessageReply] | None]

    def fd_count(self) -> int:
        """Return how many descriptors this request must come with."""
        return self.max_fds


_R = TypeVar("_R", bound=Request)

REQUESTS: Final[dict[FrontEndRequest, type[Request]]] = {}
"""The class of each request that has been declared; others can't be decoded."""


def request(
    request_id: FrontEndRequest,
    layout: str = "=",
    *,
    max_fds: int = 0,
    reply: type[MessageReply] | None = None,
) -> Callable[[type[_R]], type[_R]]:
    """Declare a dataclass to be a request; `layout` is the format of its fields for `struct`.

    Raises `ValueError` if there is one with this id.
    """

    def declare(cls: type[_R]) -> type[_R]:
        if request_id in REQUESTS:
            raise ValueError(f"{named(request_id)} is declared twice")
        cls.request_id, cls.layout = request_id, Struct(layout)
        cls.max_fds, cls.reply = max_fds, reply
        REQUESTS[request_id] = cls
        return cls

    return declare


def encode_request(message: Request, *, need_reply: bool = False) -> bytes:
    """Return `message` with its header; `need_reply` asks for an answer."""
    payload = message.pack()
    flags = HeaderFlag.VERSION_1 | (HeaderFlag.NEED_REPLY if need_reply else 0)
    return encode_header(MessageHeader(message.request_id, flags, len(payload))) + payload


def decode_request(request_id: FrontEndRequest, payload: bytes) -> Request:
    """Return the value of a request's payload.

    Raises `PeerError` for a size that the request can't have, and for a field that has no meaning.
    """
    return request_class(request_id, len(payload)).unpack(payload)


def request_class(request_id: FrontEndRequest, size: int) -> type[Request]:
    """Return the class of a request with `size` bytes of payload.

    Raises `PeerError` if the request is not for this back-end or can't have that size.
    """
    cls = REQUESTS.get(request_id)
    if cls is None:
        raise PeerError(f"{named(request_id)} is not a message to this kind of back-end")
    if not cls.can_have(size):
        raise PeerError(f"{named(request_id)} has a payload of {size} bytes")
    return cls


def decode_reply(request_id: FrontEndRequest, payload: bytes) -> MessageReply:
    """Return the value of a reply's payload, given what was asked.

    No payload at all is an `EmptyReply`, whatever was asked. A u64 in place of a SET_LOG_BASE's
    empty reply is a failure. Raises `PeerError` for a reply of the wrong size.
    """
    if not payload:
        return EmptyReply()
    asked = REQUESTS.get(request_id)
    cls = asked.reply if asked else None
    if cls is None or cls is EmptyReply:
        cls = U64Reply
    if not cls.can_have(len(payload)):
        raise PeerError(f"the reply to {named(request_id)} has a payload of {len(payload)} bytes")
    return cls.unpack(payload)
