"""Requests and replies, value by value and byte by byte, against the hand-made table."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.vhost.wire.cases import REPLIES, REQUESTS, Case
from vgpud.errors import PeerError
from vgpud.vhost.wire import messages as m
from vgpud.vhost.wire import protocol
from vgpud.vhost.wire.header import MessageHeader, decode_header, encode_header
from vgpud.vhost.wire.protocol import HEADER, BackEndRequestId, FrontEndRequest, ProtocolFeature
from vgpud.vhost.wire.replies import MessageReply, ShmemConfig, U64Reply, encode_reply
from vgpud.vhost.wire.requests import REQUESTS as DECLARED
from vgpud.vhost.wire.requests import decode_reply, decode_request, encode_request

requests = pytest.mark.parametrize("case", REQUESTS, ids=str)
replies = pytest.mark.parametrize(
    ("request_id", "reply", "payload"), REPLIES, ids=[f"{r.name}-{v}" for r, v, _ in REPLIES]
)


def test_the_table_has_every_request() -> None:
    assert {case.request for case in REQUESTS} == set(DECLARED)
    assert {type(case.message) for case in REQUESTS} == set(DECLARED.values())


def test_the_table_has_every_reply() -> None:
    assert {type(reply) for _, reply, _ in REPLIES} == {
        U64Reply,
        *(c.reply for c in DECLARED.values() if c.reply),
    }
    assert {request for request, _, _ in REPLIES} >= {i for i, c in DECLARED.items() if c.reply}


def test_ids_are_the_specifications() -> None:
    assert [request.value for request in FrontEndRequest] == list(range(1, 45))
    assert [request.value for request in BackEndRequestId] == list(range(1, 11))


def test_protocol_feature_bits_are_the_specifications() -> None:
    assert [feature.value.bit_length() - 1 for feature in ProtocolFeature] == list(range(23))
    assert ProtocolFeature.MQ.value == 1
    assert ProtocolFeature.CONFIG == 1 << 9
    assert ProtocolFeature.RESET_DEVICE == 1 << 13
    assert ProtocolFeature.GPA_ADDRESSES == 1 << 21
    assert ProtocolFeature.SHMEM == 1 << 22


def test_vhost_bits() -> None:
    assert protocol.F_LOG_ALL == 0x0400_0000
    assert protocol.F_PROTOCOL_FEATURES == 0x4000_0000
    assert protocol.VRING_NOFD == 0x100


def test_header() -> None:
    data = bytes.fromhex("05000000 09000000 48000000")
    assert decode_header(data) == MessageHeader(5, 9, 72)
    assert encode_header(MessageHeader(5, 9, 72)) == data


@requests
def test_request_is_written(case: Case) -> None:
    size = len(case.payload_bytes).to_bytes(4, "little")
    head = case.request.to_bytes(4, "little")
    assert encode_request(case.message) == head + b"\1\0\0\0" + size + case.payload_bytes
    asking = encode_request(case.message, need_reply=True)
    assert asking == head + b"\x09\0\0\0" + size + case.payload_bytes


@requests
def test_request_is_read(case: Case) -> None:
    assert decode_request(case.request, case.payload_bytes) == case.message
    assert case.message.request_id is case.request
    assert case.message.fd_count() == case.fds


@requests
def test_truncated_or_lengthened_request_is_refused_or_another(case: Case) -> None:
    """No prefix passes for the whole; one with a size field can't even pass for another."""
    lengths = [n for n in range(len(case.payload_bytes) + 9) if n != len(case.payload_bytes)]
    for length in lengths:
        payload = (case.payload_bytes + bytes(8))[:length]
        with pytest.raises(PeerError, match=case.request.name):
            decode_request(case.request, payload)


@pytest.mark.parametrize("request_id", sorted(set(FrontEndRequest) - set(DECLARED)))
def test_request_for_other_devices_is_refused(request_id: FrontEndRequest) -> None:
    with pytest.raises(PeerError, match=f"{request_id.name} .*not a message"):
        decode_request(request_id, bytes(8))


