"""Stops of the event loop that are too long each time that they are measured."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

TIMES: Final = 3


def too_long_each_time(measure: Callable[[], dict[str, float]]) -> dict[str, float]:
    """Return the operations for which `measure` finds too long a stop, in seconds, each time.

    A busy machine makes some of them longer now and then, but not the same ones each time.
    """
    longer = measure()
    for _ in range(TIMES - 1):
        if longer:
            again = measure()
            longer = {name: again[name] for name in longer.keys() & again.keys()}
    return longer
