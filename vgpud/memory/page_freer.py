"""Freeing the pages of files that other processes have, too.

fallocate(2) waits for the lock of the file, and any process that has the file can hold that for as
long as it likes: write(2) holds it while it reads what it is to write, and that may be memory of
which a filesystem never brings the pages. fallocate also takes as long as the file has mappings.
So pages are freed in a thread that does nothing else, and what ends a session waits for it only
while it gets on. Source: Linux, mm/shmem.c, shmem_fallocate().
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from typing import Final

from vgpud.errors import HostError, PeerError, stored
from vgpud.unix.closer import Closer
from vgpud.unix.thread_priority import lower_thread_priority

log = logging.getLogger(__name__)

PATIENCE: Final = 2.0
"""Seconds without the end of a step, each of which takes a fraction of a millisecond."""

MAX_GIVEN_UP: Final = 4
"""Threads of all devices that may hang after their session's end, each with the memory of its
device. Who causes more of them waits until one goes on."""

Report = Callable[[Exception | None], None]


class FileHeldError(PeerError):
    """A process that has one of the device's files holds its lock."""

    def __init__(self) -> None:
        super().__init__(
            "the device's memory can't be freed: a process that has its file, such as the VMM,"
            " holds the file's lock"
        )


class PageFreer:
    """The thread of one device that frees pages. What it was given is freed in order, and always
    to the end."""

    _lock = threading.Lock()
    _given_up: set[PageFreer] = set()  # of all devices

    def __init__(self) -> None:
        self._thread = Closer()
        self._left = 0
        self._steps = 0

    def free_soon(self, steps: Iterator[None]) -> None:
        """Have the thread run steps that free pages, and wait for nothing; an error is logged."""
        self._pass(steps, _log)

    async def free(self, steps: Iterator[None], *, give_up: bool = False) -> None:
        """Run steps that free pages in the thread, and wait for their end; raise their HostError.

        A caller that is cancelled returns at once, and the steps go on. With `give_up` that is also
        so if the thread hangs: raises FileHeldError.
        """
        loop = asyncio.get_running_loop()
        done: asyncio.Future[Exception | None] = loop.create_future()
        self._pass(steps, partial(_report, loop, done))
        if give_up:
            await self._while_it_gets_on(done)
        error = await done
        if error is not None:
            raise error

    async def freed(self) -> None:
        """Wait until all steps that were passed so far have ended."""
        if self._left:
            await self.free(iter(()))

    def _pass(self, steps: Iterator[None], report: Report) -> None:
        with self._lock:
            self._left += 1
        self._thread.run(partial(self._run, steps, report))

    def _run(self, steps: Iterator[None], report: Report) -> None:
        """Run steps, on the thread."""
        lower_thread_priority()
        error: Exception | None = None
        try:
            for _ in steps:
                self._steps += 1
        except Exception as caught:  # raised where the end is waited for
            error = stored(caught)
        self._steps += 1
        with self._lock:
            self._left -= 1
            if not self._left:
                self._given_up.discard(self)
        report(error)

    async def _while_it_gets_on(self, done: asyncio.Future[Exception | None]) -> None:
        waiting = False
        while not done.done():
            before = self._steps
            await asyncio.wait([done], timeout=PATIENCE)
            if self._steps != before or done.done():
                continue
            if self._give_up():
                raise FileHeldError
            if not waiting:
                waiting = True
                log.warning("%d threads that free memory hang: one must go on", MAX_GIVEN_UP)

    def _give_up(self) -> bool:
        """Return whether this thread may be left alone: if few are, or the daemon is stopping."""
        task = asyncio.current_task()
        with self._lock:
            full = self not in self._given_up and len(self._given_up) >= MAX_GIVEN_UP
            if full and not (task is not None and task.cancelling()):
                return False
            if self._left:
                self._given_up.add(self)
            return True


def _report(
    loop: asyncio.AbstractEventLoop,
    done: asyncio.Future[Exception | None],
    error: Exception | None,
) -> None:
    with suppress(RuntimeError):  # the loop has ended
        loop.call_soon_threadsafe(_end, done, error)


def _end(done: asyncio.Future[Exception | None], error: Exception | None) -> None:
    if not done.done():  # unless its caller was cancelled
        done.set_result(error)


def _log(error: Exception | None) -> None:
    if isinstance(error, HostError):
        log.warning("pages not freed: %s", error)
    elif error is not None:
        log.error("pages not freed", exc_info=error)
