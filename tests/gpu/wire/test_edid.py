"""EDIDs: known timings, every field of a block, and outputs of any size."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vgpud.gpu.wire import cvt
from vgpud.gpu.wire.edid import edid, parse

NAME = "vgpud test"

# Sizes, with the pixel clock in kHz, vertical blanking and sync of VESA's reduced-blanking modes.
PUBLISHED = [
    ((1280, 768), 68_250, 22, 7),
    ((1280, 800), 71_000, 23, 6),
    ((1366, 768), 72_250, 22, 10),
    ((1400, 1050), 101_000, 30, 4),
    ((1440, 900), 88_750, 26, 6),
    ((1680, 1050), 119_000, 30, 6),
    ((1920, 1080), 138_500, 31, 5),
    ((1920, 1200), 154_000, 35, 6),
    ((2560, 1440), 241_500, 41, 5),
    ((2560, 1600), 268_500, 46, 6),
    ((3840, 2160), 533_250, 62, 5),
]


@pytest.mark.parametrize(("size", "clock", "v_blank", "v_sync"), PUBLISHED)
def test_published_timings(size: tuple[int, int], clock: int, v_blank: int, v_sync: int) -> None:
    width, height = size
    timing = parse(edid(width, height, name=NAME)).preferred
    assert timing == cvt.Timing(clock, width, 160, 48, 32, height, v_blank, 3, v_sync)
    assert timing.v_hz == pytest.approx(60, rel=0.01)


def test_a_block_byte_by_byte() -> None:
    block = edid(1280, 800, name="vgpud gpu0-1", serial=0x01020304)
    assert len(block) == 128
    assert sum(block) % 256 == 0
    assert block[:8].hex() == "00ffffffffffff00"
    assert block[8:10] == (22 << 10 | 7 << 5 | 21).to_bytes(2, "big")  # V, G, U
    assert block[12:16].hex() == "04030201"
    assert (block[18], block[19]) == (1, 4)
    assert block[20] & 0x80, "digital"
    assert (block[21], block[22]) == (32, 20)
    # sRGB's primaries as any sRGB monitor has them.
    assert block[25:35].hex() == "ee91a3544c99260f5054"
    assert block[35:38] == bytes([0x21, 0x08, 0]), "640x480, 800x600, 1024x768"
    assert block[38:42] == bytes([0x81, 0xC0, 0x81, 0x00]), "1280x720, 1280x800"
    assert block[42:54] == b"\x01" * 12
    assert block[54:72].hex() == "bc1b00a050201730302036" + "0045cb100000" + "1a"
    assert block[72:77].hex() == "000000fd00"
    assert block[77:83] == bytes([59, 61, 31, 76, 20, 1])
    assert block[90:108] == b"\0\0\0\xfc\0vgpud gpu0-1\n"
    assert block[108:112].hex() == "00000010"
    assert block[126] == 0


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("gpu0", "gpu0"),
        ("exactly13char", "exactly13char"),
        ("more than thirteen", "more than thi"),
        ("", ""),
        ("Bildschirm ä\n", "Bildschirm ??"),
    ],
)
def test_names(name: str, shown: str) -> None:
    assert parse(edid(1280, 800, name=name)).name == shown
    assert parse(edid(5120, 2880, name=name)).name == shown


def test_who_it_is() -> None:
    parsed = parse(edid(1280, 800, name=NAME, serial=0xFFFFFFFF, mm=(300, 200)))
    assert (parsed.manufacturer, parsed.serial) == ("VGU", 0xFFFFFFFF)
    assert parsed.size_mm == (300, 200)


def test_other_modes_are_never_larger_than_the_output() -> None:
    assert edid(800, 600, name=NAME)[35:54] == bytes([0x21, 0, 0]) + b"\x01" * 16
    assert edid(639, 480, name=NAME)[35:54] == bytes(3) + b"\x01" * 16
    assert b"\x01\x01" not in edid(1920, 1200, name=NAME)[38:54]


@pytest.mark.parametrize(
    ("width", "height"), [(4096, 2160), (5120, 2880), (7680, 4320), (8000, 600)]
)
def test_large_outputs_have_a_second_block(width: int, height: int) -> None:
    blocks = edid(width, height, name=NAME)
    assert len(blocks) == 256
    assert blocks[126] == 1
    assert (blocks[128], blocks[129]) == (0x70, 0x13)
    assert sum(blocks[129 : 129 + 5 + blocks[130]]) % 256 == 0, "the section's own checksum"
    timing = parse(blocks).preferred
    assert (timing.h_active, timing.v_active) == (width, height)
    assert timing.v_hz == pytest.approx(60, rel=0.01)
    first = parse(blocks[:126] + b"\0" + bytes([(blocks[127] + 1) % 256])).preferred
    assert (first.h_active, first.v_active) == (width // 2, height // 2)


def test_the_second_block_byte_by_byte() -> None:
    block = edid(5120, 2880, name=NAME, serial=0x01020304)[128:]
    data = block[5 : 5 + block[2]]
    identification, data = data[: 15 + len(NAME)], data[15 + len(NAME) :]
    assert identification.hex() == "000016" + b"VGU".hex() + "0100" + "04030201" + "ff1a" + (
        "0a" + NAME.encode().hex()
    )
    parameters, data = data[:15], data[15:]
    assert parameters[:3].hex() == "01000c"
    assert parameters[3:11] == b"".join(
        number.to_bytes(2, "little") for number in (13000, 7320, 5120, 2880)
    )
    interface, data = data[:13], data[13:]
    assert interface[:3].hex() == "0f000a"
    # 938.25 MHz, preferred, 16:9; horizontal sync positive.
    assert data.hex() == "030014" + "806e01" + "84" + "ff139f002f801f00" + "3f0b510002000400"


def test_a_clock_beyond_the_descriptor_lowers_the_rate() -> None:
    timing = parse(edid(4095, 4095, name=NAME)).preferred
    assert timing.clock_khz == 655_350
    assert 36 < timing.v_hz < 37


def test_limits_beyond_a_byte_use_their_offset() -> None:
    block = edid(1920, 1080, name=NAME, refresh=240)
    timing = parse(block).preferred
    assert timing.h_khz > 255
    assert block[76] == 2 << 2
    assert block[80] + 255 == -int(-timing.h_khz // 1)


@pytest.mark.parametrize(
    ("width", "height", "options"),
    [
        (0, 1, {}),
        (1, 0, {}),
        (-1, 1, {}),
        (65536, 1, {}),
        (1, 65536, {}),
        (1, 1, {"refresh": 0}),
        (1, 1, {"refresh": 256}),
        (1, 1, {"serial": -1}),
        (1, 1, {"serial": 1 << 32}),
        (1, 1, {"mm": (-1, 5)}),
    ],
)
def test_impossible_outputs(width: int, height: int, options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"output|rate|serial|picture"):
        edid(width, height, name=NAME, **options)


def test_unknown_picture_size() -> None:
    block = edid(1280, 800, name=NAME, mm=(0, 100))
    assert (block[21], block[22]) == (0, 0), "one zero alone would be an aspect ratio"


def test_wrong_blocks_are_not_parsed() -> None:
    good = edid(5120, 2880, name=NAME)
    for wrong in (b"", good[:127], good[:128], good + good[128:]):
        with pytest.raises(ValueError, match="bytes"):
            parse(wrong)
    for at in range(256):
        damaged = bytearray(good)
        damaged[at] ^= 0x40
        with pytest.raises(ValueError):
            parse(bytes(damaged))
    with pytest.raises(ValueError, match="beginning"):
        parse(bytes(128))


@given(
    st.integers(1, 65535),
    st.integers(1, 65535),
    st.floats(1, 255),
    st.text(max_size=20),
    st.none() | st.tuples(st.integers(0, 5000), st.integers(0, 5000)),
)
def test_any_output(
    width: int, height: int, refresh: float, name: str, mm: tuple[int, int] | None
) -> None:
    data = edid(width, height, name=name, refresh=refresh, mm=mm)
    assert len(data) == (128 if max(width, height) <= 4095 else 256)
    parsed = parse(data)
    timing = parsed.preferred
    assert (timing.h_active, timing.v_active) == (width, height)
    assert timing.h_blank > timing.h_front + timing.h_sync
    assert timing.v_blank >= timing.v_front + timing.v_sync + 6
    # The clock's steps are 250 kHz downwards, or 10 kHz either way for a small picture.
    pixels = (timing.h_active + timing.h_blank) * (timing.v_active + timing.v_blank)
    assert 0 < timing.v_hz < refresh + 10_000 / pixels
    if mm is not None:
        assert parsed.size_mm == (min(mm[0], 2550), min(mm[1], 2550))
