"""Pixel formats against their names, which spell the bytes in memory order."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vgpud.gpu.wire.formats import from_xrgb, has_alpha, is_known, to_rgb, to_xrgb
from vgpud.gpu.wire.protocol import Format

VALUES = {"B": 1, "G": 2, "R": 3, "A": 4, "X": 4}


def channels(pixel_format: Format) -> str:
    """The letters of a format's name: B8G8R8A8_UNORM is BGRA."""
    return pixel_format.name[0:8:2]


def picture(height: int = 3, width: int = 5) -> np.ndarray:
    return np.arange(height * width * 4, dtype=np.uint8).reshape(height, width, 4)


every = pytest.mark.parametrize("pixel_format", Format, ids=lambda value: value.name)


@every
def test_names_say_the_order(pixel_format: Format) -> None:
    pixel = np.array([[[VALUES[letter] for letter in channels(pixel_format)]]], np.uint8)
    assert to_xrgb(pixel, pixel_format).tolist() == [[[1, 2, 3, 4]]]
    assert to_rgb(pixel, pixel_format).tolist() == [[[3, 2, 1]]]
    assert from_xrgb(np.array([[[1, 2, 3, 4]]], np.uint8), pixel_format).tolist() == pixel.tolist()


@every
def test_whole_pictures(pixel_format: Format) -> None:
    pixels = picture()
    order = [channels(pixel_format).replace("A", "X").index(letter) for letter in "BGRX"]
    assert np.array_equal(to_xrgb(pixels, pixel_format), pixels[..., order])
    assert np.array_equal(from_xrgb(to_xrgb(pixels, pixel_format), pixel_format), pixels)
    assert np.array_equal(to_rgb(pixels, pixel_format), pixels[..., order][..., 2::-1])


@every
def test_parts_of_pictures(pixel_format: Format) -> None:
    pixels = picture(9, 11)[2:7, 3:9]
    expected = to_xrgb(pixels.copy(), pixel_format)
    assert np.array_equal(to_xrgb(pixels, pixel_format), expected)
    assert np.array_equal(to_xrgb(pixels[::-1, ::2], pixel_format), expected[::-1, ::2])


@every
def test_pixels_in_any_order_of_memory(pixel_format: Format) -> None:
    planes = np.arange(4 * 3 * 5, dtype=np.uint8).reshape(4, 3, 5)
    columns = picture().transpose(1, 0, 2)
    for pixels in (planes.transpose(1, 2, 0), columns):
        result = to_xrgb(pixels, pixel_format)
        assert np.array_equal(result, to_xrgb(pixels.copy(order="C"), pixel_format))
        assert result is pixels or result.flags.c_contiguous


@every
def test_unaligned_pixels(pixel_format: Format) -> None:
    raw = np.arange(41, dtype=np.uint8)
    pixels = raw[1:].reshape(2, 5, 4)
    assert np.array_equal(to_xrgb(pixels, pixel_format), to_xrgb(pixels.copy(), pixel_format))


@every
def test_the_result_is_contiguous_and_the_input_unharmed(pixel_format: Format) -> None:
    pixels = picture()
    pixels.flags.writeable = False
    assert to_xrgb(pixels, pixel_format).flags.c_contiguous
    assert to_rgb(pixels, pixel_format).flags.c_contiguous
    assert to_rgb(pixels, pixel_format).shape == (3, 5, 3)
    assert np.array_equal(pixels, picture())


@every
def test_only_the_display_order_itself_is_not_copied(pixel_format: Format) -> None:
    pixels = picture()
    copied = not np.shares_memory(pixels, to_xrgb(pixels, pixel_format))
    assert copied == (channels(pixel_format)[:3] != "BGR")


@every
def test_alpha(pixel_format: Format) -> None:
    assert has_alpha(pixel_format) == ("A" in channels(pixel_format))


def test_no_pixels() -> None:
    for pixel_format in Format:
        assert to_xrgb(np.empty((0, 7, 4), np.uint8), pixel_format).shape == (0, 7, 4)


@given(st.integers(0, 0xFFFFFFFF) | st.integers(0, 140))
def test_known_formats(value: int) -> None:
    assert is_known(value) == (value in {int(pixel_format) for pixel_format in Format})
