"""Python's collector of reference cycles, kept from stopping the event loop.

A full collection visits all objects: 80 milliseconds where a guest has made 40,000 blobs, and
Python begins one whenever their number has grown by a quarter. But what commands make is in no
cycle. So young objects are collected as usual, which takes a fraction of a millisecond, and all of
them only when sessions have begun or ended, rarely, and while there are few. Source: gc.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import sys
from collections.abc import Callable
from time import perf_counter
from typing import Final

PERIOD: Final = 30.0
"""Seconds between looks whether a full collection is due."""

MOST: Final = 100_000
"""Blocks of memory, in addition to those of the beginning, up to which all objects are collected:
that takes up to ten milliseconds. An image has about 18 of them. What sessions leave in cycles is
small, so it may stay where guests have thousands of resources for long."""

SHARE: Final = 1000
"""How many times as long as the last full collection took the next one is not made."""

NEVER: Final = (1 << 31) - 1
"""Collections of the middle generation until a full one."""

_log = logging.getLogger(__name__)


def begin() -> None:
    """Begin to collect: young objects only, and none that exist now."""
    gc.freeze()  # imported modules stay
    young, middle, _ = gc.get_threshold()
    gc.set_threshold(young, middle, NEVER)
    gc.enable()


async def collect_after_changes(state: Callable[[], object]) -> None:
    """Collect all objects from time to time if `state` has another value than before, as soon as
    there are few enough."""
    before, pause, blocks = state(), PERIOD, sys.getallocatedblocks()
    while True:
        await asyncio.sleep(pause)
        # Counting blocks visits their pools, which takes a hundredth of the time of a collection.
        if (now := state()) == before or sys.getallocatedblocks() - blocks > MOST:
            continue
        before, began = now, perf_counter()
        found = gc.collect()
        taken = perf_counter() - began
        pause = max(PERIOD, SHARE * taken)
        _log.debug("full collection objects=%d ms=%.1f", found, 1e3 * taken)
