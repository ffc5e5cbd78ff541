"""Rectangles of changed tiles, against a picture of which pixels they cover."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from vgpud.gpu.display.tiles import MAX_RECTS, RECT_COST, rectangles
from vgpud.gpu.wire.header import Rect

TILE = (8, 4)


@st.composite
def looks(draw: st.DrawFn) -> tuple[Rect, NDArray[np.uint8]]:
    """An area, and which of the tiles that it touches have changed."""
    x, y = draw(st.integers(0, 40)), draw(st.integers(0, 40))
    area = Rect(x, y, draw(st.integers(1, 80)), draw(st.integers(1, 80)))
    rows = (y + area.height - 1) // TILE[1] - y // TILE[1] + 1
    columns = (x + area.width - 1) // TILE[0] - x // TILE[0] + 1
    flags = draw(st.lists(st.booleans(), min_size=rows * columns, max_size=rows * columns))
    return area, np.array(flags, np.uint8).reshape(rows, columns)


def painted(rects: list[Rect], side: int = 160) -> NDArray[np.bool_]:
    picture = np.zeros((side, side), np.bool_)
    for rect in rects:
        assert rect.width > 0
        assert rect.height > 0
        part = picture[rect.y : rect.y + rect.height, rect.x : rect.x + rect.width]
        assert not part.any(), "sent twice"
        part[:] = True
    return picture


def expected(area: Rect, changed: NDArray[np.uint8], side: int = 160) -> NDArray[np.bool_]:
    """The pixels of the area that are in changed tiles."""
    picture = np.zeros((side, side), np.bool_)
    for y in range(area.y, area.y + area.height):
        for x in range(area.x, area.x + area.width):
            picture[y, x] = changed[
                y // TILE[1] - area.y // TILE[1], x // TILE[0] - area.x // TILE[0]
            ]
    return picture


@given(looks())
def test_all_that_has_changed_is_covered_and_nothing_outside_of_the_area(
    look: tuple[Rect, NDArray[np.uint8]],
) -> None:
    area, changed = look
    rects = rectangles(changed, area, TILE)
    needed, sent = expected(area, changed), painted(rects)
    assert not (needed & ~sent).any()
    assert not (sent & ~painted([area])).any()
    assert bool(rects) == bool(changed.any())


@given(looks())
def test_it_costs_no_more_than_one_rectangle_for_all_of_it(
    look: tuple[Rect, NDArray[np.uint8]],
) -> None:
    area, changed = look
    needed = expected(area, changed)
    if not needed.any():
        return
    ys, xs = np.nonzero(needed)
    whole = int((ys.max() - ys.min() + 1) * (xs.max() - xs.min() + 1))
    rects = rectangles(changed, area, TILE)
    assert sum(RECT_COST + r.width * r.height for r in rects) <= RECT_COST + whole


SCREEN = Rect(0, 0, 1280, 800)


def grid(*blocks: tuple[int, int, int, int]) -> NDArray[np.uint8]:
    """A screen's tiles of 64 x 16, changed in blocks of left, top, right, bottom."""
    changed = np.zeros((50, 20), np.uint8)
    for left, top, right, bottom in blocks:
        changed[top:bottom, left:right] = 1
    return changed


@pytest.mark.parametrize(
    ("changed", "rects"),
    [
        (grid(), []),
        (grid((0, 0, 20, 50)), [SCREEN]),
        (grid((4, 12, 8, 25)), [Rect(256, 192, 256, 208)]),
        # Far apart: two messages cost less than what is between them.
        (
            grid((0, 0, 1, 1), (19, 49, 20, 50)),
            [Rect(0, 0, 64, 16), Rect(1216, 784, 64, 16)],
        ),
        # Close together: the other way round.
        (grid((3, 3, 4, 4), (5, 3, 6, 4)), [Rect(192, 48, 192, 16)]),
        # Side by side, of different heights.
        (
            grid((0, 0, 4, 30), (15, 10, 20, 50)),
            [Rect(0, 0, 256, 480), Rect(960, 160, 320, 640)],
        ),
    ],
)
def test_screens(changed: NDArray[np.uint8], rects: list[Rect]) -> None:
    found = rectangles(changed, SCREEN, (64, 16))
    assert sorted(found, key=lambda rect: (rect.y, rect.x)) == rects


def test_many_scattered_tiles_become_few_rectangles() -> None:
    random = np.random.default_rng(1)
    for density in (0.003, 0.01, 0.05, 0.5):
        changed = (random.random((135, 60)) < density).astype(np.uint8)  # 4K
        rects = rectangles(changed, Rect(0, 0, 3840, 2160), (64, 16))
        assert len(rects) <= MAX_RECTS
