"""What measurements have in common: a median with its spread, and charts of them.

Owns no measurement.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, Self, TypeAlias

import numpy as np

Progress: TypeAlias = Callable[[str], None]
"""Is told what is measured next."""


def nothing(_: str = "") -> None:
    """Tells nobody."""


@dataclass(frozen=True, slots=True)
class Spread:
    """The median of a number of samples, and their quartiles."""

    median: float
    lower: float
    upper: float

    @classmethod
    def of(cls, samples: Sequence[float]) -> Self:
        """Of one sample or more."""
        lower, median, upper = np.percentile(samples, [25, 50, 75])
        return cls(float(median), float(lower), float(upper))


def ratio(samples: Sequence[float], others: Sequence[float]) -> float:
    """The median of how many times the others each sample is, taken pairwise.

    Samples of one place were measured one after the other: what drifts meanwhile is in both.
    """
    return float(np.median(np.divide(samples, others)))


@dataclass(frozen=True, slots=True)
class Bar:
    """One bar of a chart."""

    label: str
    spread: Spread


@dataclass(frozen=True, slots=True)
class Chart:
    """Bars that are compared with each other, in one unit."""

    title: str
    unit: str
    bars: tuple[Bar, ...]


class Measured(Protocol):
    """What a bench has found."""

    def to_json(self) -> Any:
        """For machines: values that JSON has."""

    def lines(self) -> Iterator[str]:
        """For people, 100 columns at most."""

    def charts(self) -> Iterator[Chart]:
        """For the plot."""
