"""The back-end's session: framing, fds, negotiation, and ways to break the protocol."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.vhost.wire.cases import REQUESTS, Case, regions
from tests.vhost.wire.peer import DEVICE, REPLIES, Peer, broken, raw
from vgpud.errors import PeerError
from vgpud.vhost.wire import messages as m
from vgpud.vhost.wire.connection import SUPPORTED, Connection, NeedData, Received
from vgpud.vhost.wire.protocol import (
    F_LOG_ALL,
    F_PROTOCOL_FEATURES,
    HEADER,
    MAX_FDS,
    REQUIRES,
    FrontEndRequest,
    ProtocolFeature,
)
from vgpud.vhost.wire.requests import REQUESTS as DECLARED
from vgpud.vhost.wire.requests import encode_request

PACKED = 1 << 34

requests = pytest.mark.parametrize("case", REQUESTS, ids=str)


# -- Every request --------------------------------------------------------------------------------


@requests
@pytest.mark.parametrize("step", [1, 5, 1 << 16])
def test_request_comes_out(case: Case, step: int) -> None:
    peer = Peer().negotiate()
    fds = tuple(range(50, 50 + case.fds))
    for _ in range(2):
        (received,) = peer.feed(encode_request(case.message), fds, step)
        assert received == Received(case.message, fds, case.message.reply is not None)
        answer = peer.session.reply(received, REPLIES.get(case.request))
        assert bool(answer) == received.need_reply
    assert peer.session.close() == ()


@requests
def test_fds_may_come_with_any_byte(case: Case) -> None:
    data = encode_request(case.message)
    for position in range(len(data)):
        peer = Peer().negotiate()
        fds = tuple(range(50, 50 + case.fds))
        received: list[Received[int]] = []
        for index, byte in enumerate(data):
            peer.session.receive_data(bytes([byte]), fds if index == position else ())
            event = peer.session.next_event()
            if isinstance(event, Received):
                received.append(event)
        assert [r.handles for r in received] == [fds]


@requests
def test_truncated_request_waits_then_is_an_error_at_the_end(case: Case) -> None:
    data = encode_request(case.message)
    fds = tuple(range(50, 50 + case.fds))
    for length in range(1, len(data)):
        peer = Peer().negotiate()
        assert peer.feed(data[:length], fds) == []
        with pytest.raises(PeerError, match="middle of a message"):
            peer.session.receive_eof()
        assert peer.session.close() == fds


def test_end_between_messages_is_no_error() -> None:
    peer = Peer().negotiate()
    peer.session.receive_eof()
    assert peer.session.close() == ()


@requests
def test_wrong_number_of_fds(case: Case) -> None:
    data = encode_request(case.message)
    for count in {0, case.fds - 1, case.fds + 1, MAX_FDS + 1} - {-1, case.fds}:
        name = rf"{case.request.name} \({case.request.value}\) has {count} fds|has {count} fds: 32"
        broken(Peer().negotiate(), name, data, tuple(range(50, 50 + count)))


def test_too_many_fds_are_refused_before_the_header_is_there() -> None:
    peer = Peer()
    with pytest.raises(PeerError, match="a message has 33 fds"):
        peer.feed(b"\1", tuple(range(50, 83)))
    assert len(peer.session.close()) == 33


def test_too_many_fds_are_refused_before_the_payload_is_there() -> None:
    head = encode_request(m.SetVringKick(0, True))[: HEADER.size]
    broken(Peer(), r"SET_VRING_KICK \(12\) has 2 fds", head, (50, 51))


def test_fds_a_byte_at_a_time_are_refused_in_time() -> None:
    peer = Peer()
    peer.session.receive_data(b"\5", range(20))
    assert isinstance(peer.session.next_event(), NeedData)
    peer.session.receive_data(b"\0", range(20, 40))
    with pytest.raises(PeerError, match="40 fds"):
        peer.session.next_event()
    assert peer.session.close() == tuple(range(40))


def test_largest_mem_table() -> None:
    peer = Peer()
    fds = tuple(range(32))
    assert peer.ask(m.SetMemTable(regions(32)), fds).handles == fds
    broken(peer, "payload of 1064 bytes", encode_request(m.SetMemTable(regions(33))), fds)


def test_fds_of_one_message_do_not_reach_the_next() -> None:
    peer = Peer()
    assert peer.ask(m.SetLogFd(), (7,)).handles == (7,)
    assert peer.ask(m.SetOwner()).handles == ()
    assert peer.ask(m.GpuSetSocket(), (8,)).handles == (8,)
    assert peer.session.close() == ()


# -- Headers --------------------------------------------------------------------------------------


@pytest.mark.parametrize("request_id", [0, 45, 0x1000, 0xFFFF_FFFF])
def test_unknown_request(request_id: int) -> None:
    broken(Peer().negotiate(), f"request {request_id:#x} is unknown", raw(request_id), (50,))


@pytest.mark.parametrize("flags", [0, 2, 3, 1 | 4, 1 | 4 | 8, 1 | 16, 8, 1 | 1 << 31, 0xFFFF_FFFF])
def test_wrong_flags(flags: int) -> None:
    broken(Peer(), rf"GET_FEATURES \(1\) has flags {flags:#x}", raw(1, flags))


@pytest.mark.parametrize("request_id", list(DECLARED))
@pytest.mark.parametrize("size", [1, 7, 1040, 4097, 0x7FFF_FFFF, 0xFFFF_FFFF])
def test_wrong_size_is_refused_before_the_payload_is_read(
    request_id: FrontEndRequest, size: int
) -> None:
    if DECLARED[request_id].can_have(size):
        return
    complaint = rf"{request_id.name} \({request_id.value}\) has a payload of {size} bytes"
    broken(Peer().negotiate(), complaint, raw(request_id, size=size))


def test_error_in_a_payload_ends_the_session() -> None:
    peer = Peer().negotiate()
    bad = raw(FrontEndRequest.SET_VRING_KICK, payload=struct.pack("=Q", 0x200))
    broken(peer, r"SET_VRING_KICK \(12\) has 0x200", bad, (50,))


# -- Negotiation ----------------------------------------------------------------------------------


def test_what_is_offered() -> None:
    peer = Peer(ProtocolFeature.MQ)
    assert peer.session.offered_features == DEVICE | F_PROTOCOL_FEATURES
    assert peer.session.offered_protocol_features == ProtocolFeature.MQ
    assert Peer(SUPPORTED).session.offered_features & F_LOG_ALL


def test_only_what_is_implemented_can_be_offered() -> None:
    with pytest.raises(ValueError, match="GPA_ADDRESSES"):
        Connection[int](DEVICE, ProtocolFeature.MQ | ProtocolFeature.GPA_ADDRESSES)
    with pytest.raises(ValueError, match="not implemented"):
        Connection[int](DEVICE, ProtocolFeature(1 << 40))


def test_what_was_negotiated_shows() -> None:
    peer = Peer()
    assert (peer.session.features, peer.session.protocol_features) == (0, ProtocolFeature(0))
    peer.negotiate(ProtocolFeature.MQ)
    assert peer.session.features == DEVICE | F_PROTOCOL_FEATURES
    assert peer.session.protocol_features == ProtocolFeature.MQ
    peer.ask(m.SetFeatures(1 << 32))
    assert peer.session.features == 1 << 32


@pytest.mark.parametrize("bit", [5, 23, 26, 33, 34, 35, 38, 63])
def test_feature_that_was_not_offered(bit: int) -> None:
    peer = Peer(ProtocolFeature.MQ)
    broken(peer, rf"SET_FEATURES \(2\) has {1 << bit:#x}", encode_request(m.SetFeatures(1 << bit)))
    assert peer.session.features == 0


@pytest.mark.parametrize(
    ("bit", "words"),
    [
        (33, "VIRTIO_F_ACCESS_PLATFORM: .* behind a vIOMMU .*iommu_platform=off"),
        (34, "VIRTIO_F_RING_PACKED: .*packed=off"),
        (35, "VIRTIO_F_IN_ORDER: .*in_order=off"),
    ],
)
def test_an_option_of_the_vmm_that_can_not_be_is_named(bit: int, words: str) -> None:
    features = DEVICE | F_PROTOCOL_FEATURES | 1 << bit
    complaint = f"has {1 << bit:#x}, which was not offered; {words}"
    broken(Peer(), complaint, encode_request(m.SetFeatures(features)))


def test_ring_features_that_qemu_adds_are_taken() -> None:
    peer = Peer()
    added = sum(1 << bit for bit in (24, 27, 28, 29, 40))
    peer.ask(m.SetFeatures(DEVICE | F_PROTOCOL_FEATURES | added))
    assert peer.session.features & added == added
    broken(peer, f"has {PACKED:#x}", encode_request(m.SetFeatures(DEVICE | PACKED | added)))


@pytest.mark.parametrize("bit", [2, 15, 21, 23, 63])
def test_protocol_feature_that_was_not_offered(bit: int) -> None:
    message = m.SetProtocolFeatures(ProtocolFeature(1 << bit | 1))
    complaint = rf"SET_PROTOCOL_FEATURES \(16\) has {1 << bit:#x}, "
    broken(Peer(), complaint, encode_request(message))


@pytest.mark.parametrize("request_id", [c for c in REQUIRES if c in DECLARED])
def test_request_without_its_extension(request_id: FrontEndRequest) -> None:
    (case,) = (case for case in REQUESTS if case.request is request_id)
    assert REQUIRES[request_id] == case.extension
    fds = tuple(range(50, 50 + case.fds))
    complaint = f"{request_id.name} .* needs {case.extension.name}, which was not negotiated"
    data = encode_request(case.message)
    broken(Peer(), complaint, data, fds)  # offered, not yet taken
    broken(Peer().negotiate(SUPPORTED & ~case.extension), complaint, data, fds)
    assert Peer().negotiate(case.extension).ask(case.message, fds).message == case.message


def test_every_extension_in_the_table_is_checked() -> None:
    assert {c.request for c in REQUESTS if c.extension} == set(REQUIRES) & set(DECLARED)


@pytest.mark.parametrize("request_id", [r for r in FrontEndRequest if r not in DECLARED])
def test_request_for_other_devices(request_id: FrontEndRequest) -> None:
    complaint = rf"{request_id.name} \({request_id.value}\) (needs|is not a message)"
    broken(Peer().negotiate(), complaint, raw(request_id, payload=bytes(8)[:0], size=8))


def test_enabling_rings_needs_protocol_features_acknowledged() -> None:
    enable = encode_request(m.SetVringEnable(0, True))
    peer = Peer()
    peer.ask(m.SetFeatures(DEVICE))
    broken(peer, r"SET_VRING_ENABLE \(18\) needs VHOST_USER_F_PROTOCOL_FEATURES", enable)
    peer = Peer()
    peer.ask(m.SetProtocolFeatures(SUPPORTED))
    broken(peer, r"SET_VRING_ENABLE \(18\) needs", enable)


# -- Anything -------------------------------------------------------------------------------------


@given(st.binary(max_size=200), st.integers(1, 40))
def test_noise_is_a_peer_error_or_a_wait(data: bytes, step: int) -> None:
    peer = Peer()
    try:
        peer.feed(data, (50, 51), step)
    except PeerError:
        with pytest.raises(PeerError):
            peer.session.next_event()
    if data:
        assert peer.session.close() == (50, 51)


@given(st.lists(st.sampled_from(REQUESTS), max_size=12), st.integers(1, 64))
def test_any_legal_order_in_any_pieces(cases: list[Case], step: int) -> None:
    """Features may be set again at any time, so gates can close: then the session says so."""
    peer = Peer().negotiate()
    fd = 50
    handed: list[int] = []
    for case in cases:
        fds = tuple(range(fd, fd + case.fds))
        fd += case.fds
        open_gate = case.extension in peer.session.protocol_features
        try:
            (received,) = peer.feed(encode_request(case.message), fds, step)
        except PeerError:
            assert not open_gate
            handed += peer.session.close()
            break
        assert open_gate
        assert received.message == case.message
        handed += received.handles
        peer.session.reply(received, REPLIES.get(case.request))
    assert handed == list(range(50, fd))
