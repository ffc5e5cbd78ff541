"""What `vgpud bench` measures, by name, and how it is shown.

Owns the choice and the heading: figures are of a machine, which is named with them. Each bench is a
module of its own here.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final, TypeAlias

from vgpud import __version__
from vgpud.cli.bench import copy, plot, ring, slots, start
from vgpud.cli.bench.figures import Measured, Progress
from vgpud.coherency.probes import system as probe_system
from vgpud.errors import VgpudError

Benches: TypeAlias = Mapping[str, Callable[[Progress], Measured]]

BENCHES: Final[Benches] = {
    "copy": copy.run,
    "slots": slots.run,
    "ring": ring.run,
    "start": start.run,
}
"""What measures, by name: all of `bench.NAMES`."""


def text(
    name: str | None,
    progress: Progress,
    benches: Benches = BENCHES,
    *,
    as_json: bool = False,
    picture: Path | None = None,
) -> str:
    """What `vgpud bench` prints of one bench, or of all, having measured; `picture` is drawn too.

    Raises VgpudError (such as HostError) where the one lacks what it needs; of all, those that do
    are left out, with the reason. Before anything is measured: VgpudError if nothing can be drawn.
    """
    if picture is not None:
        plot.check(picture)
    found: dict[str, Measured] = {}
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
