"""The benches of `vgpud bench` by name, and their output.

Each bench is a module of this package. The heading names the machine, because figures are only of
one.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final, TypeAlias

from vgpud import __version__
from vgpud.cli.bench import copy, plot, ring, slots, start
from vgpud.cli.bench.figures import BenchResult, Progress
from vgpud.coherency.probes import system as probe_system
from vgpud.errors import VgpudError

Benches: TypeAlias = Mapping[str, Callable[[Progress], BenchResult]]

BENCHES: Final[Benches] = {
    "copy": copy.run,
    "slots": slots.run,
    "ring": ring.run,
    "start": start.run,
}
"""The functions of all benches in `bench.NAMES`."""


def text(
    name: str | None,
    progress: Progress,
    benches: Benches = BENCHES,
    *,
    as_json: bool = False,
    picture: Path | None = None,
) -> str:
    """Run one bench, or all, and return the text to print; also draw them to `picture`.

    Raises VgpudError (such as HostError) if a single bench can't run; of all benches, those that
    can't run are left out, with the reason. Raises ConfigError before measuring if the picture
    can't be drawn.
    """
    if picture is not None:
        plot.check(picture)
    found: dict[str, BenchResult] = {}
    left_out: dict[str, str] = {}
    for each in benches if name is None else [name]:
        try:
            found[each] = benches[each](_prefixed(each, progress))
        except VgpudError as error:
            if name is not None:
                raise
            left_out[each] = str(error)
    if picture is not None:
        plot.draw(picture, _heading(), found)
    if as_json:
        values = {"version": __version__, "kernel": probe_system.system().kernel}
        results = {each: measured.to_json() for each, measured in found.items()}
        cpu = {"cpu": probe_system.cpu().model, "left_out": left_out}
        return json.dumps(values | cpu | results, indent=2)
    parts = [_heading(), *("\n".join(measured.lines()) for measured in found.values())]
    parts += [f"{each}: not measured: {reason}" for each, reason in left_out.items()]
    return "\n\n".join(parts)


def _heading() -> str:
    cpu, kernel = probe_system.cpu(), probe_system.system().kernel
    model = (cpu.model or "unknown processor") + (" in a VM" if cpu.hypervisor else "")
    return f"vgpud {__version__}: Linux {kernel}, {model}"


def _prefixed(name: str, progress: Progress) -> Progress:
    return lambda what: progress(f"{name}: {what}")
