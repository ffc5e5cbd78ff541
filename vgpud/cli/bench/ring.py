"""The rate and the latency of commands, through a real connection to the daemon.

This process is the front-end and the guest, the daemon is a process of its own; between the two are
shared memory and eventfds, as with a VMM. A round is a batch of commands that are published by one
store and one kick, and waited for together; the front-end sleeps meanwhile, as a guest does. The
processor time of each side is measured too, which shows which of the two is the limit.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from typing import Any, Final

import numpy as np

from vgpud.cli.bench.daemon import ServeProcess
from vgpud.cli.bench.figures import Bar, Chart, Progress, Spread, no_progress
from vgpud.cli.bench.ring_commands import (
    COPIES,
    COPY_SIZE,
    FENCED,
    IMAGE_BYTES,
    KINDS,
    Kind,
    concurrent_copies,
    prepare,
)
from vgpud.cli.bench.ring_guest import QUEUES, BenchGuest, Driver
from vgpud.coherency.slot_policy import Layout
from vgpud.errors import VgpudError
from vgpud.gpu.wire.command_codec import Command
from vgpud.gpu.wire.protocol import CONTROL_QUEUE, ResponseType
from vgpud.microvm.front_end import GUEST_FEATURES, FrontEnd
from vgpud.unix.fd import Fd
from vgpud.vhost.split_ring import F_EVENT_IDX, F_INDIRECT_DESC

BATCHES: Final = (1, 64)
TURNS: Final = 15
TURN_S: Final = 0.05
FENCES: Final = 2000
"""Fences that are timed; their p99 is the twentieth worst."""


@dataclass(frozen=True, slots=True)
class RateRow:
    """The figures of one kind of command, with `batch` of them in a round.

    `per_second` counts commands. `round_us` and `round_p99_us` are the median and p99 time of a
    round, `front_end_us` and `daemon_us` the processor time of each side per command, all in
    microseconds.
    """

    kind: str
    batch: int
    turns: int
    per_second: Spread
    round_us: float
    round_p99_us: float
    front_end_us: float
    daemon_us: float


@dataclass(frozen=True, slots=True)
class FenceRow:
    """The time from a short fenced SUBMIT_3D to its answer, in microseconds.

    `copied_gb_s` is the speed of copies on another ring of the same context meanwhile, in GB/s of
    10**9 bytes, with 8 MiB per command.
    """

    beside: str
    fences: int
    p50_us: float
    p99_us: float
    worst_us: float
    copied_gb_s: float


@dataclass(frozen=True, slots=True)
class RingCosts:
    """All rows, rates by kind and then by batch."""

    rates: tuple[RateRow, ...]
    fences: tuple[FenceRow, ...]

    def to_json(self) -> dict[str, Any]:
        """Return the rows as objects with the fields of `RateRow` and `FenceRow`."""
        return asdict(self)

    def lines(self) -> Iterator[str]:
        """Return two tables, of rates and of fences."""
        turns = self.rates[0].turns
        yield f"ring: commands a second, median and quartiles of {turns} turns; microseconds"
        yield f"{'a round':>86}{'CPU a command':>14}"
        yield (
            f"  {'':<28}{'batch':>5}{'commands/s':>11}{'quartiles':>23}"
            f"{'p50':>8}{'p99':>9}{'guest':>7}{'daemon':>7}"
        )
        for row in self.rates:
            rate = row.per_second
            quartiles = f"{rate.lower:,.0f} - {rate.upper:,.0f}"
            yield (
                f"  {row.kind:<28}{row.batch:>5}{rate.median:>11,.0f}{quartiles:>23}"
                f"{row.round_us:>8,.0f}{row.round_p99_us:>9,.0f}"
                f"{row.front_end_us:>7.1f}{row.daemon_us:>7.1f}"
            )
        yield f"  a fenced SUBMIT_3D of little work, {self.fences[0].fences} times: microseconds"
        yield f"  {'':<40}{'p50':>9}{'p99':>9}{'worst':>9}{'copied GB/s':>14}"
        for fence in self.fences:
            yield (
                f"  {fence.beside:<40}{fence.p50_us:>9.1f}{fence.p99_us:>9.1f}"
                f"{fence.worst_us:>9.1f}{fence.copied_gb_s:>14.1f}"
            )

    def charts(self) -> Iterator[Chart]:
        """Return a chart for each batch size, and one of the fences."""
        for batch in dict.fromkeys(row.batch for row in self.rates):
            rows = (row for row in self.rates if row.batch == batch)
            bars = tuple(Bar(row.kind, row.per_second) for row in rows)
            yield Chart(f"batch of {batch}", "commands/s", bars)
        fences = (
            Bar(row.beside, Spread(row.p50_us, row.p50_us, row.p99_us)) for row in self.fences
        )
        yield Chart("fence round trip, p50 to p99", "us", tuple(fences))


def run(progress: Progress = no_progress) -> RingCosts:
    """Run the whole measurement, about twenty seconds. Raises HostError, PeerError, VgpudError."""
    return measure(progress=progress)


def measure(
    *,
    turns: int = TURNS,
    turn_s: float = TURN_S,
    fences: int = FENCES,
    progress: Progress = no_progress,
) -> RingCosts:
    """Measure each kind with each batch in turns, then fences; raises the errors of `run`."""
    with ServeProcess() as daemon, _connected(daemon) as setup:
        setup.execute(prepare(setup.guest.extra))
        rates = {(kind, batch): _Rate() for kind in KINDS for batch in BATCHES}
        for turn in range(turns):
            progress(f"{len(KINDS)} kinds of commands, turn {turn + 1} of {turns}")
            for (kind, batch), rate in rates.items():
                setup.measure(kind, batch, turn_s, rate)
        rows = tuple(rate.row(kind.name, batch, turns) for (kind, batch), rate in rates.items())
        progress("fences")
        idle = setup.fences("alone", fences, copies=0)
        progress(f"fences, while another ring copies {COPY_SIZE >> 20} MiB a command")
        busy = setup.fences("during 8 MiB copies on another ring", fences, copies=COPIES)
    return RingCosts(rows, (idle, busy))


class _Rate:
    """The samples of one kind and batch so far."""

    def __init__(self) -> None:
        self.per_second: list[float] = []
        self.rounds: list[float] = []
        self.commands = 0
        self.front_end_s = self.daemon_s = 0.0

    def row(self, kind: str, batch: int, turns: int) -> RateRow:
        median, p99 = (1e6 * float(value) for value in np.percentile(self.rounds, [50, 99]))
        front_end, daemon = (
            1e6 * seconds / self.commands for seconds in (self.front_end_s, self.daemon_s)
        )
        rate = Spread.of(self.per_second)
        return RateRow(kind, batch, turns, rate, median, p99, front_end, daemon)


class _NoMapper:
    """A mapper that maps nothing, because no VM accesses the window."""

    def map(self, fd: Fd, fd_offset: int, offset: int, length: int) -> None:
        pass

    def unmap(self, offset: int, length: int) -> None:
        pass


@contextmanager
def _connected(daemon: ServeProcess) -> Iterator[_Setup]:
    with ExitStack() as cleanup:
        guest = cleanup.enter_context(BenchGuest(IMAGE_BYTES))
        connection = daemon.connect(Layout.WINDOW)
        features = GUEST_FEATURES | F_INDIRECT_DESC | F_EVENT_IDX
        front_end = cleanup.enter_context(FrontEnd(connection, guest, features=features))
        front_end.window = _NoMapper()
        front_end.introduce()
        front_end.start()
        yield _Setup(daemon, guest, front_end)
        front_end.stop()


class _Setup:
    """A guest, its front-end and the daemon, connected."""

    def __init__(self, daemon: ServeProcess, guest: BenchGuest, front_end: FrontEnd) -> None:
        self.guest = guest
        self._daemon = daemon
        self._front_end = front_end
        self._drivers = [guest.driver(index) for index in QUEUES]

    def execute(self, commands: list[Command]) -> None:
        """Have the device execute commands, one after the other."""
        driver = self._drivers[CONTROL_QUEUE]
        for command in commands:
            driver.load([command])
            self._round(driver, 1)
            self._check(driver, 1, command)

    def measure(self, kind: Kind, batch: int, seconds: float, rate: _Rate) -> None:
        """Run rounds of one kind for that many seconds, and add their samples to `rate`."""
        driver = self._drivers[kind.queue]
        count = max(batch, len(kind.commands))
        driver.load(kind.commands * (count // len(kind.commands)))
        self._round(driver, count)  # the first is slower
        rounds: list[float] = []
        front_end, daemon = time.process_time(), self._daemon.cpu_s()
        start = at = time.perf_counter()
        # Only whole laps around the kind's commands, of which there may be more than a batch.
        while at - start < seconds or len(rounds) * batch % len(kind.commands):
            before = at
            self._round(driver, batch)
            at = time.perf_counter()
            rounds.append(at - before)
        rate.front_end_s += time.process_time() - front_end
        rate.daemon_s += self._daemon.cpu_s() - daemon
        rate.commands += len(rounds) * batch
        rate.per_second.append(len(rounds) * batch / (at - start))
        rate.rounds += rounds
        self._check(driver, count, kind.commands[0])

    def fences(self, beside: str, count: int, *, copies: int) -> FenceRow:
        """Time fenced commands, one at a time, while `copies` are pending on another ring."""
        driver = self._drivers[CONTROL_QUEUE]
        small = 0
        driver.load([FENCED, *concurrent_copies()])
        for which in range(copies):
            driver.publish_one(1 + which)
        times = []
        copied = 0
        begin = time.perf_counter()
        for _ in range(count):
            start = time.perf_counter()
            driver.publish_one(small)
            answered = None
            while answered != small:
                driver.want(1)
                if not driver.answered():
                    self._front_end.wait()
                    continue
                answered = driver.done_one()
                if answered != small:
                    driver.publish_one(answered)
                    copied += COPY_SIZE
            times.append(time.perf_counter() - start)
        speed = copied / (time.perf_counter() - begin) / 1e9
        while driver.waiting:
            driver.want(1)
            self._await(driver, 1)
        self._check(driver, 1 + copies, FENCED)
        p50, p99, worst = (1e6 * float(value) for value in np.percentile(times, [50, 99, 100]))
        return FenceRow(beside, count, p50, p99, worst, speed)

    def _round(self, driver: Driver, batch: int) -> None:
        driver.want(batch)
        driver.publish(batch)
        self._await(driver, batch)

    def _await(self, driver: Driver, batch: int) -> None:
        while driver.answered() < batch:
            self._front_end.wait()
        driver.done(batch)

    @staticmethod
    def _check(driver: Driver, count: int, command: Command) -> None:
        wrong = driver.response_types(count) - _GOOD
        if wrong:
            codes = ", ".join(f"{code:#x}" for code in sorted(wrong))
            raise VgpudError(f"the device answered {type(command).__name__} with {codes}")


_GOOD: Final = frozenset(int(code) for code in ResponseType if code < ResponseType.ERR_UNSPEC)
