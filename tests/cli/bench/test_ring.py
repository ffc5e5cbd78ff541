"""The measurement of the rings: a short one with a real daemon, and the driver's own arithmetic."""

from __future__ import annotations

import pytest

from vgpud.cli.bench import ring, ring_commands
from vgpud.cli.bench.ring import BATCHES, RingCosts, measure
from vgpud.cli.bench.ring_commands import COPIES, FENCED, KINDS, concurrent_copies
from vgpud.cli.bench.ring_guest import QUEUE_SIZE, BenchGuest
from vgpud.errors import VgpudError
from vgpud.gpu.wire import commands as c
from vgpud.gpu.wire.header import Header
from vgpud.gpu.wire.protocol import CONTROL_QUEUE, CommandType
from vgpud.native.shared_words import SharedU16
from vgpud.unix import eventfd


@pytest.fixture(scope="module")
def costs() -> RingCosts:
    """Two short turns, and fences for as long as some copies take."""
    return measure(turns=2, turn_s=0.005, fences=3000)


def test_each_kind_is_measured_in_each_batch(costs: RingCosts) -> None:
    assert [(row.kind, row.batch) for row in costs.rates] == [
        (kind.name, batch) for kind in KINDS for batch in BATCHES
    ]
    for row in costs.rates:
        assert 0 < row.per_second.lower <= row.per_second.upper < 1e7
        assert 0 < row.round_us <= row.round_p99_us
        assert row.daemon_us > 0


def test_fences_are_measured_alone_and_beside_copies(costs: RingCosts) -> None:
    alone, beside = costs.fences
    assert alone.copied_gb_s == 0
    assert beside.copied_gb_s > 0
    for row in costs.fences:
        assert 0 < row.p50_us <= row.p99_us <= row.worst_us


def test_the_tables_and_the_charts(costs: RingCosts) -> None:
    assert max(map(len, costs.lines())) <= 100
    assert [len(chart.bars) for chart in costs.charts()] == [len(KINDS)] * len(BATCHES) + [2]
    assert costs.to_json()["rates"][0]["kind"] == KINDS[0].name


def test_a_refused_command_is_no_measurement(monkeypatch: pytest.MonkeyPatch) -> None:
    unknown = c.ResourceUnref(Header(CommandType.RESOURCE_UNREF), ring_commands._IMAGE)
    twice = ring_commands.Kind("twice", CONTROL_QUEUE, (unknown,))
    monkeypatch.setattr(ring, "KINDS", (twice,))
    with pytest.raises(VgpudError, match="answered ResourceUnref with 0x1203"):
        measure(turns=1, turn_s=0.001, fences=1)


def test_laps_fit_into_a_queue() -> None:
    for count in [*BATCHES, *(len(kind.commands) for kind in KINDS)]:
        assert QUEUE_SIZE % count == 0
    assert len([FENCED, *concurrent_copies()]) == 1 + COPIES


def test_the_device_is_woken_when_it_wants_to_be() -> None:
    with BenchGuest(0) as guest:
        driver = guest.driver(CONTROL_QUEUE)
        kick = guest.kicks[CONTROL_QUEUE]
        used = guest.queue(CONTROL_QUEUE).used
        wish = SharedU16(guest.memory, used + 4 + 8 * QUEUE_SIZE)
        driver.load([FENCED])
        driver.publish(4)  # avail_event is 0: the first of these
        assert eventfd.drain(kick) == 1
        driver.publish(4)
        assert eventfd.drain(kick) == 0
        wish.store(9)
        driver.publish(1)
        assert eventfd.drain(kick) == 0
        driver.publish(1)
        assert eventfd.drain(kick) == 1
        assert driver.waiting == 10
        # And the device signals when we want it to: with the last of these.
        driver.want(10)
        assert SharedU16(guest.memory, guest.queue(0).avail + 4 + 2 * QUEUE_SIZE).load() == 9
        SharedU16(guest.memory, used + 2).store(10)
        assert driver.answered() == 10
        driver.done(10)
        assert driver.waiting == driver.answered() == 0
