"""Calls that may take long in the kernel, because of what another process does, in a thread each.

mmap(2) of a file waits while another process frees pages of it (i_mmap_rwsem), which takes as long
as that process has mapped them.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import TypeVar

from vgpud.errors import stored

T = TypeVar("T")


async def in_own_thread(call: Callable[[], T]) -> T:
    """Call a function in a thread of its own, and return what it returns, or raise what it raises.

    A caller that is cancelled returns at once, and the call goes on: it must own what it uses.
    Raises RuntimeError if there is no thread to be had.
    """
    loop = asyncio.get_running_loop()
    done: asyncio.Future[None] = loop.create_future()
    results: list[T] = []
    errors: list[Exception] = []

    def run() -> None:
        try:
            results.append(call())
        except Exception as error:  # raised below
            errors.append(stored(error))
        with suppress(RuntimeError):  # the loop has ended
            loop.call_soon_threadsafe(_end, done)

    threading.Thread(target=run, name="vgpud-call", daemon=True).start()
    await done
    if errors:
        raise errors.pop()
    return results.pop()


def _end(done: asyncio.Future[None]) -> None:
    if not done.done():  # unless its caller was cancelled
        done.set_result(None)
