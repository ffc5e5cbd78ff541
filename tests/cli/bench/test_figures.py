"""Medians, quartiles, and ratios by pairs."""

from __future__ import annotations

import pytest

from vgpud.cli.bench.figures import Spread, ratio


def test_a_spread_is_the_median_between_its_quartiles() -> None:
    assert Spread.of([5.0, 1.0, 2.0, 4.0, 3.0]) == Spread(3.0, 2.0, 4.0)
    assert Spread.of([7.0]) == Spread(7.0, 7.0, 7.0)


def test_a_ratio_is_by_pairs_so_that_drift_does_not_show() -> None:
    drifting = [100.0, 10.0, 1000.0]
    assert ratio([2 * value for value in drifting], drifting) == pytest.approx(2)
    assert ratio([1.0, 8.0, 3.0], [1.0, 1.0, 1.0]) == 3
