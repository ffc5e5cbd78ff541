"""Comparisons of speed in a guest, with margins that hold on a busy machine, too."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.bench import guest
from tests.rig.build import Rig


@pytest.mark.guest
@pytest.mark.timeout(600)
def test_beside_the_c_back_end(rig: Rig) -> None:
    costs = guest.measure(rounds=2)
    assert costs.mode == "1280x800"
    assert max(map(len, costs.lines())) <= 100
    assert len(list(costs.charts())) == len(guest.PICTURES) + 2
    ratios = {row.figure: row.ratio for row in costs.pictures if row.contender == guest.OURS}
    for figure, least in (  # aimed for: 1.2, 3, 1.1, 2
        ("transfers", 0.5),
        ("flips_area", 1.5),
        ("flips", 1.1),
        ("dirtyfb", 1.1),
    ):
        assert ratios[guest.PICTURES[figure]] > least, figure
    assert costs.fence_ratio < 4  # aimed for: 0.8
    window = [row for row in costs.blobs if row.layout == "window"]
    assert [row.live for row in window] == list(guest.LIVE)
    assert all(row.ratio < 0.8 for row in window)  # aimed for: a third


def test_without_a_rig_it_says_what_builds_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("VGPUD_RIG", str(tmp_path))
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert guest.main(["--json"]) == 1
    assert f"no guest rig in {tmp_path}: tests/run builds it" in capsys.readouterr().err


def test_who_is_not_root_is_told(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert guest.main([]) == 1
    assert "needs root" in capsys.readouterr().err
