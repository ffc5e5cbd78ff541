"""Blobs of the three kinds of memory: what may be made, what a guest is told, what it costs."""

from __future__ import annotations

import gc
import uuid
from collections.abc import Iterator

import pytest

from tests.gpu import driver as d
from tests.gpu.machine import HIGH, LIMIT, LOW, PAGE, REGION, WINDOW, Machine, refused
from vgpud.coherency.slot_policy import Fallback, GuestPat, Layout, MemoryType, Rule
from vgpud.gpu.wire.command_codec import Command
from vgpud.gpu.wire.protocol import BlobMem, MapInfo, ResourceId, ResponseType
from vgpud.gpu.wire.responses import MappedBlob, OkNoData, ResourceUuid
from vgpud.memory.extents import NON_COHERENT, PLAIN

INVALID = ResponseType.ERR_INVALID_PARAMETER
NO_MEMORY = ResponseType.ERR_OUT_OF_MEMORY
NO_RESOURCE = ResponseType.ERR_INVALID_RESOURCE_ID
NO_CONTEXT = ResponseType.ERR_INVALID_CONTEXT_ID


@pytest.fixture(params=list(Layout))
def machine(request: pytest.FixtureRequest) -> Iterator[Machine]:
    with Machine(request.param) as machine:
        machine.do(d.ctx_create())
        yield machine


