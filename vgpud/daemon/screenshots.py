"""Screenshots in the making: one at a time of each device, in threads that do nothing else.

A caller may ask again as soon as it has given up. So what a thread still does for it counts until
the thread has ended, which is soon: it is stopped between two steps. The memory is bounded that way
and not charged to the guest, which has not asked for it.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, asynccontextmanager
from typing import Final, TypeVar

from vgpud.gpu.display import png
from vgpud.gpu.display.capture import Capture
from vgpud.memory import memfd
from vgpud.memory.steps import Steps
from vgpud.unix.fd import Fd
from vgpud.unix.thread_priority import lower_thread_priority

THREADS: Final = 2
"""Threads of a daemon, so that a small picture does not wait for a large one of another device.
They are not the event loop's default ones, since look-ups of users and reloads wait for those."""

_T = TypeVar("_T")
_Item = TypeVar("_Item")


class Screenshots:
    """The screenshots of all devices of a daemon."""

    def __init__(self) -> None:
        self._threads = ThreadPoolExecutor(THREADS, "screenshot", lower_thread_priority)
        self._locks: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)

    def close(self) -> None:
        """End the threads. Those that run for a caller that was cancelled end with their step."""
        self._threads.shutdown(wait=True, cancel_futures=True)

    @asynccontextmanager
    async def turn(self, device: str) -> AsyncIterator[ScreenshotWork]:
        """Wait for the turn to take a screenshot of a device.

        It ends with the block, or, if that is left by an error, once no thread works for it.
        """
        lock = self._locks[device]
        await lock.acquire()
        work = ScreenshotWork(self._threads)
        work.at_end(lock.release)
        try:
            yield work
        finally:
            work.end()


class ScreenshotWork:
    """What is done for one screenshot, by one thread at a time."""

    def __init__(self, threads: ThreadPoolExecutor) -> None:
        self._threads = threads
        self._running = False  # in a thread
        self._ended = False
        self._stopped = False
        self._cleanup = ExitStack()

    def at_end(self, clean_up: Callable[[], object]) -> None:
        """Have a function called on the event loop once no thread works for the screenshot."""
        self._cleanup.callback(clean_up)

    def end(self) -> None:
        """Stop the thread, if it still works, and clean up after that."""
        self._ended = self._stopped = True
        if not self._running:
            self._cleanup.close()

    async def run(self, steps: Steps) -> None:
        """Run steps in a thread; the rest of them is left out once the caller is cancelled."""

        def exhaust() -> None:
            for _ in self._until_stopped(steps):
                pass

        await self._in_a_thread(exhaust)

    async def picture(self, name: str, capture: Capture) -> Fd:
        """Return a PNG file of a capture; raises HostError."""

        def make() -> Fd:
            rows = self._until_stopped(capture.rows())
            return memfd.filled(name, png.stream(capture.width, capture.height, rows))

        return await self._in_a_thread(make, discard=Fd.close)

    async def _in_a_thread(
        self, function: Callable[[], _T], discard: Callable[[_T], object] | None = None
    ) -> _T:
        running = asyncio.get_running_loop().run_in_executor(self._threads, function)
        self._running = True
        running.add_done_callback(self._thread_ended)
        try:
            # Shielded, because a cancelled future says nothing about its thread.
            return await asyncio.shield(running)
        except asyncio.CancelledError:
            self._stopped = True
            running.add_done_callback(lambda _: _discard(running, discard))
            raise

    def _thread_ended(self, _: object) -> None:
        self._running = False
        if self._ended:
            self._cleanup.close()

    def _until_stopped(self, items: Iterator[_Item]) -> Iterator[_Item]:
        for item in items:
            if self._stopped:
                raise _StoppedError
            yield item


class _StoppedError(Exception):
    """The caller is gone."""


def _discard(made: asyncio.Future[_T], discard: Callable[[_T], object] | None) -> None:
    if not made.cancelled() and made.exception() is None and discard is not None:
        discard(made.result())
