"""The measurement of slots: the form and the order of its figures, by a small one."""

from __future__ import annotations

from tests.support.kvm_host import open_kvm
from vgpud.cli.bench.slots import measure


def test_each_way_is_measured_with_each_number_of_blobs() -> None:
    with open_kvm():
        rows = measure((0, 50), rounds=30)
    assert [(row.way, row.live) for row in rows] == [
        (way, live) for way in ("slot", "window") for live in (0, 50)
    ]
    for row in rows:
        assert row.rounds == 30
        assert 0 < row.median_us <= row.p99_us < 1e6


def test_a_slot_costs_more_than_a_place_in_one() -> None:
    with open_kvm():
        cost = {row.way: row.median_us for row in measure((0,), rounds=200)}
    assert cost["slot"] > cost["window"]
