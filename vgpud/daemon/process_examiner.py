"""What is known of a front-end's process, without ever waiting for it on the event loop.

Reading the command line of a process takes the lock of its memory (mmap_lock), and can bring pages
in: a process can keep that from ending. It may also have as many descriptors as it likes, and
looking at each takes microseconds. So all of that is done in threads, which do nothing else.
Source: Linux, fs/proc/base.c, get_mm_cmdline().
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from time import monotonic
from typing import Final

from vgpud.coherency.probes.front_end import FrontEndFacts, probe, start_time

log = logging.getLogger(__name__)

FRESH: Final = 1.0
"""Seconds for which facts count without another look: a process may open a VM at any time, and its
number be another's."""

PATIENCE: Final = 0.5
"""Seconds that the start of a driver waits for the facts, which takes a millisecond or two."""

MAX_THREADS: Final = 4
"""Threads of one device that may hang, each in a process that it had as front-end."""


class ProcessExaminer:
    """The facts about one process after the other.

    `found` is called when there are new ones. A VM that was found is remembered as long as the
    process lives.
    """

    def __init__(self, found: Callable[[], None], proc: Path = Path("/proc")) -> None:
        self._found = found
        self._proc = proc
        self._pid = 0
        self._facts: FrontEndFacts | None = None
        self._start: int | None = None  # when that process was started
        self._until = 0.0
        self._final = False  # whether its VM would be open by now, if it had one
        self._wanted = False  # whether something was said to be unknown
        self._threads = 0
        self._examining: asyncio.Future[None] | None = None

    def facts(self, pid: int) -> FrontEndFacts:
        """Return what is known of a process now; `found` follows if a thread has to look."""
        if pid <= 0:
            return probe(pid, self._proc)  # which says why
        known = self._known(pid)
        if known is None or monotonic() >= self._until:
            self._begin(pid)
        if known is not None and (known.kvm_vms or self._final or monotonic() < self._until):
            return known
        self._wanted = True
        return FrontEndFacts(pid, problem="it is being examined", incomplete=True)

    async def examine(self, pid: int) -> None:
        """Examine a process whose driver starts, so that it has opened its VM, and wait for that;
        but not long."""
        if pid <= 0:
            return
        with suppress(TimeoutError):
            async with asyncio.timeout(PATIENCE):
                if self._examining is not None:  # begun too early, perhaps
                    await asyncio.wait([self._examining])
                if (examining := self._begin(pid)) is not None:
                    await asyncio.wait([examining])
                    self._final = self._known(pid) is not None

    def close(self) -> None:
        """Forget the process; a thread that looks at it is not waited for."""
        if self._examining is not None:
            self._examining.cancel()
        self._examining = self._facts = None
        self._final = self._wanted = False

    def _known(self, pid: int) -> FrontEndFacts | None:
        return self._facts if self._pid == pid else None

    def _begin(self, pid: int) -> asyncio.Future[None] | None:
        """Have a thread examine a process, unless one does so, or too many hang."""
        if self._examining is not None:
            return self._examining
        if self._threads >= MAX_THREADS:
            return None
        loop = asyncio.get_running_loop()
        examining = loop.create_future()
        known, start = self._known(pid), self._start

        def examine() -> None:
            started = start_time(pid, self._proc)
            same = known is not None and known.kvm_vms and started == start
            facts = known if same and known is not None else probe(pid, self._proc)
            with suppress(RuntimeError):  # the loop has ended
                loop.call_soon_threadsafe(self._end, examining, pid, facts, started)

        thread = threading.Thread(target=examine, name="vgpud-examine", daemon=True)
        try:
            thread.start()
        except RuntimeError as error:  # no thread to be had; the next call tries again
            log.warning("front-end not examined pid=%d: %s", pid, error)
            return None
        self._threads += 1
        self._examining = examining
        return examining

    def _end(
        self, examining: asyncio.Future[None], pid: int, facts: FrontEndFacts, start: int | None
    ) -> None:
        self._threads -= 1
        if examining is not self._examining:  # `close` was called meanwhile
            return
        news = self._wanted or facts != self._facts
        self._pid, self._facts, self._start = pid, facts, start
        self._until = monotonic() + FRESH
        self._examining, self._wanted = None, False
        examining.set_result(None)
        if news:
            self._found()
