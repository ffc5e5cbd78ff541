"""What the back-end's connection answers and refuses, and which calls are errors of its user."""

from __future__ import annotations

import pytest

from tests.vhost.wire.cases import REQUESTS, Case
from tests.vhost.wire.peer import REPLIES, Peer, raw
from vgpud.errors import PeerError
from vgpud.vhost.wire import messages as m
from vgpud.vhost.wire.connection import SUPPORTED, Received
from vgpud.vhost.wire.protocol import HEADER, FrontEndRequest, ProtocolFeature
from vgpud.vhost.wire.replies import ConfigReply, EmptyReply, U64Reply
from vgpud.vhost.wire.requests import decode_reply, encode_request

requests = pytest.mark.parametrize("case", REQUESTS, ids=str)


@requests
def test_need_reply_is_obeyed_if_negotiated(case: Case) -> None:
    peer = Peer().negotiate()
    received = peer.ask(case.message, tuple(range(case.fds)), need_reply=True)
    assert received.need_reply
    answer = peer.session.reply(received, REPLIES.get(case.request))
    request, flags, size = HEADER.unpack(answer[:12])
    assert (request, flags, size) == (case.request, 0x5, len(answer) - 12)
    reply = decode_reply(case.request, answer[12:])
    assert reply == REPLIES.get(case.request, U64Reply(0))


@requests
def test_need_reply_is_ignored_if_not_negotiated(case: Case) -> None:
    if case.request is FrontEndRequest.SET_PROTOCOL_FEATURES:
        return
    peer = Peer().negotiate(SUPPORTED & ~ProtocolFeature.REPLY_ACK)
    received = peer.ask(case.message, tuple(range(case.fds)), need_reply=True)
    assert received.need_reply == (case.message.reply is not None)
    if not received.need_reply:
        assert peer.session.reply(received) == b""
        assert peer.session.refuse(received) == b""


def test_the_message_that_turns_reply_ack_on_can_be_acknowledged() -> None:
    peer = Peer()
    received = peer.ask(m.SetProtocolFeatures(ProtocolFeature.REPLY_ACK), need_reply=True)
    assert peer.session.reply(received) == bytes.fromhex("10000000 05000000 08000000") + bytes(8)


@requests
def test_refusal(case: Case) -> None:
    peer = Peer().negotiate()
    received = peer.ask(case.message, tuple(range(case.fds)), need_reply=True)
    if case.request is FrontEndRequest.GET_CONFIG:
        assert peer.session.refuse(received) == raw(24, 5)
    elif case.message.reply is not None and case.request is not FrontEndRequest.SET_LOG_BASE:
        with pytest.raises(PeerError, match="can't be answered"):
            peer.session.refuse(received)
        with pytest.raises(PeerError):
            peer.session.next_event()
    else:
        expected = raw(case.request, 5, (1).to_bytes(8, "little"))
        assert peer.session.refuse(received) == expected


def test_refusal_leaves_the_session_alive() -> None:
    peer = Peer().negotiate()
    received = peer.ask(m.SetVringNum(9, 64), need_reply=True)
    peer.session.refuse(received)
    assert peer.ask(m.SetOwner()).message == m.SetOwner()


def test_answers_can_not_be_skipped_repeated_or_confused() -> None:
    peer = Peer().negotiate()
    received = peer.ask(m.GetFeatures())
    with pytest.raises(RuntimeError, match=r"GET_FEATURES \(1\) has not been answered"):
        peer.session.next_event()
    with pytest.raises(TypeError, match="GET_FEATURES"):
        peer.session.reply(received)
    with pytest.raises(TypeError, match="GET_FEATURES"):
        peer.session.reply(received, EmptyReply())
    other: Received[int] = Received(m.GetQueueNum(), (), need_reply=True)
    with pytest.raises(RuntimeError, match="not the request"):
        peer.session.reply(other, U64Reply(2))
    assert peer.session.reply(received, U64Reply(0))
    with pytest.raises(RuntimeError, match="not the request"):
        peer.session.reply(received, U64Reply(0))
    acknowledged = peer.ask(m.SetOwner(), need_reply=True)
    with pytest.raises(TypeError, match="SET_OWNER"):
        peer.session.reply(acknowledged, U64Reply(0))


@pytest.mark.parametrize("reply", [ConfigReply(8, 0, bytes(3)), ConfigReply(4, 0, bytes(4))])
def test_config_reply_must_be_what_was_asked(reply: ConfigReply) -> None:
    peer = Peer().negotiate()
    received = peer.ask(m.GetConfig(8, 4, 0))
    with pytest.raises(ValueError, match="GetConfig"):
        peer.session.reply(received, reply)


def test_log_base_is_answered_without_being_told_how() -> None:
    peer = Peer().negotiate()
    received = peer.ask(m.SetLogBase(4096, 0), (5,))
    assert peer.session.reply(received) == raw(6, 5)


def test_misuse_is_not_the_front_ends_fault() -> None:
    session = Peer().session
    assert session.bytes_wanted == 12
    for data in (b"", bytes(13)):
        with pytest.raises(RuntimeError, match="12 wanted"):
            session.receive_data(data, [3])
    session.receive_data(encode_request(m.SetOwner()))
    assert session.bytes_wanted == 0
    assert session.close() == (3, 3)
    with pytest.raises(RuntimeError, match="closed"):
        session.next_event()
