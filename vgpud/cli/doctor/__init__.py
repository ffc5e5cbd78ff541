"""`vgpud doctor`: what this host can do, what vgpud will therefore do, and what would help.

Puts together what `host` finds, what `policy` plans on it, and the remedies; owns how that is
shown. It changes nothing on the host: scratch VMs and a few pages of memory are all that it makes.
"""

from __future__ import annotations

import json

from vgpud.cli.doctor import measured
from vgpud.cli.doctor.report import Report, examine, row_json
from vgpud.cli.doctor.screen import render, render_measured, render_table
from vgpud.coherency.planner import table
from vgpud.coherency.probes import host as probe

__all__ = ["Report", "examine", "render", "render_measured", "render_table", "text"]


def text(*, as_json: bool = False, plans: bool = False, measure: bool = False) -> str:
    """What `vgpud doctor` prints about this host.

    With `measure`, also what the micro-VM measures: in JSON as `measurement`. With `plans` the
    planner's whole table: in JSON as `table` beside the rest, else in its place.
    """
    report = examine(probe.probe())
    found = measured.take() if measure else None
    if as_json:
        values = report.to_json()
        if found is not None:
            values["measurement"] = found.to_json(report)
        if plans:
            values["table"] = [row_json(row) for row in table()]
        return json.dumps(values, indent=2)
    parts = [render_table(table()) if plans else render(report)]
    if found is not None:
        parts.append(render_measured(found, report))
    return "\n\n".join(parts)
