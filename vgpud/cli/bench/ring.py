"""Commands a second, and how long they take, through a real connection to the daemon.

Owns the measurement and its table. We are the front-end and the guest, the daemon is a process of
its own; between the two are shared memory and eventfds, as with a VMM. A round is a batch of
commands that are handed over by one store and one kick, and waited for together; the front-end
sleeps meanwhile, as a guest does. What each side takes of the processor is measured with it: it
shows which of the two is the limit.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from typing import Any, Final

import numpy as np

from vgpud.cli.bench.daemon import ServeProcess
from vgpud.cli.bench.figures import Bar, Chart, Progress, Spread, nothing
from vgpud.cli.bench.ring_commands import (
    COPIES,
    COPY_SIZE,
    FENCED,
    IMAGE_BYTES,
    KINDS,
    Kind,
    beside_copies,
    prepare,
)
from vgpud.cli.bench.ring_guest import QUEUES, Driver, Guest
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
"""A p99 is the twentieth worst of them."""


@dataclass(frozen=True, slots=True)
class RateRow:
    """One kind of command, `batch` of them a round.

    `per_second` counts commands, `round_us` is how long a round took: median and p99, in
    microseconds. `front_end_us` and `daemon_us` are the processor time that a command took of each
    side.
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
    """A SUBMIT_3D of little work with a fence, to its answer: microseconds.

    `copied_gb_s` is what another ring of the same context copied meanwhile, in GB/s of 10**9 bytes,
    8 MiB a command.
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
        """The rows as objects with the names of `RateRow` and `FenceRow`."""
        return asdict(self)

    def lines(self) -> Iterator[str]:
        """Two tables for people."""
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
        """One for each batch size, one of the fences."""
        for batch in dict.fromkeys(row.batch for row in self.rates):
            rows = (row for row in self.rates if row.batch == batch)
            bars = tuple(Bar(row.kind, row.per_second) for row in rows)
            yield Chart(f"batch of {batch}", "commands/s", bars)
        fences = (
            Bar(row.beside, Spread(row.p50_us, row.p50_us, row.p99_us)) for row in self.fences
        )
        yield Chart("fence round trip, p50 to p99", "us", tuple(fences))


def run(progress: Progress = nothing) -> RingCosts:
    """The whole measurement, about twenty seconds. Raises HostError, PeerError, VgpudError."""
    return measure(progress=progress)


def measure(
    *,
    turns: int = TURNS,
    turn_s: float = TURN_S,
    fences: int = FENCES,
    progress: Progress = nothing,
) -> RingCosts:
    """Measure each kind with each batch in turns, then fences. Raises as `run` does."""
    with ServeProcess() as daemon, _connected(daemon) as stand:
        stand.execute(prepare(stand.guest.extra))
        rates = {(kind, batch): _Rate() for kind in KINDS for batch in BATCHES}
        for turn in range(turns):
            progress(f"{len(KINDS)} kinds of commands, turn {turn + 1} of {turns}")
            for (kind, batch), rate in rates.items():
                stand.measure(kind, batch, turn_s, rate)
        rows = tuple(rate.row(kind.name, batch, turns) for (kind, batch), rate in rates.items())
        progress("fences")
        idle = stand.fences("alone", fences, copies=0)
        progress(f"fences, while another ring copies {COPY_SIZE >> 20} MiB a command")
        busy = stand.fences("beside 8 MiB copies on another ring", fences, copies=COPIES)
    return RingCosts(rows, (idle, busy))


class _Rate:
    """What is known of one kind and batch so far."""

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


class _NoVm:
    """A window that nobody looks into: what the daemon maps is ours as soon as it says so."""

    def map(self, fd: Fd, fd_offset: int, offset: int, length: int) -> None:
        pass

    def unmap(self, offset: int, length: int) -> None:
        pass


@contextmanager
def _connected(daemon: ServeProcess) -> Iterator[_Stand]:
    with ExitStack() as cleanup:
        guest = cleanup.enter_context(Guest(IMAGE_BYTES))
        connection = daemon.connect(Layout.WINDOW)
        features = GUEST_FEATURES | F_INDIRECT_DESC | F_EVENT_IDX
        front_end = cleanup.enter_context(FrontEnd(connection, guest, features=features))
        front_end.window = _NoVm()
        front_end.introduce()
        front_end.start()
        yield _Stand(daemon, guest, front_end)
        front_end.stop()


class _Stand:
    """Guest, front-end and daemon, at work."""

    def __init__(self, daemon: ServeProcess, guest: Guest, front_end: FrontEnd) -> None:
        self.guest = guest
        self._daemon = daemon
        self._front_end = front_end
        self._drivers = [guest.driver(index) for index in QUEUES]

    def execute(self, commands: list[Command]) -> None:
        """Has the device do these, one after the other."""
        driver = self._drivers[CONTROL_QUEUE]
        for command in commands:
            driver.load([command])
            self._round(driver, 1)
            self._check(driver, 1, command)

    def measure(self, kind: Kind, batch: int, seconds: float, rate: _Rate) -> None:
        """Rounds of one kind for that long."""
        driver = self._drivers[kind.queue]
        count = max(batch, len(kind.commands))
        driver.load(kind.commands * (count // len(kind.commands)))
        self._round(driver, count)  # the first is slower
        rounds: list[float] = []
        front_end, daemon = time.process_time(), self._daemon.cpu_s()
        start = at = time.perf_counter()
        # Whole laps around the commands, of which there may be more than a batch.
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
        """Fenced work of its own ring, one at a time, beside so many copies that are always under
        way on another."""
        driver = self._drivers[CONTROL_QUEUE]
        small = 0
        driver.load([FENCED, *beside_copies()])
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
