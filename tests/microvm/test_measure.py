"""Conclusions from measured times, also wrong ones that must not be drawn; one real measurement."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.microvm.kvm import needs_kvm
from vgpud.coherency.probes import kvm as probe_kvm
from vgpud.microvm.guest_code import Samples
from vgpud.microvm.measure import Setup, Verdict, judge, measure

CALLED = {Verdict.HONOURED, Verdict.IGNORED}


def samples(hit: int, miss: int, wc: int) -> Samples:
    """A run without any noise."""
    return Samples(*((value,) * 16 for value in (hit, miss, wc)))


@pytest.mark.parametrize(
    ("hit", "miss", "wc", "verdict"),
    [
        (320, 12000, 14000, Verdict.HONOURED),
        (320, 12000, 6000, Verdict.HONOURED),
        (320, 12000, 330, Verdict.IGNORED),
        (540000, 541000, 542000, Verdict.EMULATED),
        (900, 1000, 20000, Verdict.EMULATED),
        (1000, 900, 100, Verdict.EMULATED),
        (500, 1000, 1000, Verdict.UNCLEAR),
        (500, 1300, 750, Verdict.UNCLEAR),
    ],
)
def test_clear_numbers(hit: int, miss: int, wc: int, verdict: Verdict) -> None:
    assert judge(samples(hit, miss, wc))[0] is verdict


def test_loads_between_hits_and_misses_are_left_open() -> None:
    run = Samples((300,) * 16, (12000,) * 16, (310, 11000) * 8)
    assert judge(run)[0] is Verdict.UNCLEAR


def noisy(level: int, amount: float) -> st.SearchStrategy[tuple[int, ...]]:
    """Sixteen times about `level`, of which up to three were interrupted."""
    quiet = st.floats(1 - amount, 1 + amount).map(lambda factor: max(1, round(level * factor)))
    spikes = st.lists(st.tuples(st.integers(0, 15), st.integers(2, 500)), max_size=3)

    def mixed(times: list[int], spikes: list[tuple[int, int]]) -> tuple[int, ...]:
        for index, factor in spikes:
            times[index] *= factor
        return tuple(times)

    return st.builds(mixed, st.lists(quiet, min_size=16, max_size=16), spikes)


@given(st.builds(Samples, noisy(9000, 0.3), noisy(9000, 0.3), noisy(9000, 0.3)))
def test_a_difference_inside_the_noise_is_not_called_one(run: Samples) -> None:
    assert judge(run)[0] not in CALLED


@given(st.builds(Samples, noisy(320, 0.3), noisy(12000, 0.3), noisy(13000, 0.3)))
def test_noise_does_not_hide_memory_that_is_honoured(run: Samples) -> None:
    assert judge(run)[0] is Verdict.HONOURED


@given(st.builds(Samples, noisy(320, 0.3), noisy(12000, 0.3), noisy(330, 0.3)))
def test_noise_does_not_hide_memory_that_is_not(run: Samples) -> None:
    assert judge(run)[0] is Verdict.IGNORED


@needs_kvm
def test_this_machine() -> None:
    facts = probe_kvm.probe()
    rows = {row.setup: row for row in measure().rows}
    assert set(rows) == set(Setup)
    plain = rows[Setup.NEITHER]
    assert plain.verdict is not Verdict.UNAVAILABLE
    assert plain.hit
    assert plain.wc
    has_flag = rows[Setup.FLAG].verdict is not Verdict.UNAVAILABLE
    assert has_flag == facts.non_coherent_dma_flag
    has_quirk = rows[Setup.QUIRK_DISABLED].verdict is not Verdict.UNAVAILABLE
    assert has_quirk == facts.ignore_guest_pat_quirk
    if plain.hit > 1000:  # time stamps a load: no processor is that slow
        assert plain.verdict is Verdict.EMULATED
