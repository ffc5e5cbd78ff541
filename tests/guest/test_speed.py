"""How quick we are beside QEMU's C back-end, in the same guest: figures, no verdict.

The two take turns, so that what the machine does meanwhile is shared fairly.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from statistics import mean
from typing import Any

import pytest

from tests.rig.build import Rig
from tests.rig.peer import c_back_end
from tests.rig.qemu import Guest
from tests.support.process import DaemonProcess, config_toml

pytestmark = [pytest.mark.guest, pytest.mark.timeout(300)]

ROUNDS = 2
FIGURES = {
    "flips": "page flips/s, all differs",
    "flips_area": "page flips/s, 200x200 differs",
    "dirtyfb": "dirtyfb/s",
    "dirtyfb_drawn": "dirtyfb/s, 64x64 drawn",
    "transfers": "one-command transfers/s",
}


def measure(rig: Rig, socket: Path) -> dict[str, Any]:
    """Boot on that back-end and run `speed`."""
    with Guest(rig, "gpu", socket=socket) as guest:
        guest.wait_boot()
        result = guest.run("speed 1")
        [line] = [line for line in result.lines if line.startswith("SPEED ")]
        figures: dict[str, Any] = json.loads(line.removeprefix("SPEED "))
        return figures


def test_beside_the_c_back_end(
    rig: Rig, short_directory: Path, report: Callable[[str], None]
) -> None:
    theirs, ours = [], []
    with DaemonProcess(short_directory, config_toml(short_directory)) as daemon:
        for turn in range(ROUNDS):
            with c_back_end(rig, short_directory / f"c{turn}.sock"):
                theirs.append(measure(rig, short_directory / f"c{turn}.sock"))
            ours.append(measure(rig, daemon.socket()))
    assert all(run["mode"] == "1280x800" for run in theirs + ours)
    for figure, name in FIGURES.items():
        their_mean = mean(run[figure] for run in theirs)
        our_mean = mean(run[figure] for run in ours)
        assert our_mean > 0
        assert their_mean > 0
        report(
            f"{name} on vhost-user-gpu-pci: vgpud {our_mean:.0f}, QEMU's C back-end "
            f"{their_mean:.0f}, ratio {our_mean / their_mean:.2f}"
        )
