"""vgpud, with the longest callback of its event loop measured.

    python -m tests.attacks.timed_daemon FILE ARGUMENTS...

FILE is `LoopFigures.SIZE` bytes, shared with whoever reads the figures.
"""

from __future__ import annotations

import asyncio
import asyncio.events
import functools
import mmap
import struct
import sys
from pathlib import Path
from time import perf_counter, thread_time
from typing import Any, Final, Self

_FIGURES: Final = struct.Struct("=dd")
_WHERE: Final = 200
"""Bytes of what ran in the longest callback."""


class LoopFigures:
    """The longest callback so far: seconds by the clock, and of the processor's time."""

    SIZE: Final = mmap.PAGESIZE

    def __init__(self, path: Path) -> None:
        with path.open("r+b") as file:
            self._shared = mmap.mmap(file.fileno(), self.SIZE)

    @classmethod
    def create(cls, path: Path) -> Self:
        """Make the file, with no callback measured."""
        path.write_bytes(bytes(cls.SIZE))
        return cls(path)

    def forget(self) -> None:
        """Begin again."""
        size = _FIGURES.size + _WHERE
        self._shared[:size] = bytes(size)

    @property
    def where(self) -> str:
        """What ran in the callback that took the most of the processor's time."""
        end = self._shared.find(b"\0", _FIGURES.size)
        return self._shared[_FIGURES.size : end].decode()

    @property
    def longest(self) -> tuple[float, float]:
        """The longest by the clock, and by the processor's time."""
        clock, processor = _FIGURES.unpack_from(self._shared)
        return clock, processor

    def measure(self) -> None:
        """Measure every callback of every event loop of this process from now on."""
        shared, run = self._shared, asyncio.events.Handle._run

        def measured(handle: asyncio.events.Handle) -> None:
            clock, processor = perf_counter(), thread_time()
            run(handle)
            clock, processor = perf_counter() - clock, thread_time() - processor
            longest = _FIGURES.unpack_from(shared)
            if processor > longest[1]:
                text = _name(handle).encode()[:_WHERE] + b"\0"
                shared[_FIGURES.size : _FIGURES.size + len(text)] = text
            if clock > longest[0] or processor > longest[1]:
                _FIGURES.pack_into(shared, 0, max(clock, longest[0]), max(processor, longest[1]))

        asyncio.events.Handle._run = measured  # type: ignore[method-assign, assignment]


def _name(handle: asyncio.events.Handle) -> str:
    """Return what a callback runs: for a task, its coroutine and the
    innermost one that it is in now."""
    callback = handle._callback  # type: ignore[attr-defined]
    while isinstance(callback, functools.partial):
        callback = callback.func
    task = getattr(callback, "__self__", None)
    if not isinstance(task, asyncio.Task):
        return getattr(callback, "__qualname__", repr(callback))
    outer: Any = task.get_coro()
    inner, waiting = outer, outer.cr_await
    while hasattr(waiting, "cr_await") and waiting.__qualname__ != "sleep":
        inner, waiting = waiting, waiting.cr_await
    line = inner.cr_frame.f_lineno if inner.cr_frame is not None else 0
    return f"{outer.__qualname__} > {inner.__qualname__}:{line}"


if __name__ == "__main__":
    from vgpud.cli.main import main

    LoopFigures(Path(sys.argv.pop(1))).measure()
    sys.exit(main())
