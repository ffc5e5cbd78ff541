"""A DisplayID section in an EDID's extension block: the timing of an output too large for an EDID.

Specification: VESA DisplayID 1.3; which data blocks a display has to have, and that its
identification comes first, is of section 2.
"""

from __future__ import annotations

from dataclasses import dataclass
from struct import Struct
from typing import Final

from vgpud.gpu.wire.cvt import Timing, aspect

BLOCK_SIZE: Final = 128
TAG: Final = 0x70
"""The first byte of an extension block that holds a DisplayID section."""

MAX_SIZE: Final = 65535
"""Largest width and height, pixels, that the display's parameters have room for."""

MAX_CLOCK_KHZ: Final = (1 << 24) * 10
"""The timing has 24 bits for the pixel clock in units of 10 kHz."""

_VERSION: Final = 0x13
_STAND_ALONE_DISPLAY: Final = 3

_PRODUCT_IDENTIFICATION: Final = 0x00
_DISPLAY_PARAMETERS: Final = 0x01
_TYPE_I_TIMING: Final = 0x03
_DISPLAY_INTERFACE: Final = 0x0F

_IDENTIFICATION = Struct("<3sHIBBB")
_PARAMETERS = Struct("<HHHHBBBB")
_TIMING = Struct("<3sBHHHHHHHH")
_INTERFACE: Final = bytes([0xB1]).ljust(10, b"\0")  # one link of an own digital kind, no more said

_PREFERRED: Final = 0x80
_POSITIVE: Final = 0x8000
_ASPECT: Final = {(1, 1): 0, (5, 4): 1, (4, 3): 2, (15, 9): 3, (16, 9): 4, (16, 10): 5}
_ASPECT_OTHER: Final = 8


@dataclass(frozen=True, slots=True)
class Product:
    """Who a display is: three letters of the maker, numbers, and a name of a few ASCII bytes."""

    manufacturer: str
    code: int
    serial: int
    model_year: int
    name: bytes


def extension(timing: Timing, product: Product, size_mm: tuple[int, int]) -> bytes:
    """Make the 128 bytes of an extension block whose one timing is the preferred one."""
    data = b"".join(
        (
            _data_block(_PRODUCT_IDENTIFICATION, _identification(product)),
            _data_block(_DISPLAY_PARAMETERS, _parameters(timing, size_mm)),
            _data_block(_DISPLAY_INTERFACE, _INTERFACE),
            _data_block(_TYPE_I_TIMING, _pack_timing(timing)),
        )
    )
    section = bytes([_VERSION, len(data), _STAND_ALONE_DISPLAY, 0]) + data
    block = bytes([TAG]) + section + bytes([-sum(section) % 256])
    block = block.ljust(BLOCK_SIZE - 1, b"\0")
    return block + bytes([-sum(block) % 256])


def unpack(block: bytes) -> Timing | None:
    """Find the first detailed timing in a block such as `extension` makes."""
    data = block[5 : 5 + block[2]]
    while len(data) >= 3:
        tag, _revision, size = data[:3]
        payload, data = data[3 : 3 + size], data[3 + size :]
        if tag == _TYPE_I_TIMING and len(payload) >= _TIMING.size:
            return _unpack_timing(payload)
    return None


def _data_block(tag: int, payload: bytes) -> bytes:
    return bytes([tag, 0, len(payload)]) + payload


def _identification(product: Product) -> bytes:
    return (
        _IDENTIFICATION.pack(
            product.manufacturer.encode(),
            product.code,
            product.serial,
            0xFF,  # instead of a week: the year is the model's
            product.model_year - 2000,
            len(product.name),
        )
        + product.name
    )


def _parameters(timing: Timing, size_mm: tuple[int, int]) -> bytes:
    width_mm, height_mm = size_mm
    ratio = timing.h_active / timing.v_active
    return _PARAMETERS.pack(
        width_mm * 10,
        height_mm * 10,
        timing.h_active,
        timing.v_active,
        0x00,  # no audio, no power management, no fixed timing
        120,  # gamma 2.2
        min(max(round((max(ratio, 1 / ratio) - 1) * 100), 0), 255),
        0x77,  # 8 bits a colour, in the picture and overall
    )


def _pack_timing(timing: Timing) -> bytes:
    ratio = aspect(timing.h_active, timing.v_active)
    return _TIMING.pack(
        (timing.clock_khz // 10 - 1).to_bytes(3, "little"),
        _PREFERRED | _ASPECT.get(ratio, _ASPECT_OTHER),
        timing.h_active - 1,
        timing.h_blank - 1,
        (timing.h_front - 1) | _POSITIVE,
        timing.h_sync - 1,
        timing.v_active - 1,
        timing.v_blank - 1,
        timing.v_front - 1,
        timing.v_sync - 1,
    )


def _unpack_timing(packed: bytes) -> Timing:
    clock, _, h_active, h_blank, h_front, h_sync, *vertical = _TIMING.unpack_from(packed)
    v_active, v_blank, v_front, v_sync = vertical
    return Timing(
        clock_khz=(int.from_bytes(clock, "little") + 1) * 10,
        h_active=h_active + 1,
        h_blank=h_blank + 1,
        h_front=(h_front & ~_POSITIVE) + 1,
        h_sync=h_sync + 1,
        v_active=v_active + 1,
        v_blank=v_blank + 1,
        v_front=v_front + 1,
        v_sync=v_sync + 1,
    )
