"""A front-end for the connection's tests that sends bytes and has no socket."""

from __future__ import annotations

import pytest

from vgpud.errors import PeerError
from vgpud.vhost.wire import messages as m
from vgpud.vhost.wire.connection import SUPPORTED, Connection, NeedData, Received
from vgpud.vhost.wire.protocol import F_PROTOCOL_FEATURES, HEADER, FrontEndRequest, ProtocolFeature
from vgpud.vhost.wire.replies import (
    ConfigReply,
    EmptyReply,
    MessageReply,
    ShmemConfig,
    U64Reply,
    VringState,
)
from vgpud.vhost.wire.requests import Request, encode_request

DEVICE = 1 << 32 | 0b11111

REPLIES: dict[FrontEndRequest, MessageReply] = {
    FrontEndRequest.GET_FEATURES: U64Reply(DEVICE),
    FrontEndRequest.GET_PROTOCOL_FEATURES: U64Reply(8),
    FrontEndRequest.GET_QUEUE_NUM: U64Reply(2),
    FrontEndRequest.SET_LOG_BASE: EmptyReply(),
    FrontEndRequest.GET_VRING_BASE: VringState(1, 7),
    FrontEndRequest.GET_CONFIG: ConfigReply(8, 0, bytes(4)),
    FrontEndRequest.GET_SHMEM_CONFIG: ShmemConfig((0, 4096)),
}


class Peer:
    """A session and the bytes it is given, read as a pump reads a socket."""

    def __init__(self, offered: ProtocolFeature = SUPPORTED, features: int = DEVICE) -> None:
        self.session = Connection[int](features, offered)

    def feed(
        self, data: bytes, fds: tuple[int, ...] = (), step: int = 1 << 16
    ) -> list[Received[int]]:
        """All requests in `data`; the fds come with its first bytes."""
        received: list[Received[int]] = []
        while data:
            wanted = min(self.session.bytes_wanted, step)
            assert wanted > 0
            self.session.receive_data(data[:wanted], fds)
            data, fds = data[wanted:], ()
            event = self.session.next_event()
            if isinstance(event, Received):
                received.append(event)
        if not (received and received[-1].need_reply):
            assert isinstance(self.session.next_event(), NeedData)
        return received

    def ask(
        self, message: Request, fds: tuple[int, ...] = (), *, need_reply: bool = False
    ) -> Received[int]:
        (received,) = self.feed(encode_request(message, need_reply=need_reply), fds)
        return received

    def negotiate(self, features: ProtocolFeature = SUPPORTED) -> Peer:
        self.ask(m.SetProtocolFeatures(features))
        self.ask(m.SetFeatures(DEVICE | F_PROTOCOL_FEATURES))
        return self


def broken(peer: Peer, complaint: str, data: bytes, fds: tuple[int, ...] = ()) -> None:
    """`data` ends the session for good, and the fds that came with it are not lost."""
    with pytest.raises(PeerError, match=complaint):
        peer.feed(data, fds)
    with pytest.raises(PeerError, match=complaint):
        peer.session.next_event()
    with pytest.raises(PeerError, match=complaint):
        peer.session.receive_data(b"\1", [99])
    assert peer.session.close() == (*fds, 99)
    assert peer.session.close() == ()


def raw(request: int, flags: int = 1, payload: bytes = b"", size: int | None = None) -> bytes:
    return HEADER.pack(request, flags, len(payload) if size is None else size) + payload
