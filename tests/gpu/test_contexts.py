"""Contexts, what is attached to them, and the capability set they are made of."""

from __future__ import annotations

import tracemalloc
from collections.abc import Iterator

import pytest

from tests.gpu import driver as d
from tests.gpu.machine import HIGH, LOW, PAGE, WINDOW, Machine, refused
from vgpud.errors import VgpudError
from vgpud.gpu.wire import dma
from vgpud.gpu.wire.protocol import CapsetId, ResponseType
from vgpud.gpu.wire.responses import CapsetData, CapsetInfo

INVALID = ResponseType.ERR_INVALID_PARAMETER
NO_CONTEXT = ResponseType.ERR_INVALID_CONTEXT_ID
NO_RESOURCE = ResponseType.ERR_INVALID_RESOURCE_ID


@pytest.fixture
def machine() -> Iterator[Machine]:
    with Machine() as machine:
        yield machine


def test_the_capability_set_is_what_the_design_says(machine: Machine) -> None:
    count = int.from_bytes(machine.gpu.config_space.read()[12:16], "little")
    assert count == 1
    assert machine.do(d.capset_info(0)) == CapsetInfo(30, 1, 16)
    answer = machine.do(d.get_capset(30, 1))
    assert isinstance(answer, CapsetData)
    assert dma.DmaCapset.unpack(answer.data) == dma.DmaCapset(1, dma.MAX_PACKETS, WINDOW)
    assert len(answer.data) == 16
    for index in (1, 30, 0xFFFFFFFF):
        assert machine.do(d.capset_info(index)) == CapsetInfo(0, 0, 0)
    for capset, version in ((0, 1), (1, 1), (29, 1), (30, 2), (0xFFFFFFFF, 0)):
        with refused(INVALID):
            machine.do(d.get_capset(capset, version))


@pytest.mark.parametrize("context_init", [0, CapsetId.DMA, CapsetId.DMA | 0x100])
def test_a_context_is_made_and_destroyed(machine: Machine, context_init: int) -> None:
    machine.do(d.ctx_create(5, context_init))
    assert machine.used > machine.empty
    with refused(NO_CONTEXT):
        machine.do(d.ctx_create(5))
    machine.do(d.ctx_destroy(5))
    assert machine.used == machine.empty
    with refused(NO_CONTEXT):
        machine.do(d.ctx_destroy(5))


@pytest.mark.parametrize("capset", [1, 2, 4, 29, 31, 255])
def test_there_are_no_other_contexts(machine: Machine, capset: int) -> None:
    with refused(INVALID):
        machine.do(d.ctx_create(1, capset))
    with refused(NO_CONTEXT):
        machine.do(d.ctx_create(0))
    assert machine.used == machine.empty


def test_commands_in_no_context_are_refused(machine: Machine) -> None:
    machine.do(d.guest_blob(1, (LOW, PAGE)))
    for ctx in (0, 7):
        for command in (
            d.ctx_destroy(ctx),
            d.ctx_attach(1, ctx),
            d.ctx_detach(1, ctx),
            d.submit(dma.Nop(), ctx=ctx),
        ):
            with refused(NO_CONTEXT):
                machine.do(command)


def test_attached_means_attached(machine: Machine) -> None:
    machine.all(d.ctx_create(1), d.ctx_create(2), d.guest_blob(1, (LOW, PAGE)))
    for command in (d.ctx_attach(2), d.ctx_detach(2)):
        with refused(NO_RESOURCE):
            machine.do(command)
    work = d.submit(d.fill(1, 0, 4, 0))
    with refused(NO_RESOURCE):
        machine.do(work)
    machine.all(d.ctx_attach(1, 2))
    with refused(NO_RESOURCE):
        machine.do(work)
    machine.all(d.ctx_attach(1), d.ctx_attach(1), work, d.ctx_detach(1), d.ctx_detach(1))
    with refused(NO_RESOURCE):
        machine.do(work)
    machine.do(d.submit(d.fill(1, 0, 4, 0), ctx=2))


def test_a_new_resource_of_an_old_name_is_not_attached(machine: Machine) -> None:
    machine.all(d.ctx_create(), d.guest_blob(1, (LOW, PAGE)), d.ctx_attach(1), d.unref(1))
    machine.do(d.guest_blob(1, (HIGH, PAGE)))
    with refused(NO_RESOURCE):
        machine.do(d.submit(d.fill(1, 0, 4, 0)))
    machine.all(d.ctx_attach(1), d.ctx_destroy(), d.ctx_create())
    with refused(NO_RESOURCE):
        machine.do(d.submit(d.fill(1, 0, 4, 0)))


def test_contexts_and_attachments_are_within_the_limit() -> None:
    # Each of N contexts can hold each of N resources: N*N of something. What that takes is the
    # guest's to pay for.
    count = 250
    with Machine(limit=64 << 20) as machine:
        tracemalloc.start()
        try:
            before, used = tracemalloc.get_traced_memory()[0], machine.used
            for index in range(1, count + 1):
                machine.all(d.ctx_create(index), d.guest_blob(index, (LOW, PAGE)))
            for ctx in range(1, count + 1):
                for resource in range(1, count + 1):
                    machine.do(d.ctx_attach(resource, ctx))
            taken = tracemalloc.get_traced_memory()[0] - before
            assert machine.used - used >= taken
        finally:
            tracemalloc.stop()
        machine.reset()
        assert machine.used == machine.empty


def test_too_many_contexts_are_out_of_memory() -> None:
    with Machine(limit=WINDOW + 16 * PAGE) as machine:
        made = 0
        with refused(ResponseType.ERR_OUT_OF_MEMORY):
            for index in range(1, 100):
                machine.do(d.ctx_create(index))
                made += 1
        assert 0 < made <= 16
        with pytest.raises(VgpudError):
            machine.do(d.ctx_destroy(made + 1))
        for index in range(1, made + 1):
            machine.do(d.ctx_destroy(index))
        assert machine.used == machine.empty
