"""A peer that makes a file blocking, over and over: O_NONBLOCK belongs to all who have the file."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from time import perf_counter

LONGEST = 0.5
"""Seconds that an event loop may be kept, on a busy machine; what blocks here blocks for ever."""


@asynccontextmanager
async def made_blocking(*numbers: int) -> AsyncIterator[None]:
    """Make files blocking while the event loop runs; fail if that ever keeps it.

    It keeps it for good if a call waits: then the files are made non-blocking too late for that.
    """
    own = [os.dup(number) for number in numbers]
    stop, worst = threading.Event(), 0.0

    def clear() -> None:
        while not stop.is_set():
            for number in own:
                os.set_blocking(number, True)

    async def beat() -> None:
        nonlocal worst
        while True:
            begin = perf_counter()
            await asyncio.sleep(0.001)
            worst = max(worst, perf_counter() - begin)

    clearing = threading.Thread(target=clear)
    clearing.start()
    beating = asyncio.create_task(beat())
    try:
        yield
    finally:
        stop.set()
        clearing.join()
        beating.cancel()
        await asyncio.wait([beating])
        for number in own:
            os.close(number)
    assert worst < LONGEST
