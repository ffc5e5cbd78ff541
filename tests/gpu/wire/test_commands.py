"""Commands: both ways, truncated at each byte, hostile, and fuzzed."""

from __future__ import annotations

import struct
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.gpu.wire.command_cases import COMMANDS, ENTRIES, RESOURCE, TAILS, header
from vgpud.errors import VgpudError
from vgpud.gpu.errors import response_code
from vgpud.gpu.wire.command_codec import (
    MOST_COPIED,
    CommandWithEntries,
    decode,
    decode_body,
    encode,
)
from vgpud.gpu.wire.commands import (
    CtxCreate,
    MoveCursor,
    ResourceAttachBacking,
    ResourceCreateBlob,
    ResourceFlush,
    Submit3D,
)
from vgpud.gpu.wire.header import HEADER_SIZE, Header, Rect, decode_header, echo
from vgpud.gpu.wire.mem_entries import bytes_kept, mem_entries
from vgpud.gpu.wire.protocol import (
    CommandType,
    ContextId,
    Flag,
    ResourceId,
    ResponseType,
    ScanoutId,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from vgpud.gpu.wire.command_codec import Command

SAMPLES = [command for command, _, _ in COMMANDS]
ATTACH = ResourceAttachBacking(header(ResourceAttachBacking), RESOURCE, ENTRIES)
by_name = pytest.mark.parametrize("command", SAMPLES, ids=lambda command: type(command).__name__)


def test_there_is_a_sample_of_every_command() -> None:
    assert sorted(command.header.type for command in SAMPLES) == sorted(CommandType)


@by_name
@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_both_ways(command: Command, kind: Callable[[bytes], bytes]) -> None:
    decoded = decode(kind(encode(command)))
    assert type(decoded) is type(command)
    assert decoded == command
    assert hash(decoded) == hash(command)
    assert encode(decoded) == encode(command)


@by_name
def test_truncated_at_each_byte(command: Command) -> None:
    whole = encode(command)
    struct_size = len(whole) - TAILS.get(type(command), 0)
    for size in range(len(whole)):
        with pytest.raises(VgpudError) as caught:
            decode(whole[:size])
        expected = (
            ResponseType.ERR_UNSPEC if size < struct_size else ResponseType.ERR_INVALID_PARAMETER
        )
        assert response_code(caught.value) == expected, size


@by_name
def test_bytes_after_the_command_are_ignored(command: Command) -> None:
    assert decode(encode(command) + b"\xff" * 33) == command


@by_name
def test_the_header_is_known_even_if_nothing_else_is(command: Command) -> None:
    whole = encode(command)
    assert decode_header(whole[:HEADER_SIZE]) == command.header
    assert decode_header(whole[: HEADER_SIZE - 1]) is None
    assert decode_body(command.header, whole) == command


@by_name
def test_a_header_of_another_type_is_not_encoded(command: Command) -> None:
    other = replace(command, header=replace(command.header, type=0x7777))
    with pytest.raises(ValueError, match="0x7777"):
        encode(other)


def test_as_the_specification_spells_it() -> None:
    request = bytes.fromhex(
        "04010000 01000000 8877665544332211 05000000 00000000"  # RESOURCE_FLUSH, fenced
        "01000000 02000000 03000000 04000000 0a000000 00000000"
    )
    fenced = Header(CommandType.RESOURCE_FLUSH, Flag.FENCE, 0x1122334455667788, ContextId(5))
    assert decode(request) == ResourceFlush(fenced, Rect(1, 2, 3, 4), ResourceId(10))
    assert encode(decode(request)) == request


@pytest.mark.parametrize("unknown", [0, 0xFF, 0x10E, 0x1FF, 0x20A, 0x302, 0x1100, 0xFFFFFFFF])
def test_unknown_commands(unknown: int) -> None:
    with pytest.raises(VgpudError, match=f"{unknown:#06x}") as caught:
        decode(struct.pack("<IIQIB3x", unknown, 0, 0, 0, 0) + bytes(1000))
    assert response_code(caught.value) == ResponseType.ERR_UNSPEC


@pytest.mark.parametrize("count", [1, 3, 0x0FFFFFFF, 0x10000000, 0xFFFFFFFF])
@pytest.mark.parametrize("sample", [ResourceAttachBacking, ResourceCreateBlob])
def test_more_entries_counted_than_brought(sample: type[Command], count: int) -> None:
    whole = next(encode(command) for command in SAMPLES if type(command) is sample)
    at = HEADER_SIZE + {ResourceAttachBacking: 4, ResourceCreateBlob: 12}[sample]
    brought = whole[: -ENTRIES.nbytes] + ENTRIES.tobytes()[: 16 * min(count - 1, 2)]
    hostile = brought[:at] + struct.pack("<I", count) + brought[at + 4 :]
    with pytest.raises(VgpudError, match=str(count)) as caught:
        decode(hostile)
    assert response_code(caught.value) == ResponseType.ERR_INVALID_PARAMETER


def test_fewer_entries_counted_than_brought() -> None:
    whole = bytearray(encode(ATTACH))
    whole[HEADER_SIZE + 4] = 1
    decoded = decode(whole)
    assert isinstance(decoded, ResourceAttachBacking)
    assert decoded.entries.tolist() == ENTRIES[:1].tolist()


@pytest.mark.parametrize("size", [1, 0x7FFFFFFF, 0xFFFFFFFF])
def test_more_of_a_stream_counted_than_brought(size: int) -> None:
    hostile = header(Submit3D).pack() + struct.pack("<I4x", size)
    with pytest.raises(VgpudError, match=str(size)) as caught:
        decode(hostile)
    assert response_code(caught.value) == ResponseType.ERR_INVALID_PARAMETER


def test_a_stream_is_exactly_its_size() -> None:
    for size, data in ((2, b"ab"), (0, b"")):
        decoded = decode(header(Submit3D).pack() + struct.pack("<I4x", size) + b"abc")
        assert decoded == Submit3D(header(Submit3D), data)


@pytest.mark.parametrize(
    ("nlen", "name"), [(0, b""), (3, b"abc"), (64, b"abc" + bytes(61)), (65, b"abc" + bytes(61))]
)
def test_a_debug_name_is_no_longer_than_its_place(nlen: int, name: bytes) -> None:
    body = struct.pack("<II64s", nlen, 30, b"abc")
    assert decode(header(CtxCreate).pack() + body) == CtxCreate(header(CtxCreate), 30, name)


def test_a_debug_name_too_long_is_not_encoded() -> None:
    with pytest.raises(ValueError, match="65"):
        encode(CtxCreate(header(CtxCreate), 0, bytes(65)))


def test_context_init_holds_the_capset_id() -> None:
    assert CtxCreate(header(CtxCreate), 0xFFFFFF1E, b"").capset_id == 30


@pytest.mark.parametrize("count", [0, 1, MOST_COPIED // 16])
@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_a_few_entries_do_not_keep_a_long_request(
    kind: Callable[[bytes], bytes | bytearray | memoryview], count: int
) -> None:
    entries = mem_entries(*[(number, 4096) for number in range(count)])
    for command in (
        ResourceAttachBacking(header(ResourceAttachBacking), RESOURCE, entries),
        ResourceCreateBlob(header(ResourceCreateBlob), RESOURCE, 1, 0, 0, 4096, entries),
    ):
        decoded = decode(kind(encode(command) + bytes(8 << 20)))
        assert decoded == command
        assert isinstance(decoded, CommandWithEntries)
        assert bytes_kept(decoded.entries) == 16 * count


def test_no_entries() -> None:
    command = ResourceCreateBlob(header(ResourceCreateBlob), RESOURCE, 2, 1, 0, 4096, mem_entries())
    decoded = decode(encode(command))
    assert isinstance(decoded, ResourceCreateBlob)
    assert decoded == command
    assert len(decoded.entries) == 0


def test_what_is_decoded_does_not_change_with_the_request() -> None:
    for sample in (ResourceAttachBacking, ResourceCreateBlob, Submit3D, CtxCreate):
        command = next(command for command in SAMPLES if type(command) is sample)
        request = bytearray(encode(command))
        decoded = decode(memoryview(request))
        request[:] = bytes(len(request))
        assert decoded == command


def test_entries_are_read_only_and_named() -> None:
    decoded = decode(encode(ATTACH))
    assert isinstance(decoded, ResourceAttachBacking)
    assert decoded.entries["addr"].tolist() == [0x1122334455667788, 0x0000FFFF12345000]
    assert decoded.entries["length"].tolist() == [0x99AABBCC, 0x1000]
    with pytest.raises(ValueError, match="read-only"):
        decoded.entries["addr"] = 0


def test_commands_with_entries_compare_by_value() -> None:
    blob = ResourceCreateBlob(header(ResourceCreateBlob), RESOURCE, 1, 1, 1, 1, ENTRIES)
    commands: tuple[ResourceAttachBacking | ResourceCreateBlob, ...] = (ATTACH, blob)
    for command in commands:
        assert command == replace(command, entries=ENTRIES.copy())
        assert command != replace(command, entries=mem_entries((1, 2), (3, 4)))
        assert command != replace(command, entries=ENTRIES[:1])
        assert command != replace(command, resource_id=ResourceId(1))
        assert command != "a command"


def test_a_cursor_move_needs_no_more_than_its_place() -> None:
    assert MoveCursor(header(MoveCursor), ScanoutId(0), 1, 2).resource_id == 0


@pytest.mark.parametrize(
    ("request_header", "response_header"),
    [
        (Header(0x101), Header(0x1100)),
        (Header(0x101, 0, 7, ContextId(8), 9), Header(0x1100)),
        (Header(0x101, Flag.INFO_RING_IDX, 7, ContextId(8), 9), Header(0x1100)),
        (Header(0x101, 1, 7, ContextId(8), 9), Header(0x1100, 1, 7, ContextId(8), 0)),
        (Header(0x101, 3, 7, ContextId(8), 9), Header(0x1100, 3, 7, ContextId(8), 9)),
        (Header(0x101, 0xFFFFFFFF, 2**64 - 1), Header(0x1100, 3, 2**64 - 1)),
    ],
)
def test_a_fence_is_echoed(request_header: Header, response_header: Header) -> None:
    assert echo(request_header, ResponseType.OK_NODATA) == response_header.pack()


def test_what_a_header_says() -> None:
    plain = Header(0x101, 0, 7, ContextId(8), 9)
    assert (plain.fenced, plain.ring) == (False, None)
    ringed = replace(plain, flags=int(Flag.FENCE | Flag.INFO_RING_IDX))
    assert (ringed.fenced, ringed.ring) == (True, (8, 9))


def decode_or_code(request: bytes) -> Command | int:
    """The command, or the code that the guest would get; any other exception fails the test."""
    try:
        return decode(request)
    except VgpudError as error:
        return response_code(error)


types = st.sampled_from(sorted(CommandType)) | st.integers(0, 0xFFFFFFFF)
bodies = st.binary(max_size=200)


@given(types, st.binary(min_size=20, max_size=20), bodies)
def test_nothing_but_a_guest_error_comes_of_garbage(kind: int, rest: bytes, body: bytes) -> None:
    request = struct.pack("<I", kind) + rest + body
    command = decode_or_code(request)
    if isinstance(command, int):
        assert command in (ResponseType.ERR_UNSPEC, ResponseType.ERR_INVALID_PARAMETER)
        return
    assert command.command_type == kind
    # Padding is dropped, so it is values, not bytes, that must come back.
    assert decode(encode(command)) == command


@given(bodies)
def test_nothing_but_a_guest_error_comes_of_less_than_a_header(request_bytes: bytes) -> None:
    assert decode_or_code(request_bytes[: HEADER_SIZE - 1]) == ResponseType.ERR_UNSPEC


@given(st.lists(st.tuples(st.integers(0, 2**64 - 1), st.integers(0, 2**32 - 1)), max_size=50))
def test_any_entries_both_ways(pieces: list[tuple[int, int]]) -> None:
    entries = mem_entries(*pieces)
    command = ResourceAttachBacking(header(ResourceAttachBacking), RESOURCE, entries)
    decoded = decode(encode(command))
    assert isinstance(decoded, ResourceAttachBacking)
    assert np.array_equal(decoded.entries, entries)