BAD = [
    (d.create_blob(0, PAGE), NO_RESOURCE),
    (d.create_blob(1, PAGE), NO_RESOURCE),
    (d.create_blob(2, 0), INVALID),
    (d.create_blob(2, PAGE + 1), INVALID),
    (d.create_blob(2, PAGE // 2), INVALID),
    (d.create_blob(2, PAGE, 0), INVALID),
    (d.create_blob(2, PAGE, 4), INVALID),
    (d.create_blob(2, PAGE, flags=8), INVALID),
    (d.create_blob(2, PAGE, ctx=0), NO_CONTEXT),
    (d.create_blob(2, PAGE, ctx=9), NO_CONTEXT),
    (d.create_blob(2, PAGE, BlobMem.HOST3D, (LOW, PAGE)), INVALID),
    (d.create_blob(2, PAGE, BlobMem.HOST3D_GUEST, (0, PAGE)), INVALID),
    (d.create_blob(2, LIMIT), NO_MEMORY),
    (d.create_blob(2, LIMIT, BlobMem.HOST3D_GUEST, (LOW, PAGE)), NO_MEMORY),
    (d.create_blob(2, (1 << 64) - PAGE), NO_MEMORY),
    (d.guest_blob(2, (LOW, PAGE), size=0), INVALID),
    (d.guest_blob(2, (LOW, PAGE), (HIGH, 7), size=PAGE + 8), INVALID),
    (d.guest_blob(2, size=1), INVALID),
    (d.guest_blob(2, (0, PAGE)), INVALID),
    (d.guest_blob(2, (LOW, PAGE), size=(1 << 64) - 1), INVALID),
]


@pytest.mark.parametrize(("command", "code"), BAD)
def test_what_is_refused_costs_nothing(
    machine: Machine, command: Command, code: ResponseType
) -> None:
    machine.do(d.create_blob(1, PAGE))
    used = machine.used
    with refused(code):
        machine.do(command)
    assert machine.used == used
    assert len(machine.gpu.resources) == 1


@pytest.mark.parametrize("mem", BlobMem)
def test_blobs_live_and_die(machine: Machine, mem: BlobMem) -> None:
    pieces = () if mem is BlobMem.HOST3D else ((HIGH + 1, 3 * PAGE), (LOW, PAGE))
    used = machine.used
    for _ in range(3):
        machine.do(d.create_blob(1, 2 * PAGE, mem, *pieces, flags=7))
        if mem is BlobMem.GUEST:
            assert machine.bytes_of(1) == machine.ram.read(*pieces).tobytes()
        else:
            assert machine.used >= used + 2 * PAGE
            assert machine.bytes_of(1) == bytes(2 * PAGE)
        assert machine.do(d.unref(1)) == OkNoData()
        assert machine.used == used
        with refused(NO_RESOURCE):
            machine.do(d.unref(1))


def test_a_blob_outlives_its_context(machine: Machine) -> None:
    machine.all(d.create_blob(1, PAGE), d.ctx_attach(1), d.submit(d.fill(1, 0, PAGE, 0x01010101)))
    machine.all(d.ctx_destroy(), d.map_blob(1, 0))
    assert machine.bar.read(0, PAGE) == b"\1" * PAGE


def test_a_guest_blob_can_change_its_pages(machine: Machine) -> None:
    machine.all(d.guest_blob(1, (LOW, PAGE)), d.detach_backing(1))
    used = machine.used
    with refused(INVALID):
        machine.do(d.attach_backing(1, (HIGH, PAGE - 1)))
    assert machine.used == used
    machine.do(d.attach_backing(1, (HIGH, PAGE)))
    assert machine.bytes_of(1) == machine.ram.read((HIGH, PAGE)).tobytes()


NOT_MAPPABLE = [
    d.create_2d(1, 32, 32),
    d.guest_blob(1, (LOW, PAGE)),
    d.create_blob(1, PAGE, BlobMem.HOST3D, flags=0),
    d.create_blob(1, PAGE, BlobMem.HOST3D_GUEST, (LOW, PAGE), flags=2),
    d.create_blob(1, 2 * WINDOW),
]


@pytest.mark.parametrize("command", NOT_MAPPABLE)
def test_what_can_not_be_mapped(machine: Machine, command: Command) -> None:
    machine.do(command)
    used = machine.used
    for attempt in (d.map_blob(1, 0), d.unmap_blob(1)):
        with refused(INVALID):
            machine.do(attempt)
    assert machine.used == used
    machine.do(d.unref(1))


@pytest.mark.parametrize("offset", [1, 2048, WINDOW, WINDOW - PAGE, (1 << 64) - PAGE, 1 << 63])
def test_an_offset_that_is_not_one_is_refused(machine: Machine, offset: int) -> None:
    machine.do(d.create_blob(1, 2 * PAGE))
    with refused(INVALID):
        machine.do(d.map_blob(1, offset))
    machine.do(d.map_blob(1, WINDOW - 2 * PAGE))


def rule(memory_type: MemoryType, fallback: Fallback) -> Rule:
    return Rule(memory_type=memory_type, fallback=fallback)


PLANS = [
    (GuestPat.HONORED, rule(MemoryType.WC, Fallback.FLUSH), MapInfo.WC),
    (GuestPat.HONORED, rule(MemoryType.UC, Fallback.FLUSH), MapInfo.UNCACHED),
    # The BAR is UC in the guest's MTRRs: a cached mapping would be UC-, which is not what was said.
    (GuestPat.HONORED, rule(MemoryType.WB, Fallback.FLUSH), MapInfo.WC),
    (GuestPat.HONORED, rule(MemoryType.WC, Fallback.REFUSE), MapInfo.WC),
    (GuestPat.IGNORED, rule(MemoryType.WC, Fallback.FLUSH), MapInfo.CACHED),
    (GuestPat.IGNORED, rule(MemoryType.UC, Fallback.SNOOP), MapInfo.CACHED),
    (GuestPat.IGNORED, rule(MemoryType.WB, Fallback.REFUSE), MapInfo.CACHED),
    (GuestPat.AUTO, rule(MemoryType.WC, Fallback.FLUSH), MapInfo.CACHED),
]


@pytest.mark.parametrize(("pat", "policy", "expected"), PLANS)
def test_the_guest_is_told_what_holds(pat: GuestPat, policy: Rule, expected: MapInfo) -> None:
    with Machine(guest_pat=pat, rule=policy) as machine:
        machine.all(d.ctx_create(), d.create_blob(1, PAGE))
        assert machine.do(d.map_blob(1, PAGE)) == MappedBlob(expected)
        machine.do(d.unmap_blob(1))
        assert machine.do(d.map_blob(1, 2 * PAGE)) == MappedBlob(expected)


@pytest.mark.parametrize("fallback", [Fallback.FLUSH, Fallback.SNOOP])
@pytest.mark.parametrize("layout", Layout)
def test_the_engine_passes_the_caches_unless_it_snoops(layout: Layout, fallback: Fallback) -> None:
    policy = Rule(fallback=fallback, layout=layout)
    with Machine(layout, guest_pat=GuestPat.IGNORED, rule=policy) as machine:
        expected = NON_COHERENT if fallback is Fallback.FLUSH else PLAIN
        machine.all(d.ctx_create(), d.create_blob(1, PAGE))
        blob = machine.gpu.resources.host_blob(ResourceId(1))
        assert blob.contents().access == expected
        machine.do(d.map_blob(1, 0))
        assert blob.contents().access == expected
        machine.all(d.unmap_blob(1), d.create_blob(2, PAGE), d.map_blob(2, 0))
        assert blob.contents().access == expected


@pytest.mark.parametrize("pat", [GuestPat.IGNORED, GuestPat.AUTO])
def test_a_type_that_can_not_be_had_is_refused_at_creation(pat: GuestPat) -> None:
    with Machine(guest_pat=pat, rule=rule(MemoryType.WC, Fallback.REFUSE)) as machine:
        machine.do(d.ctx_create())
        used = machine.used
        with refused(ResponseType.ERR_UNSPEC):
            machine.do(d.create_blob(1, PAGE))
        assert machine.used == used


def test_every_resource_has_a_uuid_of_its_own(machine: Machine) -> None:
    machine.all(d.create_2d(1, 4, 4), d.guest_blob(2, (LOW, PAGE)), d.create_blob(3, PAGE))
    answers = [machine.do(d.assign_uuid(resource)) for resource in (1, 2, 3, 1, 2, 3)]
    assert all(isinstance(answer, ResourceUuid) for answer in answers)
    assert answers[:3] == answers[3:]
    assert len({answer.uuid for answer in answers if isinstance(answer, ResourceUuid)}) == 3
    first = answers[0]
    assert isinstance(first, ResourceUuid)
    assert uuid.UUID(bytes=first.uuid).version == 4
    machine.all(d.unref(1), d.create_2d(1, 4, 4))
    assert machine.do(d.assign_uuid(1)) != first


def test_many_blobs_are_many_blobs(machine: Machine) -> None:
    count = WINDOW // PAGE
    for index in range(count):
        resource = index + 1
        machine.all(
            d.create_blob(resource, PAGE),
            d.ctx_attach(resource),
            d.map_blob(resource, index * PAGE),
            d.submit(d.fill(resource, 0, PAGE, resource)),
        )
    for index in range(count):
        assert machine.bar.read(index * PAGE, 4) == (index + 1).to_bytes(4, "little")
    for index in range(count):
        machine.do(d.unref(index + 1))
    machine.do(d.ctx_destroy())
    assert machine.used == machine.empty


def test_a_host_that_has_no_more_memory_is_no_crash() -> None:
    for layout in Layout:
        with Machine(layout, limit=1 << 60) as machine:
            machine.do(d.ctx_create())
            used = machine.used
            with refused(NO_MEMORY):
                machine.all(d.create_blob(1, 1 << 50), d.ctx_attach(1))
                machine.do(d.submit(d.fill(1, 0, 4, 1)))
            if len(machine.gpu.resources):
                machine.do(d.unref(1))
            assert machine.used == used
        gc.collect()  # a file that nobody closed would be noticed here


def test_the_window_is_paid_for_from_the_start() -> None:
    with Machine(limit=WINDOW + REGION) as machine:
        assert machine.empty >= WINDOW
        machine.do(d.ctx_create())
        with refused(NO_MEMORY):
            machine.do(d.create_blob(1, REGION))
        # In the window it costs nothing more, so all of that can be had, piece by piece.
        for index in range(WINDOW // (REGION // 2) - 1):
            machine.all(
                d.create_blob(index + 1, REGION // 2), d.map_blob(index + 1, index * REGION // 2)
            )
        assert machine.used < WINDOW + REGION // 2
