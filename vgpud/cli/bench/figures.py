"""The common parts of benches: medians with quartiles, ratios and charts."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, Self, TypeAlias

import numpy as np

Progress: TypeAlias = Callable[[str], None]
"""A function that is called with the name of what is measured next."""


def no_progress(_: str = "") -> None:
    """Ignore progress."""


@dataclass(frozen=True, slots=True)
class Spread:
    """The median of a number of samples, and their quartiles."""

    median: float
    lower: float
    upper: float

    @classmethod
    def of(cls, samples: Sequence[float]) -> Self:
        """Return the spread of one sample or more."""
        lower, median, upper = np.percentile(samples, [25, 50, 75])
        return cls(float(median), float(lower), float(upper))


def ratio(samples: Sequence[float], others: Sequence[float]) -> float:
    """Return the median of the pairwise ratios of two series.

    Samples with the same index were measured one after the other, so that drift affects both.
    """
    return float(np.median(np.divide(samples, others)))


@dataclass(frozen=True, slots=True)
class Bar:
    """A bar of a chart."""

    label: str
    spread: Spread


@dataclass(frozen=True, slots=True)
class Chart:
    """A chart of bars with the same unit."""

    title: str
    unit: str
    bars: tuple[Bar, ...]


class BenchResult(Protocol):
    """The result of a bench."""

    def to_json(self) -> Any:
        """Return the result as JSON values."""

    def lines(self) -> Iterator[str]:
        """Return the result as text of at most 100 columns."""

    def charts(self) -> Iterator[Chart]:
        """Return the charts for a plot."""
