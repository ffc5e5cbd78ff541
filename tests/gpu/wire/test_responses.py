"""Responses and the configuration space: both ways, truncated, with fences, too large."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vgpud.gpu.wire import responses
from vgpud.gpu.wire.header import HEADER_SIZE, Header, Rect
from vgpud.gpu.wire.protocol import ContextId, Flag, MapInfo, ResponseType
from vgpud.gpu.wire.responses import (
    CapsetData,
    CapsetInfo,
    DisplayInfo,
    DisplayMode,
    Edid,
    Error,
    OkNoData,
    ResourceUuid,
    Response,
    config_space,
    decode,
    encode,
)

MODES = tuple(
    DisplayMode(Rect(index, 2 * index, 1280 + index, 800 + index), index % 2 == 0, index)
    for index in range(16)
)
# A response, its type, and the size of the whole.
RESPONSES: list[tuple[Response, ResponseType, int]] = [
    (OkNoData(), ResponseType.OK_NODATA, 24),
    (DisplayInfo(MODES), ResponseType.OK_DISPLAY_INFO, 408),
    (CapsetInfo(30, 0x01020304, 0x11121314), ResponseType.OK_CAPSET_INFO, 40),
    (CapsetData(bytes(range(16))), ResponseType.OK_CAPSET, 40),
    (Edid(bytes(range(128))), ResponseType.OK_EDID, 1056),
    (ResourceUuid(bytes(range(16))), ResponseType.OK_RESOURCE_UUID, 40),
    (responses.MappedBlob(MapInfo.WC), ResponseType.OK_MAP_INFO, 32),
    *((Error(code), code, 24) for code in ResponseType if code >= ResponseType.ERR_UNSPEC),
]
by_name = pytest.mark.parametrize(
    ("response", "response_type", "size"), RESPONSES, ids=[kind.name for _, kind, _ in RESPONSES]
)
REQUEST = Header(0x101, Flag.FENCE | Flag.INFO_RING_IDX, 0x0102030405060708, ContextId(9), 10)


def test_there_is_a_sample_of_every_response() -> None:
    assert {response_type for _, response_type, _ in RESPONSES} == set(ResponseType)


@by_name
def test_both_ways(response: Response, response_type: ResponseType, size: int) -> None:
    message = encode(response, REQUEST)
    assert len(message) == size
    header, decoded = decode(message)
    assert decoded == response
    assert header == Header(response_type, 3, 0x0102030405060708, ContextId(9), 10)


@by_name
def test_without_a_fence(response: Response, response_type: ResponseType, size: int) -> None:
    header, decoded = decode(encode(response, Header(0x101, 0, 7, ContextId(8), 9)))
    assert (header, decoded) == (Header(response_type), response)
    assert size == len(encode(response, Header(0)))


@by_name
def test_truncated_at_each_byte(response: Response, response_type: ResponseType, size: int) -> None:
    message = encode(response, REQUEST)
    # A capability set ends where the message does: any part of it is one.
    needed = HEADER_SIZE if response_type is ResponseType.OK_CAPSET else size
    for cut in range(needed):
        with pytest.raises(ValueError, match="bytes"):
            decode(message[:cut])
    assert decode(message[:needed])


def test_as_the_specification_spells_it() -> None:
    assert encode(responses.MappedBlob(3), Header(0x208, 1, 0x1122334455667788)) == bytes.fromhex(
        "06110000 01000000 8877665544332211 00000000 00000000 03000000 00000000"
    )


def test_missing_outputs_are_disabled() -> None:
    _, info = decode(encode(DisplayInfo(MODES[:2]), REQUEST))
    assert isinstance(info, DisplayInfo)
    assert len(info.modes) == 16
    assert info.modes[:2] == MODES[:2]
    assert not any(mode.enabled for mode in info.modes[2:])
    assert {mode.rect for mode in info.modes[2:]} == {Rect(0, 0, 0, 0)}


def test_an_edid_has_a_size_and_room() -> None:
    message = encode(Edid(b"\xaa" * 256), Header(0))
    assert message[24:32] == struct.pack("<II", 256, 0)
    assert message[32:] == b"\xaa" * 256 + bytes(768)


def test_an_edid_that_claims_more_than_its_room() -> None:
    message = bytearray(encode(Edid(b"\xaa" * 256), Header(0)))
    message[24:28] = struct.pack("<I", 0xFFFFFFFF)
    _, edid = decode(message)
    assert edid == Edid(b"\xaa" * 256 + bytes(768))


@pytest.mark.parametrize(
    "response", [Edid(bytes(1025)), ResourceUuid(bytes(15)), DisplayInfo(MODES + MODES[:1])]
)
def test_what_has_no_room(response: Response) -> None:
    with pytest.raises(ValueError, match=r"1025|15|17"):
        encode(response, REQUEST)


@pytest.mark.parametrize("unknown", [0, 0x101, 0x10FF, 0x1107, 0x1300])
def test_unknown_responses(unknown: int) -> None:
    with pytest.raises(ValueError, match=f"{unknown:#06x}"):
        decode(Header(unknown).pack())


def test_an_error_that_this_version_does_not_know() -> None:
    assert decode(Header(0x12FF).pack())[1] == Error(0x12FF)


def test_config_space() -> None:
    config = config_space(events_read=1, num_scanouts=2, num_capsets=3, blob_alignment=4096)
    assert config == struct.pack("<IIIII", 1, 0, 2, 3, 4096)
    assert len(config) == responses.CONFIG_SIZE


@given(st.binary(max_size=1100))
def test_nothing_but_a_value_error_comes_of_garbage(body: bytes) -> None:
    for response_type in ResponseType:
        try:
            responses.decode_body(response_type, body)
        except ValueError:
            continue