@pytest.mark.parametrize(
    ("request_id", "payload", "complaint"),
    [
        (FrontEndRequest.SET_VRING_ENABLE, "00000000 02000000", "num 0x2"),
        (FrontEndRequest.SET_VRING_ENABLE, "00000000 ffffffff", "num 0xffffffff"),
        (FrontEndRequest.SET_VRING_KICK, "0002000000000000", "0x200"),
        (FrontEndRequest.SET_VRING_CALL, "0000000000000080", "0x8000000000000000"),
        (FrontEndRequest.SET_VRING_ERR, "ff03000000000000", "0x3ff"),
        (FrontEndRequest.SET_VRING_ADDR, "00000000 02000000" + "00" * 32, "flags 0x2"),
        (FrontEndRequest.SET_MEM_TABLE, "01000000 00000000", "num regions 1"),
        (FrontEndRequest.SET_MEM_TABLE, "00000000 00000000" + "00" * 32, "num regions 0"),
        (FrontEndRequest.SET_MEM_TABLE, "ffffffff 00000000" + "00" * 32, "num regions 4294967295"),
        (FrontEndRequest.GET_CONFIG, "00000000 ffffffff 00000000", "size 4294967295"),
        (FrontEndRequest.SET_CONFIG, "00000000 01000000 00000000 0102", "size 1 and 2"),
    ],
)
def test_field_without_a_meaning_is_refused(
    request_id: FrontEndRequest, payload: str, complaint: str
) -> None:
    with pytest.raises(PeerError, match=rf"{request_id.name} \({request_id.value}\).*{complaint}"):
        decode_request(request_id, bytes.fromhex(payload))


def test_mem_table_sizes() -> None:
    assert m.SetMemTable.can_have(8 + 32 * protocol.MAX_MEM_REGIONS)
    assert not m.SetMemTable.can_have(8 + 32 * (protocol.MAX_MEM_REGIONS + 1))
    assert not m.SetMemTable.can_have(8 + 31)
    assert not m.SetMemTable.can_have(0)


@given(st.sampled_from(sorted(DECLARED)), st.binary(max_size=300))
def test_any_payload_is_read_or_refused(request_id: FrontEndRequest, payload: bytes) -> None:
    try:
        message = decode_request(request_id, payload)
    except PeerError:
        return
    assert message.fd_count() <= DECLARED[request_id].max_fds
    # Padding and the room in GET_CONFIG are not kept, so bytes need not come back; the value must.
    again = encode_request(message)[HEADER.size :]
    assert len(again) == len(payload)
    assert decode_request(request_id, again) == message


@replies
def test_reply_is_written(request_id: FrontEndRequest, reply: MessageReply, payload: str) -> None:
    body = bytes.fromhex(payload)
    head = request_id.to_bytes(4, "little") + b"\5\0\0\0" + len(body).to_bytes(4, "little")
    assert encode_reply(request_id, reply) == head + body


@replies
def test_reply_is_read(request_id: FrontEndRequest, reply: MessageReply, payload: str) -> None:
    assert decode_reply(request_id, bytes.fromhex(payload)) == reply


@replies
def test_truncated_reply_is_refused(
    request_id: FrontEndRequest, reply: MessageReply, payload: str
) -> None:
    body = bytes.fromhex(payload)
    lengths = {*range(1, min(len(body), 64)), len(body) - 1, len(body) + 1} - {-1, 0}
    if request_id is FrontEndRequest.SET_LOG_BASE:
        lengths.discard(8)
    for length in lengths:
        with pytest.raises(PeerError, match=request_id.name):
            decode_reply(request_id, (body + bytes(1))[:length])


def test_shmem_config_must_be_powers_of_two() -> None:
    with pytest.raises(ValueError, match=r"region 1: 0x3000 is not a power of two"):
        encode_reply(FrontEndRequest.GET_SHMEM_CONFIG, ShmemConfig((0, 0x3000)))


def test_shmem_config_counts_what_is_there() -> None:
    payload = encode_reply(FrontEndRequest.GET_SHMEM_CONFIG, ShmemConfig((0, 4096)))[12:]
    with pytest.raises(PeerError, match="counts 2 regions"):
        decode_reply(FrontEndRequest.GET_SHMEM_CONFIG, b"\2" + payload[1:])
    every = ShmemConfig(tuple(1 << (i % 64) for i in range(256)))
    full = encode_reply(FrontEndRequest.GET_SHMEM_CONFIG, every)
    assert len(full) == 12 + 2056
    assert decode_reply(FrontEndRequest.GET_SHMEM_CONFIG, full[12:]) == every
