"""The DMA context's packets: both ways, at each cut, hostile, lazy, and fuzzed."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vgpud.errors import VgpudError
from vgpud.gpu.errors import response_code
from vgpud.gpu.wire.dma import (
    CAPSET_SIZE,
    Blit,
    Copy,
    Crc32,
    DmaCapset,
    Fill,
    Nop,
    Packet,
    decode,
    encode,
)
from vgpud.gpu.wire.protocol import ResourceId, ResponseType

A, B = ResourceId(7), ResourceId(8)

# A packet, and what it looks like, spelled from the table of the module's docstring.
PACKETS: list[tuple[Packet, bytes]] = [
    (Nop(), struct.pack("<I", 0 | 1 << 16)),
    (
        Fill(A, 1 << 40, 3, 0xA1A2A3A4),
        struct.pack("<IIQQII", 1 | 8 << 16, 7, 1 << 40, 3, 0xA1A2A3A4, 0),
    ),
    (Copy(A, B, 1, 2, 3), struct.pack("<IIIIQQQ", 2 | 10 << 16, 7, 8, 0, 1, 2, 3)),
    (
        Blit(A, B, 4, 640, 1280, 1, 2, 33, 44),
        struct.pack("<IIIIIIQQII", 3 | 12 << 16, 7, 8, 4, 640, 1280, 1, 2, 33, 44),
    ),
    (Crc32(A, B, 1, 2, 3), struct.pack("<IIIIQQQ", 4 | 10 << 16, 7, 8, 0, 1, 2, 3)),
]
by_name = pytest.mark.parametrize(
    ("packet", "wire"), PACKETS, ids=[type(packet).__name__ for packet, _ in PACKETS]
)
u32 = st.integers(0, 2**32 - 1)
u64 = st.integers(0, 2**64 - 1)
packets = st.one_of(
    st.builds(Nop),
    st.builds(Fill, u32, u64, u64, u32),
    st.builds(Copy, u32, u32, u64, u64, u64),
    st.builds(Blit, u32, u32, u32, u32, u32, u64, u64, u32, u32),
    st.builds(Crc32, u32, u32, u64, u64, u64),
)


def run(
    stream: bytes | memoryview, max_packets: int = 4096
) -> tuple[list[Packet], VgpudError | None]:
    """What is handed out before the end or the first bad packet, and the error there."""
    done: list[Packet] = []
    try:
        done.extend(decode(stream, max_packets))  # what came before an error stays in the list
    except VgpudError as error:
        return done, error
    return done, None


@by_name
def test_both_ways(packet: Packet, wire: bytes) -> None:
    assert encode([packet]) == wire
    assert run(wire) == ([packet], None)
    assert run(memoryview(wire)) == ([packet], None)


@by_name
def test_cut_at_each_byte(packet: Packet, wire: bytes) -> None:
    for size in range(1, len(wire)):
        done, error = run(encode([Nop(), packet])[: 4 + size])
        assert done == [Nop()]
        assert error is not None
        assert response_code(error) == ResponseType.ERR_INVALID_PARAMETER


@by_name
@pytest.mark.parametrize("dwords", [-1, 1, -4, 4])
def test_a_wrong_length(packet: Packet, wire: bytes, dwords: int) -> None:
    (header,) = struct.unpack_from("<I", wire)
    wrong = (header & 0xFFFF) | ((header >> 16) + dwords & 0xFFFF) << 16
    done, error = run(encode([packet]) + struct.pack("<I", wrong) + wire[4:] + bytes(64))
    assert done == [packet]
    assert error is not None
    assert "packet 1 at byte" in str(error)


@pytest.mark.parametrize("length", [0, 0xFFFF])
@pytest.mark.parametrize("opcode", range(5))
def test_lengths_at_the_ends(opcode: int, length: int) -> None:
    done, error = run(struct.pack("<I", opcode | length << 16) + bytes(1 << 18))
    assert done == []
    assert error is not None


@pytest.mark.parametrize("opcode", [5, 6, 0xFF, 0x100, 0xFFFF])
def test_unknown_opcodes(opcode: int) -> None:
    done, error = run(encode([Nop(), Nop()]) + struct.pack("<I", opcode | 1 << 16))
    assert done == [Nop(), Nop()]
    assert error is not None
    assert f"opcode {opcode}" in str(error)


@pytest.mark.parametrize(
    ("packet", "at"), [(PACKETS[1][0], 28), (PACKETS[2][0], 12), (PACKETS[4][0], 12)]
)
def test_fields_that_must_be_zero(packet: Packet, at: int) -> None:
    stream = bytearray(encode([packet]))
    assert stream[at : at + 4] == bytes(4)
    for byte in range(at, at + 4):
        wrong = stream.copy()
        wrong[byte] = 1
        done, error = run(bytes(wrong))
        assert done == []
        assert error is not None
        assert response_code(error) == ResponseType.ERR_INVALID_PARAMETER


@pytest.mark.parametrize("leftover", [1, 2, 3])
def test_a_leftover_is_a_bad_packet(leftover: int) -> None:
    done, error = run(encode([Nop()]) + bytes(leftover))
    assert done == [Nop()]
    assert error is not None
    assert f"{leftover} bytes" in str(error)


def test_no_packets() -> None:
    assert run(b"") == ([], None)


def test_as_many_packets_as_allowed_and_one_more() -> None:
    stream = encode([Nop()] * 4096)
    assert run(stream) == ([Nop()] * 4096, None)
    done, error = run(stream + encode([Nop()]))
    assert done == [Nop()] * 4096
    assert error is not None
    assert "4096" in str(error)
    assert run(encode([Nop()] * 3), max_packets=2)[0] == [Nop()] * 2


def test_a_packet_is_handed_out_before_the_next_is_looked_at() -> None:
    stream = bytearray(encode([Nop(), Nop()]))
    iterator = decode(stream)
    assert next(iterator) == Nop()
    stream[4] = 0xFF
    with pytest.raises(VgpudError):
        next(iterator)


def test_capset_both_ways() -> None:
    capset = DmaCapset(1, 4096, 1 << 33)
    assert capset.pack() == struct.pack("<IIQ", 1, 4096, 1 << 33)
    assert DmaCapset.unpack(capset.pack() + b"more") == capset
    assert len(capset.pack()) == CAPSET_SIZE


def test_a_row_is_pixels_times_their_bytes() -> None:
    assert Blit(A, B, 4, 0, 0, 0, 0, 33, 1).row_bytes == 132


@given(st.lists(packets, max_size=20))
def test_any_packets_both_ways(stream: list[Packet]) -> None:
    assert run(encode(stream)) == (stream, None)


@given(st.lists(packets, max_size=5), st.binary(max_size=100), packets)
def test_nothing_but_a_guest_error_comes_of_garbage(
    before: list[Packet], garbage: bytes, after: Packet
) -> None:
    done, error = run(encode(before) + garbage + encode([after]))
    assert done[: len(before)] == before
    if error is None:
        assert encode(done) == encode(before) + garbage + encode([after])
    else:
        assert response_code(error) == ResponseType.ERR_INVALID_PARAMETER
