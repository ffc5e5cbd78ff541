"""A daemon under attack, what it does meanwhile, and what others notice."""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeAlias

from tests.attacks.bystander import Bystander
from tests.attacks.timed_daemon import LoopFigures
from tests.hostile.siege import MIB, RogueRing, Siege, rogue_front_end
from tests.support.front_end import FrontEnd

Attacker: TypeAlias = Callable[["Stand", float], Any]


@dataclass(frozen=True, slots=True)
class Attack:
    """An attack, by `kind` of fault that it looks for.

    `run` gets the stand and about how many seconds to go on for.
    """

    kind: str
    name: str
    run: Attacker
    poor: bool = False
    """Whether it attacks the device with 8 MiB, and not one with 1 GiB."""


@dataclass(frozen=True, slots=True)
class Row:
    """What an attack did: the longest callback of the event loop by the clock and of processor
    time, and a bystander's round trips, in milliseconds; resident memory over the device's limit,
    in MiB; `where` that longest callback was, and what went wrong, if anything did.
    """

    kind: str
    name: str
    stop_ms: float
    work_ms: float
    median_ms: float
    worst_ms: float
    over_mib: float
    where: str
    fault: str


class Stand:
    """The daemon, with the devices of `tests.hostile.siege`; a context manager."""

    DEVICES = Siege.DEVICES

    def __enter__(self) -> Self:
        self._directory = tempfile.TemporaryDirectory(prefix="vgpud-attacks-")
        self._file = Path(self._directory.name) / "loop"
        self._start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.siege.kill()
        self._directory.cleanup()

    def _start(self) -> None:
        self.loop = LoopFigures.create(self._file)
        program = (sys.executable, "-m", "tests.attacks.timed_daemon", self._file)
        self.siege = Siege(program=program)

    @contextmanager
    def front_end(self, device: str = "a", *, size: int = 64) -> Iterator[FrontEnd]:
        """A front-end that is closed at the end, however it ends."""
        fe = rogue_front_end(self.siege.socket(device), size=size)
        try:
            yield fe
        finally:
            with suppress(OSError, AssertionError):
                fe.close()

    @contextmanager
    def guest(self, device: str = "a", *, size: int = 64) -> Iterator[RogueRing]:
        """A guest on a device."""
        with self.front_end(device, size=size) as fe:
            yield RogueRing(fe)

    def measure(self, attack: Attack, seconds: float) -> Row:
        """Carry out an attack; replace the daemon if it does not serve afterwards."""
        daemon = self.siege.daemon
        limit = self.siege.POOR_LIMIT if attack.poor else self.siege.LIMIT
        fault = ""
        self.siege.begin()
        bystander = Bystander(self.siege.socket("b"))
        try:
            with bystander:
                self.loop.forget()
                try:
                    attack.run(self, seconds)
                except (AssertionError, OSError) as error:
                    fault = f"{type(error).__name__}: {error}".splitlines()[0]
                time.sleep(0.1)  # for what the attack has left behind
        except Exception as error:
            fault = fault or f"bystander: {error!r}".splitlines()[0]
        stop, work = self.loop.longest
        over = 0.0
        if daemon.alive:
            over = max(self.siege.peak - limit, 0) / MIB
        else:
            fault = "the daemon has ended"
        waits = bystander.waits
        median, worst = (waits.median, waits.worst) if waits else (float("inf"), float("inf"))
        if waits is None:
            fault = fault or "the bystander got no answer"
        if fault or not daemon.alive:
            self._restart()
        return Row(
            attack.kind,
            attack.name,
            1e3 * stop,
            1e3 * work,
            1e3 * median,
            1e3 * worst,
            over,
            self.loop.where,
            fault,
        )

    def _restart(self) -> None:
        self.siege.kill()
        self._start()


def until(seconds: float) -> Iterator[int]:
    """Count rounds until so many seconds have passed; there is at least one."""
    end = time.monotonic() + seconds
    number = 0
    while number == 0 or time.monotonic() < end:
        yield number
        number += 1
