"""EDID blocks: how an output tells the guest its name and the mode it prefers.

It makes blocks from an output's size, and parses enough of them to check one.

Specification: VESA E-EDID Standard, release A, revision 2 (EDID 1.4).
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil
from struct import Struct
from typing import TYPE_CHECKING, Final

from vgpud.gpu.wire import cvt, displayid

if TYPE_CHECKING:
    from collections.abc import Sequence

BLOCK_SIZE: Final = 128

MAX_SIZE: Final = displayid.MAX_SIZE
"""Largest width and height of an output, pixels."""

_DTD_MAX_SIZE: Final = 4095  # a detailed timing descriptor has 12 bits for each
_DTD_MAX_CLOCK_KHZ: Final = 655_350  # and 16 bits for the pixel clock in units of 10 kHz

_MAGIC: Final = bytes.fromhex("00ffffffffffff00")

# Three letters of five bits each. Not in the registry of PNP ids: vgpud is no vendor's.
_MANUFACTURER: Final = "VGU"
_PRODUCT: Final = 1
_MODEL_YEAR: Final = 2026

_DOTS_PER_INCH: Final = 100  # no guest scales its fonts at that
_MM_PER_INCH: Final = 25.4
_MAX_MM: Final = 2550  # one byte of centimetres

# sRGB's primaries and white point, CIE xy.
_CHROMATICITY: Final = (0.640, 0.330, 0.300, 0.600, 0.150, 0.060, 0.3127, 0.3290)

# Bit numbers in the three bytes of established timings, counted from the first byte's highest.
_ESTABLISHED: Final = {(640, 480): 2, (800, 600): 7, (1024, 768): 12}

# Further modes offered, at 60 Hz, where the output has room for them: at most eight.
_STANDARD: Final = (
    (1280, 720),
    (1280, 800),
    (1280, 1024),
    (1440, 900),
    (1600, 1200),
    (1680, 1050),
    (1920, 1080),
    (1920, 1200),
)

_STANDARD_ASPECT: Final = {(16, 10): 0, (4, 3): 1, (5, 4): 2, (16, 9): 3}

# Limits that hold all of _ESTABLISHED and _STANDARD, in the timings that VESA DMT gives them.
_OTHER_V_HZ: Final = (59, 61)
_OTHER_H_KHZ: Final = (31, 76)
_OTHER_CLOCK_KHZ: Final = 200_000

_DESCRIPTOR_NAME: Final = 0xFC
_DESCRIPTOR_RANGE: Final = 0xFD
_DESCRIPTOR_DUMMY: Final = 0x10
_TEXT_SIZE: Final = 13

_BASE = Struct("<8s2sHI9B10s3s16s18s18s18s18sBB")
assert _BASE.size == BLOCK_SIZE


@dataclass(frozen=True, slots=True)
class Parsed:
    """What `parse` finds in an EDID. `size_mm` is that of the preferred timing."""

    manufacturer: str
    serial: int
    name: str
    preferred: cvt.Timing
    size_mm: tuple[int, int]


def edid(
    width: int,
    height: int,
    *,
    name: str,
    serial: int = 0,
    refresh: float = 60,
    mm: tuple[int, int] | None = None,
) -> bytes:
    """Make the EDID of an output that prefers `width` x `height` pixels at `refresh` Hz.

    One block of 128 bytes; an output of more than 4095 pixels either way has a second one, with its
    timing, while the first then prefers the largest halving that fits. What needs a higher pixel
    clock than the block can say (655.35 MHz in the first one) gets that one, and so a lower rate.
    `name` is cut to 13 characters, and what is not printable ASCII becomes "?". `mm` is the
    picture's size in millimetres, by default that of 100 dots an inch; what exceeds 2550 is cut.
    Raises ValueError if a number is out of its range.
    """
    if not (1 <= width <= MAX_SIZE and 1 <= height <= MAX_SIZE):
        raise ValueError(f"an output of {width} x {height}, 1 to {MAX_SIZE} is possible")
    if not 0 <= serial < 1 << 32:
        raise ValueError(f"a serial number of {serial}, it has 32 bits")
    if not 1 <= refresh <= 255:
        raise ValueError(f"a refresh rate of {refresh} Hz, 1 to 255 is possible")
    if mm is not None and min(mm) < 0:
        raise ValueError(f"a picture of {mm} mm")
    width_mm, height_mm = mm if mm is not None else (_default_mm(width), _default_mm(height))
    size_mm = (min(width_mm, _MAX_MM), min(height_mm, _MAX_MM))
    base_width, base_height = width, height
    while max(base_width, base_height) > _DTD_MAX_SIZE:
        base_width, base_height = max(base_width // 2, 1), max(base_height // 2, 1)
    timing = cvt.reduced(base_width, base_height, refresh, _DTD_MAX_CLOCK_KHZ)
    product = displayid.Product(_MANUFACTURER, _PRODUCT, serial, _MODEL_YEAR, _printable(name))
    if (base_width, base_height) == (width, height):
        return _base_block((timing,), product, size_mm)
    large = cvt.reduced(width, height, refresh, displayid.MAX_CLOCK_KHZ)
    base = _base_block((timing, large), product, size_mm)
    return base + displayid.extension(large, product, size_mm)


def parse(data: bytes) -> Parsed:
    """Read an EDID such as `edid` makes.

    Raises ValueError if its size, its magic or a checksum is wrong.
    """
    if len(data) < BLOCK_SIZE or len(data) != BLOCK_SIZE * (1 + data[126]):
        raise ValueError(f"an EDID of {len(data)} bytes")
    blocks = [data[at : at + BLOCK_SIZE] for at in range(0, len(data), BLOCK_SIZE)]
    for index, block in enumerate(blocks):
        if sum(block) % 256:
            raise ValueError(f"block {index} has a wrong checksum")
    magic, letters, _, serial, *_, first, second, third, fourth, _, _ = _BASE.unpack(blocks[0])
    if magic != _MAGIC:
        raise ValueError(f"an EDID beginning with {magic.hex()}")
    timing = _unpack_detailed(first)
    for block in blocks[1:]:
        if block[0] == displayid.TAG:
            timing = displayid.unpack(block) or timing
    packed = int.from_bytes(letters, "big")
    manufacturer = "".join(chr(64 + (packed >> shift & 31)) for shift in (10, 5, 0))
    names = [text[5:] for text in (second, third, fourth) if text[3] == _DESCRIPTOR_NAME]
    name = names[0].split(b"\n")[0].decode("ascii") if names else ""
    size_mm = (first[12] | (first[14] >> 4) << 8, first[13] | (first[14] & 15) << 8)
    return Parsed(manufacturer, serial, name, timing, size_mm)


def _default_mm(pixels: int) -> int:
    return max(round(pixels * _MM_PER_INCH / _DOTS_PER_INCH), 1)


def _base_block(
    timings: Sequence[cvt.Timing], product: displayid.Product, size_mm: tuple[int, int]
) -> bytes:
    """Make the first block; the first timing goes into it, each other one into an extension."""
    timing = timings[0]
    room = (timing.h_active, timing.v_active)
    packed = 0
    for letter in product.manufacturer:
        packed = packed << 5 | (ord(letter) - 64)
    width_cm, height_cm = (round(mm / 10) for mm in size_mm)
    if 0 in (width_cm, height_cm):
        # One zero alone would be read as an aspect ratio; two mean "unknown".
        width_cm = height_cm = 0
    block = _BASE.pack(
        _MAGIC,
        packed.to_bytes(2, "big"),
        product.code,
        product.serial,
        0xFF,  # instead of a week: the year is the model's
        product.model_year - 1990,
        1,
        4,
        0xA0,  # digital, 8 bits a colour, no interface in particular
        width_cm,
        height_cm,
        120,  # gamma 2.2
        0x06,  # RGB 4:4:4 only; sRGB; the preferred timing is the native one
        _chromaticity(),
        _established(room),
        _standard(room),
        _detailed(timing, size_mm),
        _range_limits(timings),
        _descriptor(_DESCRIPTOR_NAME, _text(product.name)),
        _descriptor(_DESCRIPTOR_DUMMY, bytes(_TEXT_SIZE)),
        len(timings) - 1,
        0,
    )
    return block[:-1] + bytes([-sum(block) % 256])


def _chromaticity() -> bytes:
    values = [round(value * 1024) for value in _CHROMATICITY]
    low = 0
    for value in values:
        low = low << 2 | value & 3
    return low.to_bytes(2, "big") + bytes(value >> 2 for value in values)


def _established(room: tuple[int, int]) -> bytes:
    bits = sum(1 << (23 - bit) for size, bit in _ESTABLISHED.items() if _fits(size, room))
    return bits.to_bytes(3, "big")


def _standard(room: tuple[int, int]) -> bytes:
    packed = b"".join(
        bytes([width // 8 - 31, _STANDARD_ASPECT[cvt.aspect(width, height)] << 6])
        for width, height in _STANDARD
        if _fits((width, height), room)
    )
    return packed.ljust(16, b"\x01")


def _fits(size: tuple[int, int], room: tuple[int, int]) -> bool:
    return size[0] <= room[0] and size[1] <= room[1]


def _detailed(timing: cvt.Timing, size_mm: tuple[int, int]) -> bytes:
    width_mm, height_mm = size_mm
    return (timing.clock_khz // 10).to_bytes(2, "little") + bytes(
        [
            timing.h_active & 255,
            timing.h_blank & 255,
            timing.h_active >> 8 << 4 | timing.h_blank >> 8,
            timing.v_active & 255,
            timing.v_blank & 255,
            timing.v_active >> 8 << 4 | timing.v_blank >> 8,
            timing.h_front & 255,
            timing.h_sync & 255,
            (timing.v_front & 15) << 4 | timing.v_sync & 15,
            timing.h_front >> 8 << 6
            | timing.h_sync >> 8 << 4
            | timing.v_front >> 4 << 2
            | timing.v_sync >> 4,
            width_mm & 255,
            height_mm & 255,
            width_mm >> 8 << 4 | height_mm >> 8,
            0,
            0,
            0x1A,  # separate syncs, horizontal positive and vertical negative: reduced blanking
        ]
    )


def _unpack_detailed(packed: bytes) -> cvt.Timing:
    return cvt.Timing(
        clock_khz=int.from_bytes(packed[:2], "little") * 10,
        h_active=packed[2] | packed[4] >> 4 << 8,
        h_blank=packed[3] | (packed[4] & 15) << 8,
        h_front=packed[8] | packed[11] >> 6 << 8,
        h_sync=packed[9] | (packed[11] >> 4 & 3) << 8,
        v_active=packed[5] | packed[7] >> 4 << 8,
        v_blank=packed[6] | (packed[7] & 15) << 8,
        v_front=packed[10] >> 4 | (packed[11] >> 2 & 3) << 4,
        v_sync=packed[10] & 15 | (packed[11] & 3) << 4,
    )


def _range_limits(timings: Sequence[cvt.Timing]) -> bytes:
    """Return a range-limits descriptor that covers all offered modes and adds none."""
    v_min, v_max, v_flags = _limits([timing.v_hz for timing in timings], _OTHER_V_HZ)
    h_min, h_max, h_flags = _limits([timing.h_khz for timing in timings], _OTHER_H_KHZ)
    clock_khz = max(_OTHER_CLOCK_KHZ, *(timing.clock_khz for timing in timings))
    clock = min(ceil(clock_khz / 10_000), 255)
    flags = v_flags | h_flags << 2
    tail = bytes([flags, v_min, v_max, h_min, h_max, clock, 0x01, 0x0A]) + b" " * 6
    return bytes([0, 0, 0, _DESCRIPTOR_RANGE]) + tail


def _limits(values: Sequence[float], others: tuple[int, int]) -> tuple[int, int, int]:
    """Return limits that cover both arguments, and the flag that adds 255 to the upper one."""
    low = max(min(others[0], *map(int, values)), 1)
    high = min(max(others[1], *map(ceil, values)), 510)
    return (low, high, 0) if high <= 255 else (low, high - 255, 2)


def _descriptor(tag: int, data: bytes) -> bytes:
    return bytes([0, 0, 0, tag, 0]) + data


def _text(text: bytes) -> bytes:
    """Fill a text descriptor: a text that leaves room ends with a line feed, then come spaces."""
    return (text + b"\n").ljust(_TEXT_SIZE)[:_TEXT_SIZE]


def _printable(text: str) -> bytes:
    printable = "".join(char if char.isascii() and char.isprintable() else "?" for char in text)
    return printable[:_TEXT_SIZE].encode()
