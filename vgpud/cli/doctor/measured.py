"""The micro-VM's measurement of memory types, compared with the conclusions from facts.

Where the two disagree, the measurement is right, and there is advice. It works only where caches
show in the timing: see `microvm.measure`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from vgpud.cli.doctor.report import PatState, Report
from vgpud.coherency.kvm_mode import KvmMode, Vendor
from vgpud.errors import VgpudError
from vgpud.microvm.measure import Row, Setup, Verdict, measure

_SETUPS: Final = {KvmMode.FLAG: Setup.FLAG, KvmMode.QUIRK_DISABLED: Setup.QUIRK_DISABLED}
"""The set-up in which a mode is in force; all others ask for none."""


@dataclass(frozen=True, slots=True)
class MeasurementResult:
    """The rows of a measurement, one for each set-up, or the problem that prevented it."""

    rows: tuple[Row, ...] = ()
    problem: str = ""

    def to_json(self, report: Report) -> dict[str, Any]:
        """Return the rows as JSON values, with medians in time stamp counts per load."""
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


def take() -> MeasurementResult:
    """Run the measurement, about a second. It raises nothing: errors are in the result."""
    try:
        return MeasurementResult(measure().rows)
    except VgpudError as error:
        return MeasurementResult(problem=str(error))


def advice(report: Report, rows: tuple[Row, ...]) -> str:
    """Return advice if the measurement contradicts the plans for vgpud's own VM, else nothing."""
    setup = _SETUPS.get(report.vms[0].finding.mode, Setup.NEITHER)
    for row in rows:
        if row.setup is not setup:
            continue
        if row.verdict is Verdict.IGNORED and report.guest_pat is PatState.HONORED:
            return (
                "This contradicts the plans above. Set"
                ' guest_pat = "ignored" in each [[device]], and please report it.'
            )
        if row.verdict is Verdict.HONOURED and _shares_pat(report):
            return (
                "The guest that was timed has the same PAT as Linux on this host, so this does not"
                " show whose was used."
            )
        if row.verdict is Verdict.HONOURED and report.guest_pat is PatState.UNKNOWN:
            return 'So guest_pat = "honored" may be set in a [[device]], and blobs are mapped WC.'
    return ""


def _shares_pat(report: Report) -> bool:
    """Return whether an outer KVM may use this host's PAT for its guests, as AMD's does."""
    nested = report.vms[0].finding.mode is KvmMode.NESTED
    return nested and report.facts.kvm.vendor is Vendor.SVM
