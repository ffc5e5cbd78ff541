"""Closing what may take long, in a thread.

close(2) asks the file: a FUSE or network filesystem waits for its server, a TCP socket may wait for
its peer (SO_LINGER), and the last user of a memory file frees all of its pages. A socket closes the
descriptors that nobody has received from it as well. So what another process has sent is closed
here, and the event loop never waits for that process. Source: close(2), socket(7), unix(7); Linux,
fs/fuse/file.c, fuse_flush().
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable
from contextlib import suppress
from queue import Empty, SimpleQueue

log = logging.getLogger(__name__)

Release = Callable[[], object]


class Closer:
    """Calls functions that release something, one after the other, in a thread of its own.

    The thread begins with the first of them, and ends after `idle` seconds without any; with None
    only by `finished`. It does not keep the process from ending. A file whose
    filesystem does not answer stops it, and all that comes after: so one that has sent such files
    has a closer of its own.
    """

    def __init__(self, idle: float | None = 1.0) -> None:
        self._idle = idle
        self._queue: SimpleQueue[Release | None] = SimpleQueue()
        self._thread: threading.Thread | None = None

    @property
    def waiting(self) -> int:
        """How many calls wait for the thread, without the one that it makes."""
        return self._queue.qsize()

    def run(self, release: Release) -> None:
        """Call `release` soon, in the thread; it must not raise.

        May be called in any thread; if the thread has begun, also by the garbage collector.
        """
        self._queue.put(release)
        self.begin()

    def begin(self) -> None:
        """Begin the thread now; later `run` only passes to it what to do."""
        if self._thread is not None:
            return
        thread = threading.Thread(target=self._work, name="vgpud-close", daemon=True)
        self._thread = thread
        try:
            thread.start()
        except RuntimeError as error:  # no thread to be had; the next call tries again
            self._thread = None
            log.warning("a descriptor stays open: %s", error)

    async def finished(self) -> None:
        """Wait until all that was passed to `run` has been released, and end the thread."""
        if self._queue.empty() and self._thread is None:
            return
        loop = asyncio.get_running_loop()
        done = loop.create_future()

        def finish() -> None:
            with suppress(RuntimeError):  # the loop has ended
                loop.call_soon_threadsafe(_wake, done)

        self._queue.put(finish)
        self._queue.put(None)
        self.begin()
        await done

    def _work(self) -> None:
        with suppress(Empty):
            while (release := self._queue.get(timeout=self._idle)) is not None:
                release()
                del release  # and what it keeps alive
        self._thread = None
        if not self._queue.empty():
            self.begin()


def _wake(done: asyncio.Future[None]) -> None:
    if not done.done():
        done.set_result(None)
