"""Waits for a condition by polling it: what another process does sets no event of ours."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from typing import Final

PATIENCE: Final = 20.0
"""Seconds that anything may take on a busy machine."""


def until(
    condition: Callable[[], bool],
    patience: float = PATIENCE,
    complaint: str | Callable[[], str] = "",
    *,
    pause: float = 0.01,
) -> None:
    """Wait until a condition holds; fail with the complaint if it does not within `patience`."""
    for _ in _asking(condition, patience, complaint):
        time.sleep(pause)


async def until_async(
    condition: Callable[[], bool],
    patience: float = PATIENCE,
    complaint: str | Callable[[], str] = "",
    *,
    pause: float = 0.01,
) -> None:
    """Wait as `until` does, while other tasks of the event loop run."""
    for _ in _asking(condition, patience, complaint):
        await asyncio.sleep(pause)


def _asking(
    condition: Callable[[], bool], patience: float, complaint: str | Callable[[], str]
) -> Iterator[None]:
    """Yield whenever the condition does not hold yet."""
    end = time.monotonic() + patience
    while not condition():
        if time.monotonic() > end:
            said = complaint() if callable(complaint) else complaint
            raise AssertionError(said or f"not within {patience} s")
        yield
