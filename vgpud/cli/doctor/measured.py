"""What the micro-VM measures of memory types, beside what was concluded from facts.

Owns running it, and what to do where the two disagree. The clock has the last word, but it speaks
only where caches show: see `microvm.measure`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from vgpud.cli.doctor.report import PatState, Report
from vgpud.coherency.kvm_mode import KvmMode
from vgpud.errors import VgpudError
from vgpud.microvm.measure import Row, Setup, Verdict, measure

_SETUPS: Final = {KvmMode.FLAG: Setup.FLAG, KvmMode.QUIRK_DISABLED: Setup.QUIRK_DISABLED}
"""The set-up in which a mode is in force; all others ask for none."""


@dataclass(frozen=True, slots=True)
class Measured:
    """A row for each set-up, or why there is none."""

    rows: tuple[Row, ...] = ()
    problem: str = ""

    def to_json(self, report: Report) -> dict[str, Any]:
        """The rows with their medians, in time stamp counts a load."""
        return {
            "rows": [
                {
                    "setup": row.setup.value,
                    "verdict": row.verdict.value,
                    "reason": row.reason,
                    "hit": row.hit,
                    "miss": row.miss,
                    "wc": row.wc,
                }
                for row in self.rows
            ],
            "problem": self.problem,
            "advice": advice(report, self.rows),
        }


def take() -> Measured:
    """Run the micro-VM; about a second. Raises nothing."""
    try:
        return Measured(measure().rows)
    except VgpudError as error:
        return Measured(problem=str(error))


def advice(report: Report, rows: tuple[Row, ...]) -> str:
    """What to do where the clock contradicts the plans for a VM of our own, else nothing."""
    setup = _SETUPS.get(report.vms[0].finding.mode, Setup.NEITHER)
    for row in rows:
        if row.setup is not setup:
            continue
        if row.verdict is Verdict.IGNORED and report.guest_pat is PatState.HONORED:
            return (
                "This contradicts the plans above: until it is understood, say"
                ' guest_pat = "ignored" in each [[device]], and please report it.'
            )
        if row.verdict is Verdict.HONOURED and report.guest_pat is PatState.UNKNOWN:
            return 'So guest_pat = "honored" may be said in a [[device]], and blobs are mapped WC.'
    return ""
