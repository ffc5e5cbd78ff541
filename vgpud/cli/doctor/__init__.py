"""`vgpud doctor`: what this host can do, what vgpud therefore does, and what would help.

It combines the host's facts (`coherency.probes`), the planner's plans for them, and remedies. It
changes nothing on the host; it only creates scratch VMs and a few pages of memory.
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
    """Examine this host and return the text that `vgpud doctor` prints.

    With `measure`, it includes what the micro-VM measures, in JSON as `measurement`. With `plans`,
    it includes the planner's whole table: in JSON as an additional `table`, in text instead of the
    report.
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
