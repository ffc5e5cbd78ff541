"""What `vgpud bench` measures, by name, and how it is shown.

Owns the choice and the heading: figures are of a machine, which is named with them. Each bench is a
module of its own here. Must not import anything of the daemon's.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final, Protocol, TypeAlias

from vgpud import __version__
from vgpud.bench import slots
from vgpud.host import probe_system


class Measured(Protocol):
    """What a bench has found."""

    def to_json(self) -> Any:
        """For machines: values that JSON has."""

    def lines(self) -> Iterator[str]:
        """For people, 100 columns at most."""


Progress: TypeAlias = Callable[[str], None]
"""Is told what is measured next."""

BENCHES: Final[dict[str, Callable[[Progress], Measured]]] = {"slots": slots.run}
"""What measures, by name."""


def text(names: Sequence[str], progress: Progress, *, as_json: bool = False) -> str:
    """What `vgpud bench` prints of these, having measured them.

    Raises HostError where the host lacks what a bench needs.
    """
    found = {name: BENCHES[name](_prefixed(name, progress)) for name in names}
    cpu, kernel = probe_system.cpu(), probe_system.system().kernel
    if as_json:
        values = {"version": __version__, "kernel": kernel, "cpu": cpu.model}
        results = {name: measured.to_json() for name, measured in found.items()}
        return json.dumps(values | results, indent=2)
    model = (cpu.model or "unknown processor") + (" in a VM" if cpu.hypervisor else "")
    parts = [f"vgpud {__version__}: Linux {kernel}, {model}"]
    parts += ["\n".join(measured.lines()) for measured in found.values()]
    return "\n\n".join(parts)


def _prefixed(name: str, progress: Progress) -> Progress:
    return lambda what: progress(f"{name}: {what}")
