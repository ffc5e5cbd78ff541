"""How long the daemon takes until it listens, and how much memory it takes while nobody is there.

Owns the measurement and its table. The interpreter alone is measured beside it, in turns: that much
nobody can take off.
"""

from __future__ import annotations

import re
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from vgpud.cli.bench.daemon import ServeProcess
from vgpud.cli.bench.figures import Bar, Chart, Progress, Spread, nothing
from vgpud.errors import HostError

ROUNDS: Final = 11
IDLE_S: Final = 0.5
"""After which what was needed only to start has been given back, if ever."""

_MB: Final = 1e6
_FIELD = re.compile(r"^(Rss|Pss|Private_Clean|Private_Dirty): +(\d+) kB$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class StartCosts:
    """`started_ms` is from the start of `vgpud serve` to its sockets, `interpreter_ms` what Python
    takes to start and end; both in milliseconds.

    In MB, of 10**6 bytes: `resident_mb` is all that the idle daemon has in memory, `private_mb` the
    part that no other process shares.
    """

    rounds: int
    started_ms: Spread
    interpreter_ms: Spread
    resident_mb: Spread
    private_mb: Spread

    def to_json(self) -> dict[str, Any]:
        """The values by the names of `StartCosts`."""
        return asdict(self)

    def lines(self) -> Iterator[str]:
        """A table for people."""
        yield f"start: median and quartiles of {self.rounds} starts of `vgpud serve`"
        for label, unit, spread in self._rows():
            low, high = f"{spread.lower:.1f}", f"{spread.upper:.1f}"
            yield f"  {label:<44}{spread.median:>8.1f} {unit}   {low:>6} -{high:>7}"

    def charts(self) -> Iterator[Chart]:
        """One of times, one of memory."""
        for title, unit in (("start", "ms"), ("idle daemon", "MB")):
            bars = (Bar(label, spread) for label, its, spread in self._rows() if its == unit)
            yield Chart(title, unit, tuple(bars))

    def _rows(self) -> tuple[tuple[str, str, Spread], ...]:
        return (
            ("until its sockets listen", "ms", self.started_ms),
            ("Python alone, to start and end", "ms", self.interpreter_ms),
            ("memory of the idle daemon", "MB", self.resident_mb),
            ("of that, shared with nobody", "MB", self.private_mb),
        )


def run(progress: Progress = nothing) -> StartCosts:
    """The whole measurement, some ten seconds. Raises HostError, VgpudError if nothing starts."""
    return measure(progress=progress)


def measure(rounds: int = ROUNDS, *, progress: Progress = nothing) -> StartCosts:
    """Start it that often. Raises as `run` does."""
    started, interpreter = [], []
    resident, private = [], []
    progress(f"{rounds} starts")
    with ServeProcess():  # a checkout has its bytecode after that
        pass
    for _ in range(rounds):
        start = time.perf_counter()
        subprocess.run([sys.executable, "-c", ""], check=True)
        interpreter.append(1e3 * (time.perf_counter() - start))
        with ServeProcess() as daemon:
            started.append(1e3 * daemon.started_s)
            time.sleep(IDLE_S)
            memory = _memory(daemon.pid)
        resident.append(memory["Rss"] / _MB)
        private.append((memory["Private_Clean"] + memory["Private_Dirty"]) / _MB)
    spreads = (Spread.of(samples) for samples in (started, interpreter, resident, private))
    return StartCosts(rounds, *spreads)


def _memory(pid: int) -> dict[str, int]:
    """What a process has in memory, in bytes."""
    try:
        text = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii")
    except OSError as error:
        raise HostError("looking at the daemon's memory", error) from error
    return {name: int(kib) << 10 for name, kib in _FIELD.findall(text)}
