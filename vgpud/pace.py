"""The pace of long work on the event loop: how often it lets other tasks run."""

from __future__ import annotations

import asyncio
from collections.abc import Generator
from time import thread_time
from typing import Final, TypeVar

T = TypeVar("T")

STEP: Final = 0.0005
"""Seconds, of the processor's time, after which other tasks run: less than a millisecond, with the
step that ends it."""


class Pace:
    """A pause after each half millisecond of work in many short steps.

    What the work changes has to be consistent at each `step`, because other tasks may run there.
    """

    def __init__(self) -> None:
        self._until = thread_time() + STEP

    async def step(self) -> None:
        """Let other tasks run if it is time for that."""
        if thread_time() >= self._until:
            await asyncio.sleep(0)
            self._until = thread_time() + STEP


async def paced(steps: Generator[None, None, T]) -> T:
    """Run steps to their end, and return what the last one returns."""
    pace = Pace()
    while True:
        try:
            next(steps)
        except StopIteration as end:
            result: T = end.value
            return result
        await pace.step()
