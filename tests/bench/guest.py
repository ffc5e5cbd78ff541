"""Measures what a stock guest gets, compared with QEMU's C back-end and QEMU's own device.

    python -m tests.bench.guest [--json] [--plot FILE]

Run it in a checkout, as root, when `tests/run` has built the guest rig. Every contender gets a boot
a round, in turns, so that what the machine does meanwhile is shared fairly; ratios are taken round
by round. The guest runs without KVM, which makes all of its own work slow and the same for all.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from tests.rig.build import Rig, open_rig
from tests.rig.chroot import RigUnavailableError
from tests.rig.peer import c_back_end
from tests.rig.qemu import Guest
from vgpud.cli.bench import suite
from vgpud.cli.bench.daemon import ServeProcess
from vgpud.cli.bench.figures import Bar, Chart, Progress, Spread, no_progress, ratio
from vgpud.coherency.slot_policy import Layout
from vgpud.errors import VgpudError

ROUNDS: Final = 3
SECONDS: Final = 1.0
"""For each figure of each boot."""
LIVE: Final = (1, 1000, 2000)
LIVE_PER_BLOB: Final = (1,)
"""With more of them it takes minutes: what the VMM does for each grows with their number."""
PATIENCE_S: Final = 120.0

OURS: Final = "vgpud"
C: Final = "C vhost-user-gpu"
INSIDE: Final = "virtio-gpu in QEMU"

PICTURES: Final = {
    "transfers": "one-command transfers/s",
    "flips_area": "page flips/s, 200x200 differs",
    "flips": "page flips/s, all differs",
    "dirtyfb": "dirtyfb/s, 64x64",
}
"""By the names that the guest's program has for them."""

PLAIN_FENCE_US: Final = 230.0
PLAIN_TRANSFERS: Final = 35000.0
"""What a plain Python loop needed for an execbuffer and its fence, on a machine on which the C
back-end did so many transfers a second: how fast this machine is follows from its C back-end."""


@dataclass(frozen=True, slots=True)
class PictureRow:
    """One figure of one contender: how often a second. `ratio` is to the C back-end's."""

    figure: str
    contender: str
    rate: Spread
    ratio: float


@dataclass(frozen=True, slots=True)
class BlobRow:
    """A blob made, mapped, touched and freed, with `live` others: microseconds.

    `ratio` is to the per-blob layout with the fewest others.
    """

    layout: str
    live: int
    cost: Spread
    ratio: float


@dataclass(frozen=True, slots=True)
class GuestCosts:
    """All figures of `rounds` rounds.

    Fences are of an execbuffer of little work, in microseconds, on either layout; `busy_...` while
    another ring does 8 MiB copies. `scaled_plain_us` is what a plain Python loop would need here
    for an execbuffer and its fence, and `fence_ratio` ours to that.
    """

    mode: str
    rounds: int
    pictures: tuple[PictureRow, ...]
    fence_p50_us: Spread
    fence_p99_us: Spread
    busy_p50_us: Spread
    busy_p99_us: Spread
    scaled_plain_us: float
    fence_ratio: float
    blobs: tuple[BlobRow, ...]

    def to_json(self) -> dict[str, Any]:
        """The values by the names of `GuestCosts`."""
        return asdict(self)

    def lines(self) -> Iterator[str]:
        """Three tables for people."""
        yield (
            f"guest: stock Linux without KVM, {self.mode}, vhost-user-gpu-pci;"
            f" median and quartiles of {self.rounds} boots"
        )
        for row in self.pictures:
            yield f"  {row.figure:<32}{row.contender:<20}{_shown(row.rate)}{row.ratio:>8.2f}x"
        yield "  vhost-user-test-device-pci; microseconds"
        for label, spread in self._fences():
            yield f"  {label:<52}{_shown(spread)}"
        label = "that of a plain Python loop, scaled, and ours to it"
        yield f"  {label:<52}{self.scaled_plain_us:>10,.0f}{self.fence_ratio:>27.2f}x"
        for blob in self.blobs:
            label = f"blob made to freed, layout {blob.layout}, {blob.live:,} live"
            yield f"  {label:<52}{_shown(blob.cost)}{blob.ratio:>8.2f}x"

    def charts(self) -> Iterator[Chart]:
        """One for each figure of pictures, one of fences, one of blobs."""
        for figure in dict.fromkeys(row.figure for row in self.pictures):
            rows = (row for row in self.pictures if row.figure == figure)
            yield Chart(figure, "1/s", tuple(Bar(row.contender, row.rate) for row in rows))
        yield Chart("execbuffer to fence", "us", tuple(Bar(*fence) for fence in self._fences()))
        bars = (Bar(f"{blob.layout}, {blob.live:,} live", blob.cost) for blob in self.blobs)
        yield Chart("blob made to freed", "us", tuple(bars))

    def _fences(self) -> tuple[tuple[str, Spread], ...]:
        return (
            ("execbuffer to fence, p50", self.fence_p50_us),
            ("execbuffer to fence, p99", self.fence_p99_us),
            ("during 8 MiB copies on another ring, p50", self.busy_p50_us),
            ("during 8 MiB copies on another ring, p99", self.busy_p99_us),
        )


