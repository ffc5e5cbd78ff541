"""Tiles: which of them a picture has changed, against plain numpy."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from tests.native.arena import random_bytes
from vgpud.native.arrays import address_of
from vgpud.native.spans import FLUSH_BEFORE_READ, SPAN, SpanList
from vgpud.native.tiles import TILE, TileShadow

ACROSS, DOWN = TILE
AS_IS = (0, 1, 2, 3)
ORDERS = st.permutations(AS_IS).map(lambda order: (order[0], order[1], order[2], order[3]))


def split(picture: NDArray[np.uint8], cuts: list[int]) -> SpanList:
    """A buffer of the picture's bytes, cut into pieces."""
    ends = sorted({min(cut, picture.nbytes) for cut in cuts} | {picture.nbytes})
    starts = [0, *ends[:-1]]
    base = address_of(picture)
    return SpanList(np.array([(base + a, b - a) for a, b in zip(starts, ends, strict=True)], SPAN))


def parts(size: int) -> st.SearchStrategy[tuple[int, int]]:
    """Where a part begins and how long it is, often at an edge."""
    begin = st.just(0) | st.integers(0, size - 1)
    return begin.flatmap(
        lambda at: st.tuples(st.just(at), st.just(size - at) | st.integers(1, size - at))
    )


class Model:
    """What a `TileShadow` should be, pixel by pixel."""

    def __init__(self, width: int, height: int) -> None:
        self.pixels = np.zeros((height, width, 4), np.uint8)
        self.known = np.zeros((height, width), np.bool_)

    def update(
        self, picture: NDArray[np.uint8], x: int, y: int, width: int, height: int
    ) -> NDArray[np.uint8]:
        area = np.zeros(self.known.shape, np.bool_)
        area[y : y + height, x : x + width] = True
        differs = area & ((picture != self.pixels).any(axis=-1))
        rows, columns = (
            range(y // DOWN, (y + height - 1) // DOWN + 1),
            range(x // ACROSS, (x + width - 1) // ACROSS + 1),
        )
        changed = np.zeros((len(rows), len(columns)), np.uint8)
        for i, row in enumerate(rows):
            for j, column in enumerate(columns):
                tile = np.s_[row * DOWN : (row + 1) * DOWN, column * ACROSS : (column + 1) * ACROSS]
                known = bool(self.known[tile].all())
                changed[i, j] = not known or bool(differs[tile].any())
                if area[tile].all():
                    self.known[tile] = True
        self.pixels[area] = picture[area]
        return changed


@pytest.mark.parametrize("flags", [0, FLUSH_BEFORE_READ])
@settings(max_examples=150)
@given(data=st.data())
def test_a_shadow_follows_a_picture(flags: int, data: st.DataObject) -> None:
    width = data.draw(st.integers(1, 3 * ACROSS + 1), "width")
    height = data.draw(st.integers(1, 3 * DOWN + 1), "height")
    gap, offset = data.draw(st.integers(0, 9), "gap"), data.draw(st.integers(0, 9), "offset")
    stride = 4 * width + gap
    order = data.draw(ORDERS, "order")
    memory = random_bytes(offset + height * stride + 3)
    rows = memory[offset : offset + height * stride].reshape(height, stride)[:, : 4 * width]
    buffer = split(memory, data.draw(st.lists(st.integers(1, memory.nbytes), max_size=4), "cuts"))
    shadow, model = TileShadow(np.zeros((height, width, 4), np.uint8)), Model(width, height)
    if data.draw(st.booleans(), "what the memory holds is what will be drawn"):
        model.pixels[:] = rows.reshape(height, width, 4)[..., order]
    shadow.pixels[:] = model.pixels
    for turn in range(data.draw(st.integers(1, 6), "turns")):
        for _ in range(data.draw(st.integers(0, 3), "draws")):
            x, y = data.draw(st.integers(0, width - 1)), data.draw(st.integers(0, height - 1))
            rows[y, 4 * x + turn % 4] ^= 1
        x, across = data.draw(parts(width), "x")
        y, down = data.draw(parts(height), "y")
        area = across, down

        changed = shadow.update(
            buffer, offset + y * stride + 4 * x, stride, x, y, *area, order=order, flags=flags
        )

        picture = rows.reshape(height, width, 4)[..., order]
        assert np.array_equal(changed, model.update(picture, x, y, *area))
        assert np.array_equal(shadow.pixels, model.pixels)


@pytest.mark.parametrize(
    "rect",
    [(0, 0, 65, 1), (1, 0, 64, 1), (0, 0, 1, 33), (0, 32, 1, 1), (64, 0, 1, 1), (0, 31, 1, 2)],
)
def test_no_rectangle_leaves_the_shadow(rect: tuple[int, int, int, int]) -> None:
    picture = np.zeros(1 << 16, np.uint8)
    shadow = TileShadow(np.zeros((32, 64, 4), np.uint8))
    with pytest.raises(ValueError, match="leaves"):
        shadow.update(split(picture, []), 0, 256, *rect, order=AS_IS)


@pytest.mark.parametrize("cuts", [[], [100]])
@pytest.mark.parametrize(("offset", "stride"), [(1, 256), (0, 257), (8192, 0), (0, 1 << 62)])
def test_no_rectangle_leaves_the_buffer(offset: int, stride: int, cuts: list[int]) -> None:
    picture = np.zeros(256 * 32, np.uint8)
    shadow = TileShadow(np.zeros((32, 64, 4), np.uint8))
    shadow.pixels[:] = 7
    with pytest.raises(ValueError, match="leaves"):
        shadow.update(split(picture, cuts), offset, stride, 0, 0, 64, 32, order=AS_IS)
    assert (shadow.pixels == 7).all()


def test_an_empty_rectangle_has_no_tiles() -> None:
    shadow = TileShadow(np.zeros((32, 64, 4), np.uint8))
    picture = split(np.zeros(16, np.uint8), [])
    assert shadow.update(picture, 0, 0, 0, 0, 0, 5, order=AS_IS).size == 0
