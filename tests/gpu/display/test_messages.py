"""The display protocol: requests and replies both ways, whole, bytewise, truncated and hostile."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.gpu.display.front_end_messages import DisplayRequestReader, encode_reply
from vgpud.errors import PeerError
from vgpud.gpu.display.messages import (
    CURSOR_BYTES,
    HEADER_SIZE,
    DisplayCursorHide,
    DisplayCursorMove,
    DisplayCursorUpdate,
    DisplayFeature,
    DisplayFeatures,
    DisplayGetEdid,
    DisplayGetInfo,
    DisplayGetProtocolFeatures,
    DisplayReply,
    DisplayReplyReader,
    DisplayRequest,
    DisplayRequestId,
    DisplayScanout,
    DisplaySetProtocolFeatures,
    DisplayUpdate,
    encode,
)
from vgpud.gpu.wire.header import Rect
from vgpud.gpu.wire.protocol import ScanoutId
from vgpud.gpu.wire.responses import DisplayInfo, DisplayMode, Edid

S = ScanoutId(15)
CURSOR = bytes(range(256)) * (CURSOR_BYTES // 256)
PIXELS = bytes(range(24))
PLACE = (0xB1B2B3B4, 0xC1C2C3C4)

# A request, what follows its encoding, its number, and its payload as the document spells it.
REQUESTS: list[tuple[DisplayRequest, bytes, int, bytes]] = [
    (DisplayGetProtocolFeatures(), b"", 1, b""),
    (DisplaySetProtocolFeatures(1 << 63 | 3), b"", 2, struct.pack("=Q", 1 << 63 | 3)),
    (DisplayGetInfo(), b"", 3, b""),
    (DisplayCursorMove(S, *PLACE), b"", 4, struct.pack("=III", 15, *PLACE)),
    (DisplayCursorHide(S, *PLACE), b"", 5, struct.pack("=III", 15, *PLACE)),
    (
        DisplayCursorUpdate(S, *PLACE, 5, 6, CURSOR),
        b"",
        6,
        struct.pack("=IIIII", 15, *PLACE, 5, 6) + CURSOR,
    ),
    (DisplayScanout(S, 1280, 800), b"", 7, struct.pack("=III", 15, 1280, 800)),
    (DisplayUpdate(S, 1, 2, 3, 2), PIXELS, 8, struct.pack("=IIIII", 15, 1, 2, 3, 2) + PIXELS),
    (DisplayGetEdid(S), b"", 11, struct.pack("=I", 15)),
]
MODES = tuple(DisplayMode(Rect(0, 0, 1280 + at, 800), at == 0) for at in range(16))
REPLIES: list[tuple[DisplayReply, int, int]] = [
    (DisplayFeatures(DisplayFeature.EDID | 1 << 1 | 1 << 40), 1, 8),
    (DisplayInfo(MODES), 3, 408),
    (Edid(bytes(range(128)) * 2), 11, 1056),
]
requests = pytest.mark.parametrize(
    ("request_", "data", "number", "payload"),
    REQUESTS,
    ids=[type(request).__name__ for request, *_ in REQUESTS],
)
replies = pytest.mark.parametrize(
    ("reply", "number", "size"), REPLIES, ids=[type(reply).__name__ for reply, *_ in REPLIES]
)


def test_there_is_a_sample_of_every_request() -> None:
    assert [number for _, _, number, _ in REQUESTS] == list(DisplayRequestId)


@requests
def test_requests_both_ways(
    request_: DisplayRequest, data: bytes, number: int, payload: bytes
) -> None:
    message = encode(request_) + data
    assert message == struct.pack("=III", number, 0, len(payload)) + payload
    reader = DisplayRequestReader()
    reader.receive_data(message)
    assert reader.next_request() == (request_, data)
    assert reader.next_request() is None


@replies
def test_replies_both_ways(reply: DisplayReply, number: int, size: int) -> None:
    message = encode_reply(reply)
    assert message[:HEADER_SIZE] == struct.pack("=III", number, 4, size)
    assert len(message) == HEADER_SIZE + size
    reader = DisplayReplyReader()
    reader.receive_data(message)
    assert reader.next_reply() == reply
    assert reader.next_reply() is None


def test_all_requests_bytewise() -> None:
    reader = DisplayRequestReader()
    seen = []
    for request, data, _, _ in REQUESTS:
        for byte in encode(request) + data:
            assert reader.next_request() is None
            reader.receive_data(bytes([byte]))
        seen.append(reader.next_request())
    assert seen == [(request, data) for request, data, _, _ in REQUESTS]


def test_all_replies_bytewise() -> None:
    reader = DisplayReplyReader()
    seen = []
    for reply, _, _ in REPLIES:
        for byte in encode_reply(reply):
            assert reader.next_reply() is None
            reader.receive_data(memoryview(bytes([byte])))
        seen.append(reader.next_reply())
    assert seen == [reply for reply, _, _ in REPLIES]


def test_all_in_one_piece() -> None:
    requests_in, replies_in = DisplayRequestReader(), DisplayReplyReader()
    requests_in.receive_data(b"".join(encode(request) + data for request, data, _, _ in REQUESTS))
    replies_in.receive_data(b"".join(encode_reply(reply) for reply, _, _ in REPLIES))
    assert [requests_in.next_request() for _ in REQUESTS] == [
        (request, data) for request, data, _, _ in REQUESTS
    ]
    assert [replies_in.next_reply() for _ in REPLIES] == [reply for reply, _, _ in REPLIES]
    assert requests_in.next_request() is None
    assert replies_in.next_reply() is None


@pytest.mark.parametrize(
    ("number", "flags", "size"),
    [
        (0, 4, 0),
        (2, 4, 8),
        (8, 4, 0),
        (13, 4, 8),
        (0xFFFFFFFF, 4, 0),
        (1, 0, 8),
        (1, 0xFFFFFFFB, 8),
        (1, 4, 7),
        (1, 4, 9),
        (3, 4, 407),
        (3, 4, 0xFFFFFFFF),
        (11, 4, 0),
        (9, 4, 0),
        (10, 4, 0),
        (10, 4, 1),
    ],
)
def test_hostile_replies(number: int, flags: int, size: int) -> None:
    reader = DisplayReplyReader()
    reader.receive_data(encode_reply(DisplayFeatures(1)) + struct.pack("=III", number, flags, size))
    assert reader.next_reply() == DisplayFeatures(1)
    with pytest.raises(PeerError, match="display:"):
        reader.next_reply()
    reader.receive_data(encode_reply(DisplayFeatures(1)))
    with pytest.raises(PeerError, match="display:"):
        reader.next_reply()


@pytest.mark.parametrize("size", [0, CURSOR_BYTES - 1, CURSOR_BYTES + 1])
def test_a_cursor_of_another_size_is_not_encoded(size: int) -> None:
    with pytest.raises(ValueError, match=str(size)):
        encode(DisplayCursorUpdate(S, 0, 0, 0, 0, bytes(size)))


def test_a_reply_is_virtios_struct_whatever_its_header_says() -> None:
    # Not every front-end fills in the header of the struct in the reply.
    message = bytearray(encode_reply(DisplayInfo(MODES)))
    message[HEADER_SIZE : HEADER_SIZE + 24] = b"\xff" * 24
    reader = DisplayReplyReader()
    reader.receive_data(message)
    assert reader.next_reply() == DisplayInfo(MODES)


@given(st.lists(st.binary(max_size=30), max_size=20))
def test_nothing_but_a_peer_error_comes_of_garbage(pieces: list[bytes]) -> None:
    reader = DisplayReplyReader()
    for piece in pieces:
        reader.receive_data(piece)
        try:
            while reader.next_reply() is not None:
                pass
        except PeerError:
            continue
