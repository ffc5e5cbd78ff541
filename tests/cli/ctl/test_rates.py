"""Rates from two snapshots of the metrics."""

from __future__ import annotations

import asyncio

import pytest

from tests.cli.ctl import answers
from vgpud.cli.ctl import rates
from vgpud.daemon import openmetrics
from vgpud.daemon.openmetrics import DeviceFigures, Figures
from vgpud.errors import PeerError
from vgpud.gpu.counters import Counters
from vgpud.gpu.wire.commands import ResourceFlush, Submit3D
from vgpud.pace import paced

IDLE = dict.fromkeys(rates.COUNTERS, 0.0)


def look(uptime: float, **devices: Counters) -> rates.Snapshot:
    """What is seen of a daemon with these devices."""
    figures = Figures(
        version="0.1.0",
        uptime=uptime,
        devices=tuple(
            DeviceFigures(counters, answers.device(name), {}) for name, counters in devices.items()
        ),
        whole=None,
    )
    return rates.snapshot(asyncio.run(paced(openmetrics.render(figures))))


def test_rates_are_what_was_counted_by_the_daemons_clock() -> None:
    before = look(10.0, one=Counters(commands={Submit3D: 5}, bytes_read=1 << 20))
    after = look(
        12.0,
        one=Counters(
            commands={Submit3D: 6, ResourceFlush: 19},
            bytes_read=5 << 20,
            bytes_written=2048,
            bytes_snooped=512,
            maps=4,
            fences=6,
            display_updates=120,
        ),
    )
    (found,) = rates.rates(before, after)
    assert (found.device, found.connected) == ("one", True)
    assert (found.memory_used, found.memory_limit) == (12 << 20, 1 << 30)
    assert found.rates == {
        "commands": 10.0,
        "bytes_read": 2.0 * (1 << 20),
        "bytes_written": 1024.0,
        "bytes_snooped": 256.0,
        "maps": 2.0,
        "fences": 3.0,
        "frames": 60.0,
    }


def test_nothing_is_known_of_what_was_not_there() -> None:
    busy = Counters(fences=1000)
    assert rates.rates(None, look(5.0, one=busy))[0].rates == IDLE
    before, after = look(5.0, one=busy), look(6.0, one=busy, two=busy)
    assert [(row.device, row.rates) for row in rates.rates(before, after)] == [
        ("one", IDLE),
        ("two", IDLE),
    ]
    assert [row.device for row in rates.rates(after, look(7.0, two=busy))] == ["two"]


def test_a_daemon_or_a_device_that_is_new_counts_from_zero() -> None:
    before = look(500.0, one=Counters(fences=1000))
    assert rates.rates(before, look(3.0, one=Counters(fences=2000)))[0].rates == IDLE
    assert rates.rates(before, look(501.0, one=Counters(fences=5)))[0].rates == IDLE


def test_the_table_has_units() -> None:
    before = look(1.0, one=Counters())
    after = look(2.0, one=Counters(bytes_read=3 << 19, fences=7))
    header, line = rates.lines(rates.rates(before, after))
    assert header.split()[:5] == ["DEVICE", "VMM", "COMMANDS/S", "READ/S", "WRITTEN/S"]
    assert line.split()[:9] == ["one", "connected", "0", "1.5", "MiB", "0", "B", "0", "B"]


@pytest.mark.parametrize("text", ["nonsense {", "vgpud_fences_total 1\n"])
def test_what_is_no_openmetrics_is_the_daemons_fault(text: str) -> None:
    with pytest.raises(PeerError, match="not OpenMetrics"):
        rates.snapshot(text)