def _shown(spread: Spread) -> str:
    return f"{spread.median:>10,.0f}{spread.lower:>10,.0f} -{spread.upper:>7,.0f}"


def measure(
    progress: Progress = no_progress, *, rounds: int = ROUNDS, seconds: float = SECONDS
) -> GuestCosts:
    """Measure all contenders in turns, which takes some minutes.

    Raises VgpudError where there is no guest rig.
    """
    try:
        rig = open_rig()
    except RigUnavailableError as error:
        raise VgpudError(str(error)) from error
    pictures: dict[str, list[dict[str, Any]]] = {OURS: [], C: [], INSIDE: []}
    contexts: dict[Layout, list[dict[str, Any]]] = {Layout.WINDOW: [], Layout.PER_BLOB: []}
    # In /tmp, because the rig's chroot shares that.
    with ServeProcess(list(contexts), guest_pat="auto", parent="/tmp") as daemon:
        for turn in range(rounds):
            for contender, samples in pictures.items():
                progress(f"{contender}, round {turn + 1} of {rounds}")
                samples.append(_pictures(rig, contender, daemon, seconds))
            for layout, figures in contexts.items():
                progress(f"layout {layout}, round {turn + 1} of {rounds}")
                figures.append(_context(rig, daemon.socket_of(layout), layout, seconds))
    return _costs(pictures, contexts)


def _pictures(rig: Rig, contender: str, daemon: ServeProcess, seconds: float) -> dict[str, Any]:
    with ExitStack() as cleanup:
        if contender == INSIDE:
            guest = Guest(rig, "inproc")
        else:
            socket = daemon.socket_of(Layout.WINDOW)
            if contender == C:
                socket = socket.with_name("c.sock")
                socket.unlink(missing_ok=True)
                cleanup.enter_context(c_back_end(rig, socket))
            guest = Guest(rig, "gpu", socket=socket)
        return _speed(cleanup.enter_context(guest), f"speed {seconds}", seconds)


def _context(rig: Rig, socket: Path, layout: Layout, seconds: float) -> dict[str, Any]:
    live = LIVE if layout is Layout.WINDOW else LIVE_PER_BLOB
    with Guest(rig, "test", socket=socket) as guest:
        numbers = " ".join(map(str, live))
        return _speed(guest, f"speed context {seconds} {numbers}", seconds)


def _speed(guest: Guest, command: str, seconds: float) -> dict[str, Any]:
    guest.wait_boot()
    result = guest.run(command, PATIENCE_S + 10 * seconds)
    [line] = [line for line in result.lines if line.startswith("SPEED ")]
    figures: dict[str, Any] = json.loads(line.removeprefix("SPEED "))
    return figures


def _costs(
    pictures: dict[str, list[dict[str, Any]]], contexts: dict[Layout, list[dict[str, Any]]]
) -> GuestCosts:
    rows = []
    for figure, name in PICTURES.items():
        rates = {who: [run[figure] for run in runs] for who, runs in pictures.items()}
        for who, samples in rates.items():
            rows.append(PictureRow(name, who, Spread.of(samples), ratio(samples, rates[C])))
    window, per_blob = contexts[Layout.WINDOW], contexts[Layout.PER_BLOB]
    fences = {
        name: Spread.of([run[name] for run in [*window, *per_blob]])
        for name in ("fence_p50", "fence_p99", "busy_p50", "busy_p99")
    }
    plain = [PLAIN_FENCE_US * PLAIN_TRANSFERS / run["transfers"] for run in pictures[C]]
    each = [run["blobs"][str(LIVE_PER_BLOB[0])] for run in per_blob]
    blobs = []
    for layout, runs in contexts.items():
        for live in runs[0]["blobs"]:
            costs = [run["blobs"][live] for run in runs]
            blobs.append(BlobRow(layout, int(live), Spread.of(costs), ratio(costs, each)))
    return GuestCosts(
        pictures[OURS][0]["mode"],
        len(pictures[OURS]),
        tuple(rows),
        fences["fence_p50"],
        fences["fence_p99"],
        fences["busy_p50"],
        fences["busy_p99"],
        Spread.of(plain).median,
        ratio([run["fence_p50"] for run in window], plain),
        tuple(blobs),
    )


def main(arguments: Sequence[str]) -> int:
    """Print the tables, or with --json the values, and return the exit status."""
    parser = argparse.ArgumentParser(prog="tests.bench.guest")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="also draw it")
    args = parser.parse_args(arguments)
    benches: suite.Benches = {"guest": measure}
    try:
        print(suite.text("guest", _tell, benches, as_json=args.json, picture=args.plot))
    except VgpudError as error:
        print(f"tests.bench.guest: {error}", file=sys.stderr)
        return 1
    return 0


def _tell(what: str) -> None:
    print(f"tests.bench.guest: measuring {what}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
