"""The cost of mapping and unmapping a blob: in a slot of its own, or at an offset of the window.

The guest of the VM does not run, so the times do not include its page faults and the zapping of its
page tables.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from itertools import groupby, product
from typing import Any, Final, TypeAlias

import numpy as np

from vgpud.cli.bench.figures import Bar, Chart, Progress, Spread, no_progress
from vgpud.memory import memfd
from vgpud.memory.window import HostWindow
from vgpud.slots.vm import scratch_slots
from vgpud.uapi.page import PAGE_SIZE

LIVE: Final = (0, 1000, 8000)
ROUNDS: Final = 2000

_BASE: Final = 1 << 32
_NAME: Final = "bench-slots"
_WINDOW_SLOT: Final = 0

Round: TypeAlias = Callable[[], None]
Before: TypeAlias = Callable[[], None]


@dataclass(frozen=True, slots=True)
class SlotRow:
    """The figures of one way to map and unmap a blob of one page, in microseconds for both.

    `live` other blobs are mapped meanwhile.
    """

    way: str
    live: int
    rounds: int
    median_us: float
    p99_us: float


@dataclass(frozen=True, slots=True)
class SlotCosts:
    """All rows, by way and then by number of live blobs."""

    rows: tuple[SlotRow, ...]

    def to_json(self) -> list[dict[str, Any]]:
        """Return the rows as objects with the fields of `SlotRow`."""
        return [asdict(row) for row in self.rows]

    def lines(self) -> Iterator[str]:
        """Return a table with a line for each way."""
        first = self.rows[0].way
        live = [row.live for row in self.rows if row.way == first]
        yield (
            "slots: a blob of a page is mapped and unmapped,"
            f" {self.rows[0].rounds} times; microseconds for both"
        )
        yield _LABEL.format("live blobs") + "".join(f"{count:>16,}" for count in live)
        yield _LABEL.format("") + "  median     p99" * len(live)
        for way, rows in groupby(self.rows, lambda row: row.way):
            costs = "".join(f"{row.median_us:>8.1f}{row.p99_us:>8.1f}" for row in rows)
            yield _LABEL.format(f"{way}: {_DESCRIPTIONS[way]}") + costs

    def charts(self) -> Iterator[Chart]:
        """Return a chart for each number of live blobs, from the median to the p99."""
        for live in dict.fromkeys(row.live for row in self.rows):
            rows = (row for row in self.rows if row.live == live)
            bars = (Bar(r.way, Spread(r.median_us, r.median_us, r.p99_us)) for r in rows)
            yield Chart(f"blob mapped and unmapped, {live:,} live, p50 to p99", "us", tuple(bars))


def run(progress: Progress = no_progress) -> SlotCosts:
    """Run the whole measurement, a few seconds. Raises HostError if there is no KVM."""
    return SlotCosts(tuple(measure(progress=progress)))


def measure(
    live: tuple[int, ...] = LIVE, *, rounds: int = ROUNDS, progress: Progress = no_progress
) -> list[SlotRow]:
    """Measure each way with each number of live blobs. Raises HostError if there is no KVM."""
    rows = []
    for (way, prepare), count in product(_WAYS.items(), live):
        progress(f"{way}, {count:,} live blobs")
        with prepare(count) as (before, one_round):
            times = np.empty(rounds)
            for index in range(rounds):
                before()
                start = time.perf_counter_ns()
                one_round()
                times[index] = time.perf_counter_ns() - start
        median, p99 = (float(value) / 1e3 for value in np.percentile(times, [50, 99]))
        rows.append(SlotRow(way, count, rounds, median, p99))
    return rows


@contextmanager
def _slot_a_blob(live: int) -> Iterator[tuple[Before, Round]]:
    with ExitStack() as stack:
        blobs = stack.enter_context(memfd.create(_NAME, _blob(live + 1)))
        slots = stack.enter_context(scratch_slots())
        for index in range(live):
            slots.attach(index, blobs, _blob(index), PAGE_SIZE)
            slots.set(index, 0, _BASE + index * PAGE_SIZE)

        def one_round() -> None:
            slots.attach(live, blobs, _blob(live), PAGE_SIZE)
            slots.set(live, 0, _BASE + live * PAGE_SIZE)
            slots.delete(live)
            slots.release(live)

        yield no_progress, one_round


@contextmanager
def _window(live: int) -> Iterator[tuple[Before, Round]]:
    with ExitStack() as stack:
        size = (live + 1) * PAGE_SIZE
        window = HostWindow(_NAME, size)
        stack.callback(window.close)
        slots = stack.enter_context(scratch_slots())
        slots.attach(_WINDOW_SLOT, window.fd, 0, size)
        slots.set(_WINDOW_SLOT, 0, _BASE)
        window.view(0, live * PAGE_SIZE)[::PAGE_SIZE] = 1
        blob = window.view(live * PAGE_SIZE, PAGE_SIZE)

        def touch() -> None:
            blob[0] = 1

        def one_round() -> None:
            # Once when a blob is mapped, since the guest may have written there; once when it goes.
            window.clear(live * PAGE_SIZE, PAGE_SIZE)
            window.clear(live * PAGE_SIZE, PAGE_SIZE)

        yield touch, one_round


def _blob(index: int) -> int:
    """Return a blob's offset in the common file; a gap keeps the kernel from merging mappings."""
    return 2 * index * PAGE_SIZE


_WAYS: Final = {"slot": _slot_a_blob, "window": _window}
_DESCRIPTIONS: Final = {
    "slot": "one of its own, added and deleted",
    "window": "an offset in it, pages released",
}
_LABEL: Final = "  {:<44}"
