"""Damage, against a picture of which pixels were touched."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from vgpud.gpu.display.damage import MAX_RECTS, Damage, union
from vgpud.gpu.wire.header import Rect

SIDE = 48
EDGES = st.integers(0, SIDE - 1)


@st.composite
def rects(draw: st.DrawFn) -> Rect:
    x, y = draw(EDGES), draw(EDGES)
    return Rect(x, y, draw(st.integers(1, SIDE - x)), draw(st.integers(1, SIDE - y)))


SMALL = st.builds(Rect, EDGES, EDGES, st.just(1), st.just(1))


def paint(picture: NDArray[np.bool_], rect: Rect) -> None:
    picture[rect.y : rect.y + rect.height, rect.x : rect.x + rect.width] = True


def picture(*parts: Rect) -> NDArray[np.bool_]:
    painted = np.zeros((SIDE, SIDE), np.bool_)
    for rect in parts:
        paint(painted, rect)
    return painted


def pop_all(damage: Damage) -> list[Rect]:
    found = []
    while damage:
        found.append(damage.pop())
    return found


def area(rect: Rect) -> int:
    return rect.width * rect.height


@given(st.lists(rects() | SMALL, max_size=40))
@settings(deadline=None)
def test_all_is_covered_by_a_few_rectangles(added: list[Rect]) -> None:
    damage = Damage()
    for rect in added:
        damage.add(rect)
        assert damage
    found = pop_all(damage)
    assert len(found) <= MAX_RECTS
    assert not np.any(picture(*added) & ~picture(*found))
    # Nothing beyond what was touched at all, from edge to edge.
    box = union(*(added * 2)[:2]) if added else None
    for rect in added:
        assert box is not None
        box = union(box, rect)
    assert box is None or all(union(box, rect) == box for rect in found)


@given(st.lists(rects() | SMALL, max_size=MAX_RECTS))
@settings(deadline=None)
def test_few_rectangles_waste_nothing(added: list[Rect]) -> None:
    """Joining two costs no pixel more than sending both would."""
    damage = Damage()
    for rect in added:
        damage.add(rect)
    assert sum(map(area, pop_all(damage))) <= sum(map(area, added))


@given(rects(), rects())
def test_union(a: Rect, b: Rect) -> None:
    both = union(a, b)
    ys, xs = (axis.tolist() for axis in np.nonzero(picture(a, b)))
    assert (both.x, both.y) == (min(xs), min(ys))
    assert (both.x + both.width, both.y + both.height) == (max(xs) + 1, max(ys) + 1)


@pytest.mark.parametrize(
    ("added", "expected"),
    [
        ([Rect(0, 0, 4, 4), Rect(4, 0, 4, 4)], [Rect(0, 0, 8, 4)]),  # side by side
        ([Rect(0, 0, 4, 4), Rect(0, 4, 4, 4)], [Rect(0, 0, 4, 8)]),
        ([Rect(0, 0, 9, 9), Rect(1, 1, 2, 2)], [Rect(0, 0, 9, 9)]),  # one in the other
        ([Rect(1, 1, 2, 2), Rect(0, 0, 9, 9)], [Rect(0, 0, 9, 9)]),
        ([Rect(5, 5, 3, 3)] * 3, [Rect(5, 5, 3, 3)]),
        ([Rect(0, 0, 4, 4), Rect(3, 0, 4, 4)], [Rect(0, 0, 7, 4)]),  # overlapping
        ([Rect(0, 0, 1, 1), Rect(9, 9, 1, 1)], [Rect(0, 0, 1, 1), Rect(9, 9, 1, 1)]),
        # A third that fits between two brings them together.
        ([Rect(0, 0, 4, 4), Rect(8, 0, 4, 4), Rect(4, 0, 4, 4)], [Rect(0, 0, 12, 4)]),
    ],
)
def test_what_is_joined(added: list[Rect], expected: list[Rect]) -> None:
    damage = Damage()
    for rect in added:
        damage.add(rect)
    assert pop_all(damage) == expected


def test_a_text_cursor_far_from_a_clock_costs_two_small_rectangles() -> None:
    damage = Damage()
    cursor, clock = Rect(10, 700, 2, 16), Rect(1200, 4, 60, 20)
    for rect in (cursor, clock) * 20:
        damage.add(rect)
    assert sorted(pop_all(damage), key=area) == [cursor, clock]


def test_too_many_become_one() -> None:
    damage = Damage()
    spots = [Rect(100 * at, 7 * at, 1, 1) for at in range(MAX_RECTS + 1)]
    for spot in spots[:-1]:
        damage.add(spot)
    damage.add(spots[-1])
    assert pop_all(damage) == [Rect(0, 0, 100 * MAX_RECTS + 1, 7 * MAX_RECTS + 1)]


def test_up_to_the_limit_they_are_kept_apart_and_in_order() -> None:
    damage = Damage()
    spots = [Rect(100 * at, 7 * at, 1, 1) for at in range(MAX_RECTS)]
    for spot in spots:
        damage.add(spot)
    assert pop_all(damage) == spots
