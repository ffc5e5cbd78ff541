"""The daemon's start time, until it listens, and its memory while no front-end is connected.

The Python interpreter alone is measured in turns with it, as the lower bound.
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
from vgpud.cli.bench.figures import Bar, Chart, Progress, Spread, no_progress
from vgpud.errors import HostError

ROUNDS: Final = 11
IDLE_S: Final = 0.5
"""Seconds after which memory that was needed only to start has been released, if ever."""

_MB: Final = 1e6
_FIELD = re.compile(r"^(Rss|Pss|Private_Clean|Private_Dirty): +(\d+) kB$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class StartCosts:
    """The costs of a start.

    `started_ms` is the time from the start of `vgpud serve` until its sockets listen,
    `interpreter_ms` the time that Python takes to start and end, in milliseconds. `resident_mb` is
    the resident memory of the idle daemon, `private_mb` the part that no other process shares, in
    MB of 10**6 bytes.
    """

    rounds: int
    started_ms: Spread
    interpreter_ms: Spread
    resident_mb: Spread
    private_mb: Spread

    def to_json(self) -> dict[str, Any]:
        """Return the values by the fields of `StartCosts`."""
        return asdict(self)

    def lines(self) -> Iterator[str]:
        """Return a table of the costs."""
        yield f"start: median and quartiles of {self.rounds} starts of `vgpud serve`"
        for label, unit, spread in self._rows():
            low, high = f"{spread.lower:.1f}", f"{spread.upper:.1f}"
            yield f"  {label:<44}{spread.median:>8.1f} {unit}   {low:>6} -{high:>7}"

    def charts(self) -> Iterator[Chart]:
        """Return a chart of times and one of memory."""
        for title, unit in (("start", "ms"), ("idle daemon", "MB")):
            bars = (Bar(label, spread) for label, its, spread in self._rows() if its == unit)
            yield Chart(title, unit, tuple(bars))

    def _rows(self) -> tuple[tuple[str, str, Spread], ...]:
        return (
            ("until its sockets listen", "ms", self.started_ms),
            ("Python alone, to start and end", "ms", self.interpreter_ms),
            ("memory of the idle daemon", "MB", self.resident_mb),
            ("of that, private", "MB", self.private_mb),
        )


def run(progress: Progress = no_progress) -> StartCosts:
    """Run the whole measurement, about ten seconds. Raises HostError, VgpudError on failure."""
    return measure(progress=progress)


def measure(rounds: int = ROUNDS, *, progress: Progress = no_progress) -> StartCosts:
    """Start the daemon `rounds` times, and measure; raises the errors of `run`."""
    started, interpreter = [], []
    resident, private = [], []
    progress(f"{rounds} starts")
    with ServeProcess():  # it writes the bytecode of a checkout
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
    """Return the memory figures of a process, in bytes."""
    try:
        text = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii")
    except OSError as error:
        raise HostError("reading the daemon's memory figures", error) from error
    return {name: int(kib) << 10 for name, kib in _FIELD.findall(text)}
