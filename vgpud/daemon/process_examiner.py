"""What is known of a front-end's process, without holding the event loop.

A process may have as many descriptors as it likes, and looking at each takes microseconds. So only
the first ones are looked at on the event loop, and if those show no VM, all of them in a thread.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from time import monotonic
from typing import Final

from vgpud.coherency.probes.front_end import FrontEndFacts, probe, start_time

AT_ONCE: Final = 64
"""Descriptors that are looked at on the event loop: more than most VMMs have before their VM's."""
FRESH: Final = 1.0
"""Seconds for which it counts that a process has no VM: it may open one at any time."""


class ProcessExaminer:
    """The facts about one process after the other; `found` is called when a thread has found some.

    A VM that was found is remembered as long as the process lives.
    """

    def __init__(self, found: Callable[[], None], proc: Path = Path("/proc")) -> None:
        self._found = found
        self._proc = proc
        self._facts: FrontEndFacts | None = None  # all facts that a thread has found last
        self._process: tuple[int, int | None] = 0, None
        self._until = 0.0
        self._examining: asyncio.Task[None] | None = None

    def facts(self, pid: int) -> FrontEndFacts:
        """Return what is known of a process now; `found` follows if a thread has to look."""
        process = pid, start_time(pid, self._proc)
        known = self._facts if self._process == process else None
        if known is not None and (known.kvm_vms or monotonic() < self._until):
            return known
        seen = probe(pid, self._proc, limit=AT_ONCE)
        if not seen.incomplete:
            return seen
        if self._examining is None:
            self._examining = asyncio.get_running_loop().create_task(self._examine(process))
        return seen

    def close(self) -> None:
        """Forget the process; a thread that looks at it is not waited for."""
        if self._examining is not None:
            self._examining.cancel()
        self._examining = self._facts = None

    async def _examine(self, process: tuple[int, int | None]) -> None:
        facts = await asyncio.to_thread(probe, process[0], self._proc)
        self._facts, self._process, self._until = facts, process, monotonic() + FRESH
        self._examining = None
        self._found()
