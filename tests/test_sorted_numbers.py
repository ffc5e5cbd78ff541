"""Sorted numbers, compared with a sorted list."""

from __future__ import annotations

import random
from bisect import bisect_left

import pytest

from vgpud.sorted_numbers import SortedNumbers


@pytest.mark.parametrize("seed", range(5))
def test_it_is_a_sorted_list(seed: int) -> None:
    chance = random.Random(seed)
    numbers, model = SortedNumbers(), set[int]()
    for step in range(12_000):
        number = chance.randrange(9_000)
        # It grows over several lists, and shrinks to none.
        if number in model and (step > 6_000 or chance.random() < 0.2):
            numbers.remove(number)
            model.remove(number)
        elif number not in model and step < 9_000:
            numbers.add(number)
            model.add(number)
        if step % 500 == 0:
            ordered = sorted(model)
            assert list(numbers) == ordered
            assert list(reversed(numbers)) == ordered[::-1]
            assert len(numbers) == len(ordered)
            for asked in (-1, 0, 9_000, *chance.choices(range(9_000), k=50)):
                at = bisect_left(ordered, asked)
                assert numbers.before(asked) == (ordered[at - 1] if at else None)
                size = chance.randrange(2_000)
                assert numbers.part(at, at + size) == ordered[at : at + size]


def test_what_is_not_there_can_not_be_removed() -> None:
    numbers = SortedNumbers()
    for number in (5, 3):
        numbers.add(number)
    for missing in (1, 4, 6):
        with pytest.raises(KeyError):
            numbers.remove(missing)
    assert list(numbers) == [3, 5]
