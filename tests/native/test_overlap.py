"""What two lists of places share: against sets of bytes, and in steps."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Generator
from typing import TypeVar

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from vgpud.native.overlap import PLACE, overlap_steps, sort_steps

_R = TypeVar("_R")

Piece = tuple[int, int]  # start, length
pieces = st.lists(st.tuples(st.integers(-60, 60), st.integers(1, 12)), max_size=9)


def finish(steps: Generator[None, None, _R]) -> tuple[_R, int]:
    """The result, and how many steps came before it."""
    count = 0
    while True:
        try:
            next(steps)
        except StopIteration as end:
            return end.value, count
        count += 1


def places(list_: list[Piece]) -> NDArray[np.void]:
    position = 0
    rows = []
    for start, length in list_:
        rows.append((start, start + length, position))
        position += length
    return np.array(rows, PLACE)


def positions(list_: list[Piece]) -> list[tuple[int, int]]:
    """Each byte's address and position."""
    addresses = [start + at for start, length in list_ for at in range(length)]
    return [(address, at) for at, address in enumerate(addresses)]


@given(pieces, pieces)
def test_overlaps(first: list[Piece], second: list[Piece]) -> None:
    one, _ = finish(sort_steps(places(first)))
    two, _ = finish(sort_steps(places(second)))
    overlap, _ = finish(overlap_steps(one, two))

    here, there = positions(first), positions(second)
    counts = [Counter(address for address, _ in side) for side in (here, there)]
    assert overlap.twice == any(count > 1 for side in counts for count in side.values())
    pairs = [(at, other) for a, at in here for b, other in there if a == b]
    assert overlap.shared == bool(pairs)
    if not overlap.twice:
        # A place's shift is that of its start, as its bytes follow each other.
        assert overlap.later == any(other > at for at, other in pairs)
        assert overlap.earlier == any(other < at for at, other in pairs)


@given(st.lists(st.integers(-5, 5), max_size=70))
def test_sorting_is_stable(starts: list[int]) -> None:
    given_places = np.array([(start, start + 1, at) for at, start in enumerate(starts)], PLACE)
    expected = given_places[np.argsort(given_places["start"], kind="stable")]
    ordered, _ = finish(sort_steps(given_places.copy()))
    assert np.array_equal(ordered, expected)


def test_many_places_take_many_short_steps() -> None:
    count = 300_000
    many = np.empty(count, PLACE)
    many["start"] = np.random.default_rng(1).permutation(count) * 8
    many["end"] = many["start"] + 8
    many["position"] = np.arange(count) * 8
    before = time.thread_time()
    ordered, steps = finish(sort_steps(many))
    assert (np.diff(ordered["start"]) == 8).all()
    _, more = finish(overlap_steps(ordered, ordered))
    assert steps > 100
    assert more > 15
    assert time.thread_time() - before < 0.01 * steps


def test_other_arrays_are_refused() -> None:
    with pytest.raises(ValueError, match="PLACE"):
        next(sort_steps(np.zeros(3, np.int64)))
