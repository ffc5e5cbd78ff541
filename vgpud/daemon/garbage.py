"""Python's collector of reference cycles, kept from stopping the event loop.

A full collection visits all objects: 80 milliseconds where a guest has made 40,000 blobs, and
Python begins one whenever their number has grown by a quarter. But what commands make is in no
cycle. So young objects are collected as usual, which takes a fraction of a millisecond, and all of
them only when sessions have begun or ended, and rarely. Source: gc.
"""

from __future__ import annotations

import asyncio
import gc
import logging
from collections.abc import Callable
from time import perf_counter
from typing import Final

PERIOD: Final = 30.0
"""Seconds between looks whether a full collection is due."""

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
    """Collect all objects from time to time if `state` has another value than before."""
    before, pause = state(), PERIOD
    while True:
        await asyncio.sleep(pause)
        if (now := state()) == before:
            continue
        before, began = now, perf_counter()
        found = gc.collect()
        taken = perf_counter() - began
        pause = max(PERIOD, SHARE * taken)
        _log.debug("full collection objects=%d ms=%.1f", found, 1e3 * taken)
