"""vgpud, with the longest callback of its event loop measured.

    python -m tests.attacks.timed_daemon FILE ARGUMENTS...

FILE is `LoopFigures.SIZE` bytes, shared with whoever reads the figures.
"""

from __future__ import annotations

import asyncio.events
import mmap
import struct
import sys
from pathlib import Path
from time import perf_counter, thread_time
from typing import Final, Self

_FIGURES: Final = struct.Struct("=dd")


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
        self._shared[: _FIGURES.size] = bytes(_FIGURES.size)

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
            if clock > longest[0] or processor > longest[1]:
                _FIGURES.pack_into(shared, 0, max(clock, longest[0]), max(processor, longest[1]))

        asyncio.events.Handle._run = measured  # type: ignore[method-assign, assignment]


if __name__ == "__main__":
    from vgpud.cli.main import main

    LoopFigures(Path(sys.argv.pop(1))).measure()
    sys.exit(main())
