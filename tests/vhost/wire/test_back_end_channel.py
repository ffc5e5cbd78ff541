"""Both ends of the back-end's channel, against the hand-made table and against each other."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.vhost.wire.cases import BACKEND
from vgpud.errors import PeerError
from vgpud.vhost.wire.back_end_channel import (
    BackEndMessage,
    BackEndRequester,
    ConfigChange,
    FrontEndReply,
    FrontEndResponder,
    ReceivedBackEndMessage,
    ShmemMap,
    ShmemUnmap,
    Withdrawn,
    first_byte,
    withdrawal,
)
from vgpud.vhost.wire.protocol import HEADER, BackEndRequestId

MAP = ShmemMap(1, 0, 0, 4096, writable=True)
UNMAP = ShmemUnmap(1, 0, 4096)
CHANGE = ConfigChange()

table = pytest.mark.parametrize(
    ("request_id", "message", "payload"), BACKEND, ids=[str(v) for _, v, _ in BACKEND]
)


def status(request: int, value: int = 0, flags: int = 5, size: int = 8) -> bytes:
    return HEADER.pack(request, flags, size) + value.to_bytes(8, "little")


@table
@pytest.mark.parametrize("reply_ack", [False, True])
def test_request_is_written(
    request_id: BackEndRequestId, message: BackEndMessage, payload: str, reply_ack: bool
) -> None:
    channel = BackEndRequester(reply_ack=reply_ack)
    body = bytes.fromhex(payload)
    waits = reply_ack or message != CHANGE
    assert channel.send(message) == HEADER.pack(request_id, 9 if waits else 1, len(body)) + body
    assert channel.waiting == ((message,) if waits else ())


@table
@pytest.mark.parametrize("step", [1, 7, 1000])
def test_request_is_read(
    request_id: BackEndRequestId, message: BackEndMessage, payload: str, step: int
) -> None:
    channel = FrontEndResponder()
    data = HEADER.pack(request_id, 9, len(bytes.fromhex(payload))) + bytes.fromhex(payload)
    for _ in range(2):
        received = None
        rest = data
        while rest:
            assert received is None
            wanted = min(step, channel.bytes_wanted)
            channel.receive_data(rest[:wanted])
            rest = rest[wanted:]
            received = channel.next_request()
        assert received == ReceivedBackEndMessage(message, need_reply=True)
        assert channel.reply(received, 1) == status(request_id, 1)
        assert channel.next_request() is None


def test_no_answer_to_what_does_not_wait() -> None:
    channel = FrontEndResponder()
    channel.receive_data(HEADER.pack(BackEndRequestId.CONFIG_CHANGE_MSG, 1, 0))
    received = channel.next_request()
    assert received == ReceivedBackEndMessage(CHANGE, need_reply=False)
    assert channel.reply(received, 0) == b""


@pytest.mark.parametrize("step", [1, 7, 20, 1000])
def test_answers_come_in_the_order_asked(step: int) -> None:
    channel = BackEndRequester(reply_ack=True)
    for message in (MAP, CHANGE, UNMAP, MAP):
        channel.send(message)
    data = status(9, 0) + status(2, 0) + status(10, 2**64 - 1) + status(9, 1)
    replies = []
    for start in range(0, len(data), step):
        channel.receive_data(data[start : start + step])
        while reply := channel.next_reply():
            replies.append(reply)
    assert replies == [
        FrontEndReply(MAP, 0),
        FrontEndReply(CHANGE, 0),
        FrontEndReply(UNMAP, 2**64 - 1),
        FrontEndReply(MAP, 1),
    ]
    assert channel.waiting == ()


@pytest.mark.parametrize(
    ("data", "complaint"),
    [
        (status(10), r"answer to request 10 came: SHMEM_MAP \(9\) waits"),
        (status(2), "answer to request 2 came"),
        (status(99), "answer to request 99 came"),
        (status(9, flags=1), "flags 0x1, not 0x5"),
        (status(9, flags=0xD), "flags 0xd, not 0x5"),
        (status(9, flags=6), "flags 0x6"),
        (status(9, size=0), "0 bytes of payload"),
        (status(9, size=9), "9 bytes of payload"),
        (status(9, size=0xFFFF_FFFF), "4294967295 bytes of payload"),
        (status(9) + status(9), "nothing was asked"),
    ],
)
def test_wrong_answer_ends_the_channel(data: bytes, complaint: str) -> None:
    channel = BackEndRequester(reply_ack=False)
    channel.send(MAP)
    channel.receive_data(data)
    if len(data) > len(status(9)):
        assert channel.next_reply() == FrontEndReply(MAP, 0)
    with pytest.raises(PeerError, match=complaint):
        channel.next_reply()
    with pytest.raises(PeerError, match="over"):
        channel.next_reply()
    with pytest.raises(PeerError, match="over"):
        channel.send(UNMAP)


def test_config_change_without_reply_ack_takes_no_answer() -> None:
    channel = BackEndRequester(reply_ack=False)
    channel.send(CHANGE)
    channel.receive_data(status(2))
    with pytest.raises(PeerError, match="nothing was asked"):
        channel.next_reply()


def test_close_tells_who_waited() -> None:
    channel = BackEndRequester(reply_ack=False)
    for message in (MAP, UNMAP):
        channel.send(message)
    channel.receive_data(status(9)[:15])
    assert channel.close() == (MAP, UNMAP)
    assert channel.close() == ()
    with pytest.raises(PeerError, match="closed"):
        channel.send(MAP)


@pytest.mark.parametrize(
    ("data", "complaint"),
    [
        (HEADER.pack(0, 1, 0), "request 0x0 is unknown"),
        (HEADER.pack(77, 1, 0), "request 0x4d is unknown"),
        (HEADER.pack(9, 5, 40), "flags 0x5"),
        (HEADER.pack(9, 2, 40), "flags 0x2"),
        (HEADER.pack(9, 0x11, 40), "flags 0x11"),
        (HEADER.pack(9, 9, 39), "payload of 39 bytes"),
        (HEADER.pack(10, 9, 0), "payload of 0 bytes"),
        (HEADER.pack(2, 1, 8), "payload of 8 bytes"),
        (HEADER.pack(1, 1, 0), r"IOTLB_MSG \(1\)"),
        (HEADER.pack(9, 9, 40) + bytes(32) + b"\2" + bytes(7), "flags 0x2"),
    ],
)
def test_malformed_request_is_refused(data: bytes, complaint: str) -> None:
    channel = FrontEndResponder()
    channel.receive_data(data)
    with pytest.raises(PeerError, match=complaint):
        channel.next_request()


u64 = st.integers(0, 2**64 - 1)
messages = st.one_of(
    st.builds(ShmemMap, st.integers(0, 255), u64, u64, u64, st.booleans()),
    st.builds(ShmemUnmap, st.integers(0, 255), u64, u64),
    st.just(CHANGE),
)


@given(st.lists(st.tuples(messages, u64), max_size=8), st.booleans(), st.integers(1, 60))
def test_the_two_ends_agree(
    asked: list[tuple[BackEndMessage, int]], reply_ack: bool, step: int
) -> None:
    back, front = BackEndRequester(reply_ack=reply_ack), FrontEndResponder()
    answers = b""
    for message, value in asked:
        data = back.send(message)
        while data:
            wanted = min(step, front.bytes_wanted)
            front.receive_data(data[:wanted])
            data = data[wanted:]
        received = front.next_request()
        assert received is not None
        assert received.message == message
        answers += front.reply(received, value)
    expected = [FrontEndReply(*pair) for pair in asked if reply_ack or pair[0] != CHANGE]
    replies = []
    for start in range(0, len(answers), step):
        back.receive_data(answers[start : start + step])
        while reply := back.next_reply():
            replies.append(reply)
    assert replies == expected


@table
def test_a_message_can_be_withdrawn_after_its_first_byte(
    request_id: BackEndRequestId, message: BackEndMessage, payload: str
) -> None:
    begun = BackEndRequester(reply_ack=True).send(message)
    assert first_byte(message) == begun[:1]
    data = first_byte(message) + withdrawal(message)
    request, flags, size = HEADER.unpack(data)
    assert request not in list(BackEndRequestId)
    assert (flags, size) == (1, 0)  # no answer is wanted
    channel = FrontEndResponder()
    channel.receive_data(data + begun)
    received = channel.next_request()
    assert received == ReceivedBackEndMessage(Withdrawn(request_id), need_reply=False)
    assert channel.reply(received, 1) == b""
    assert channel.next_request() == ReceivedBackEndMessage(message, need_reply=True)
