"""The measurement against the conclusions: a contradiction is reported, and only that."""

from __future__ import annotations

import pytest

from tests.cli.doctor import hosts
from vgpud.cli.doctor import examine, render_measured
from vgpud.cli.doctor.measured import MeasurementResult, advice
from vgpud.cli.doctor.screen import WIDTH
from vgpud.coherency.probes.host import HostFacts
from vgpud.microvm.measure import Row, Setup, Verdict

NOISY = Row(Setup.NEITHER, Verdict.UNCLEAR, "loads that hit and loads that miss overlap", 4, 5, 5)


def rows(neither: Verdict, flag: Verdict, quirk: Verdict) -> tuple[Row, ...]:
    """A row for each set-up, with these verdicts."""
    return tuple(
        Row(setup, verdict, "so it was timed", 4.2, 250.0, 231.7)
        for setup, verdict in zip(Setup, (neither, flag, quirk), strict=True)
    )


IGNORED = rows(Verdict.IGNORED, Verdict.IGNORED, Verdict.IGNORED)
HONOURED = rows(Verdict.HONOURED, Verdict.HONOURED, Verdict.HONOURED)
EMULATED = rows(Verdict.EMULATED, Verdict.EMULATED, Verdict.EMULATED)
AS_THEY_SHOULD = rows(Verdict.IGNORED, Verdict.HONOURED, Verdict.HONOURED)


@pytest.mark.parametrize(
    ("facts", "found", "words"),
    [
        (hosts.FLAGGED, AS_THEY_SHOULD, ""),
        (hosts.INTEL, AS_THEY_SHOULD, ""),
        (hosts.INTEL_OLD, AS_THEY_SHOULD, ""),
        (hosts.AMD, HONOURED, ""),
        (hosts.FLAGGED, IGNORED, "contradicts"),
        (hosts.FLAGGED, rows(Verdict.HONOURED, Verdict.IGNORED, Verdict.HONOURED), "contradicts"),
        (hosts.INTEL, IGNORED, "contradicts"),
        (hosts.INTEL, rows(Verdict.HONOURED, Verdict.HONOURED, Verdict.IGNORED), "contradicts"),
        (hosts.AMD, IGNORED, "contradicts"),
        (hosts.OTHER, HONOURED, 'guest_pat = "honored" may be set'),
        (hosts.OTHER, IGNORED, ""),
        (hosts.NESTED_INTEL, HONOURED, 'guest_pat = "honored" may be set'),
        (hosts.NESTED_AMD, HONOURED, "does not show whose was used"),
        (hosts.NESTED_AMD, IGNORED, ""),
        *[(facts, EMULATED, "") for facts in hosts.HOSTS.values()],
        *[(facts, (NOISY,), "") for facts in hosts.HOSTS.values()],
        *[(facts, (), "") for facts in hosts.HOSTS.values()],
    ],
)
def test_what_to_do(facts: HostFacts, found: tuple[Row, ...], words: str) -> None:
    said = advice(examine(facts), found)
    assert words in said
    assert bool(words) == bool(said)


@pytest.mark.parametrize(
    "measured",
    [
        MeasurementResult(HONOURED),
        MeasurementResult(EMULATED),
        MeasurementResult((NOISY,)),
        MeasurementResult((Row(Setup.FLAG, Verdict.UNAVAILABLE, "this kernel refuses it"),)),
        MeasurementResult(problem="open /dev/kvm: Permission denied; " + "do this and that, " * 9),
    ],
)
def test_it_fits_the_screen(measured: MeasurementResult) -> None:
    text = render_measured(measured, examine(hosts.OTHER))
    assert max(map(len, text.splitlines())) <= WIDTH
    assert "None" not in text
    for row in measured.rows:
        assert row.verdict in text.replace("\n" + " " * 20, " ")
    assert measured.problem.strip() in text.replace("\n  ", " ")
