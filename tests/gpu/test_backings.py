"""Scatter-gather lists of resources: what they keep and cost, and when they are resolved."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.gpu import driver as d
from tests.gpu.machine import (
    HIGH,
    LOW,
    MIB,
    NEXT,
    PAGE,
    REGION,
    WINDOW,
    Machine,
    finish,
    refused,
    stop_at,
)
from vgpud.gpu.guest_memory import LONG_LIST
from vgpud.gpu.resources import SPAN_COST
from vgpud.gpu.wire.command_codec import MOST_COPIED, decode, encode
from vgpud.gpu.wire.header import Rect
from vgpud.gpu.wire.mem_entries import bytes_kept
from vgpud.gpu.wire.protocol import ResourceId, ResponseType
from vgpud.vhost.memory_table import MAX_CROSSING

INVALID = ResponseType.ERR_INVALID_PARAMETER
NO_MEMORY = ResponseType.ERR_OUT_OF_MEMORY
NO_RESOURCE = ResponseType.ERR_INVALID_RESOURCE_ID


@pytest.fixture
def machine() -> Iterator[Machine]:
    with Machine() as machine:
        yield machine


def whole(width: int, height: int) -> Rect:
    return Rect(0, 0, width, height)


def test_a_list_of_pages_is_paid_for() -> None:
    with Machine(limit=WINDOW + MIB) as machine:
        pieces = [(LOW, 1)] * (MIB // 16)
        machine.do(d.create_2d(1, 4, 4))
        used = machine.used
        with refused(NO_MEMORY):
            machine.do(d.attach_backing(1, *pieces))
        assert machine.used == used
        machine.do(d.attach_backing(1, *pieces[:1000]))
        assert machine.used >= used + 1000 * 16
        machine.do(d.detach_backing(1))
        assert machine.used == used


def test_a_long_request_is_paid_for_where_a_list_keeps_it() -> None:
    count = MOST_COPIED // 16
    for brought in (1, count, 10 * count):  # one is copied, or charged in full already
        command = d.attach_backing(1, *[(LOW, 1)] * (count + 1))
        with Machine() as machine:
            machine.do(d.create_2d(1, 4, 4))
            used = machine.used
            machine.do(decode(encode(command) + bytes(16 * brought)))
            backing = machine.gpu.resources.get(ResourceId(1)).backing
            assert backing is not None
            assert machine.used - used >= 3 * backing.entries.nbytes + bytes_kept(backing.entries)
            assert machine.used - used <= 4 * backing.entries.nbytes + 16 * brought + 64
            machine.do(d.detach_backing(1))
            assert machine.used == used


def test_entries_that_cross_a_border_are_paid_for_as_what_they_become(machine: Machine) -> None:
    machine.do(d.create_2d(1, 4, 4))
    used = machine.used
    machine.do(d.attach_backing(1, *[(NEXT - 8, 8)] * 1000))
    alone = machine.used
    machine.all(d.detach_backing(1), d.attach_backing(1, *[(NEXT - 8, 16)] * 1000))
    assert machine.used == alone + 1000 * SPAN_COST
    machine.ram.share((LOW, NEXT + PAGE))  # no longer one after the other
    with refused(INVALID):
        machine.do(d.transfer(1, whole(4, 4)))
    machine.ram.share()
    machine.do(d.transfer(1, whole(4, 4)))
    assert machine.used == alone + 1000 * SPAN_COST
    machine.do(d.detach_backing(1))
    assert machine.used == used


def test_a_list_that_comes_to_cross_borders_needs_memory_for_that(machine: Machine) -> None:
    machine.ram.share((NEXT - REGION // 2, HIGH))
    machine.all(d.create_2d(1, 4, 4), d.attach_backing(1, *[(NEXT - 8, 16)] * 1000))
    machine.ram.share()
    full = machine.gpu.quota.charge(machine.gpu.quota.limit - machine.used)
    for _ in range(2):
        with refused(NO_MEMORY):
            machine.do(d.transfer(1, whole(4, 4)))
    machine.do(d.unref(1))
    full.release()
    assert machine.used == machine.empty


def test_a_long_list_crosses_borders_as_often_as_a_short_one(machine: Machine) -> None:
    machine.do(d.create_2d(1, 4, 4))
    used = machine.used
    rest = [(LOW, 1), (HIGH, 1)] * (LONG_LIST // 2)
    some = [*[(NEXT - 8, 16)] * (MAX_CROSSING // 2 + 1), *rest]
    machine.all(d.attach_backing(1, *some), d.detach_backing(1))
    with refused(INVALID):
        machine.do(d.attach_backing(1, *some, *some[:LONG_LIST]))
    assert machine.used == used


def test_what_frees_a_resource_needs_no_memory() -> None:
    # Its list is stale, and there is no memory to resolve it again.
    pages = [(LOW, 8), (HIGH, 8)] * LONG_LIST
    with Machine() as machine:
        machine.all(
            *(d.ctx_create(), d.create_2d(1, 4, 4), d.ctx_attach(1), d.attach_backing(1, *pages)),
            *(d.create_2d(2, 4, 4), d.attach_backing(2, *pages)),
        )
        machine.ram.share()
        full = machine.gpu.quota.charge(machine.gpu.quota.limit - machine.used)
        with refused(NO_MEMORY):
            machine.do(d.transfer(1, whole(4, 4)))
        machine.all(d.assign_uuid(1), d.ctx_detach(1), d.detach_backing(1), d.unref(1), d.unref(2))
        full.release()


def test_a_list_that_is_released_while_it_is_resolved_costs_nothing(machine: Machine) -> None:
    pages = [(NEXT - 8, 16)] * 100 + [(LOW, 8), (HIGH, 8)] * LONG_LIST
    machine.do(d.guest_blob(1, *pages, size=4096))
    machine.ram.share()
    machine.patience.pausing = True
    cursor = machine.start(d.update_cursor(0, 1))
    assert stop_at(cursor)
    machine.do(d.unref(1))
    with refused(NO_RESOURCE):
        finish(cursor)
    machine.patience.pausing = False
    assert machine.used == machine.empty
