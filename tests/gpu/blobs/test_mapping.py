"""Blobs in and out of the window, in both layouts: the bytes at each offset, after any history."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.gpu import driver as d
from tests.gpu.machine import KIB, LIMIT, PAGE, WINDOW, Machine, finish, random_bytes, refused
from vgpud.coherency.slot_policy import Layout
from vgpud.errors import VgpudError
from vgpud.gpu.blobs import per_blob_layout
from vgpud.gpu.wire.protocol import ResponseType

INVALID = ResponseType.ERR_INVALID_PARAMETER
UNSPEC = ResponseType.ERR_UNSPEC
BIG = 256 * KIB  # copied aside when it moves


@pytest.fixture(params=list(Layout))
def machine(request: pytest.FixtureRequest) -> Iterator[Machine]:
    with Machine(request.param) as machine:
        machine.do(d.ctx_create())
        yield machine


@pytest.fixture
def windowed() -> Iterator[Machine]:
    with Machine(Layout.WINDOW) as machine:
        machine.do(d.ctx_create())
        yield machine


def make(machine: Machine, resource: int, size: int, pattern: int | None = None) -> bytes:
    """Makes a host blob, full of a pattern of its own; returns that."""
    pattern = resource * 0x01010101 if pattern is None else pattern
    machine.all(
        d.create_blob(resource, size),
        d.ctx_attach(resource),
        d.submit(d.fill(resource, 0, size, pattern)),
    )
    return pattern.to_bytes(4, "little") * (size // 4)


@pytest.mark.parametrize("size", [PAGE, BIG])
def test_a_blob_touched_before_it_is_mapped_keeps_its_bytes(machine: Machine, size: int) -> None:
    data = make(machine, 1, size)
    machine.do(d.map_blob(1, 2 * PAGE))
    assert machine.bar.read(2 * PAGE, size) == data
    assert machine.bytes_of(1) == data


@pytest.mark.parametrize("size", [PAGE, BIG])
def test_guest_and_engine_see_the_same_bytes(machine: Machine, size: int) -> None:
    machine.all(d.create_blob(1, size), d.ctx_attach(1), d.map_blob(1, PAGE))
    assert machine.bar.read(PAGE, size) == bytes(size)
    noise = random_bytes(size)
    machine.bar.write(PAGE, noise)
    assert machine.bytes_of(1) == noise
    machine.do(d.submit(d.fill(1, 5, 7, 0xAABBCCDD)))
    assert machine.bar.read(PAGE, 16) == noise[:5] + b"\xdd\xcc\xbb\xaa\xdd\xcc\xbb" + noise[12:16]


def test_a_blob_is_mapped_once_only(machine: Machine) -> None:
    data = make(machine, 1, PAGE)
    machine.do(d.map_blob(1, 0))
    for offset in (0, PAGE, 8 * PAGE):
        with refused(INVALID):
            machine.do(d.map_blob(1, offset))
    assert machine.bar.read(0, PAGE) == data
    machine.do(d.unmap_blob(1))
    with refused(INVALID):
        machine.do(d.unmap_blob(1))
    machine.do(d.map_blob(1, 0))
    assert machine.bar.read(0, PAGE) == data


def test_mapped_blobs_do_not_overlap(machine: Machine) -> None:
    data = make(machine, 1, 4 * PAGE)
    machine.do(d.map_blob(1, 4 * PAGE))
    make(machine, 2, 3 * PAGE)
    make(machine, 3, 12 * PAGE)
    for resource, offset in ((2, 2), (2, 4), (2, 5), (2, 7), (3, 0)):
        with refused(INVALID):
            machine.do(d.map_blob(resource, offset * PAGE))
    assert machine.bar.read(4 * PAGE, 4 * PAGE) == data
    for resource, offset in ((2, 1), (3, 8)):
        machine.do(d.map_blob(resource, offset * PAGE))
    assert machine.bar.read(4 * PAGE, 4 * PAGE) == data
    assert machine.bar.read(3 * PAGE, 4) == b"\2" * 4


@pytest.mark.parametrize("size", [PAGE, BIG])
def test_a_new_blob_at_a_reused_offset_reads_zeros(machine: Machine, size: int) -> None:
    for _ in range(3):
        machine.all(d.create_blob(1, size), d.map_blob(1, PAGE))
        assert machine.bar.read(PAGE, size) == bytes(size)
        machine.bar.write(PAGE, random_bytes(size))
        machine.do(d.unref(1))  # while it is mapped


def test_a_blob_destroyed_while_mapped_is_unmapped(machine: Machine) -> None:
    used = machine.used
    make(machine, 1, PAGE)
    machine.all(d.map_blob(1, PAGE), d.unref(1))
    assert machine.used == used
    if machine.spec.layout is Layout.PER_BLOB:
        assert not machine.bar.mappings
    else:
        assert machine.bar.read(PAGE, PAGE) == bytes(PAGE)
    make(machine, 2, 2 * PAGE)
    machine.do(d.map_blob(2, PAGE))
    with refused(ResponseType.ERR_INVALID_RESOURCE_ID):
        machine.do(d.unmap_blob(1))


@pytest.mark.parametrize("size", [PAGE, BIG])
@pytest.mark.parametrize("offset", [PAGE, 2 * PAGE, BIG + PAGE, 2 * BIG])
def test_a_blob_mapped_elsewhere_keeps_its_bytes(machine: Machine, size: int, offset: int) -> None:
    machine.all(d.create_blob(1, size), d.map_blob(1, PAGE))
    noise = random_bytes(size)
    machine.bar.write(PAGE, noise)
    used = machine.used
    machine.do(d.unmap_blob(1))
    assert machine.bytes_of(1) == noise
    machine.do(d.map_blob(1, offset))
    assert machine.bar.read(offset, size) == noise
    assert machine.used == used


def test_the_window_is_mapped_once(windowed: Machine) -> None:
    assert not windowed.bar.mappings
    for resource in range(1, 9):
        make(windowed, resource, PAGE)
        windowed.do(d.map_blob(resource, resource * PAGE))
        assert [(at, size) for at, (size, _) in windowed.bar.mappings.items()] == [(0, WINDOW)]


def test_what_a_guest_scribbles_between_blobs_is_in_no_blob(windowed: Machine) -> None:
    windowed.all(d.create_blob(1, PAGE), d.map_blob(1, 0))
    windowed.bar.write(0, random_bytes(WINDOW))
    windowed.all(d.create_blob(2, BIG), d.map_blob(2, BIG))
    assert windowed.bar.read(BIG, BIG) == bytes(BIG)
    data = make(windowed, 3, PAGE)
    windowed.do(d.map_blob(3, PAGE))
    assert windowed.bar.read(PAGE, PAGE) == data
    windowed.do(d.unref(1))
    assert windowed.bar.read(0, PAGE) == bytes(PAGE)


@pytest.mark.parametrize("size", [2 * PAGE, BIG])
def test_parked_blobs_that_are_displaced_keep_their_bytes(windowed: Machine, size: int) -> None:
    noise = {}
    for resource in (1, 2, 3):
        at = resource * size
        windowed.all(d.create_blob(resource, size), d.ctx_attach(resource))
        windowed.do(d.map_blob(resource, at))
        noise[resource] = random_bytes(size, resource)
        windowed.bar.write(at, noise[resource])
    used = windowed.used
    windowed.all(d.unmap_blob(1), d.unmap_blob(2), d.unmap_blob(3))
    assert windowed.used == used  # parked costs nothing more
    windowed.all(d.create_blob(4, size), d.map_blob(4, size + size // 2))  # across the first two
    assert windowed.bar.read(size + size // 2, size) == bytes(size)
    assert windowed.used >= used + 2 * size
    for resource, data in noise.items():
        assert windowed.bytes_of(resource) == data
    windowed.do(d.submit(d.fill(1, 0, 4, 0)))  # where it is now
    noise[1] = bytes(4) + noise[1][4:]
    windowed.all(d.unref(4), d.map_blob(1, 2 * size), d.map_blob(2, 0), d.map_blob(3, 3 * size))
    assert windowed.bar.read(2 * size, size) == noise[1]
    assert windowed.bar.read(0, size) == noise[2]
    assert windowed.bar.read(3 * size, size) == noise[3]
    for resource in noise:
        windowed.do(d.unref(resource))
    windowed.do(d.ctx_destroy())
    assert windowed.used == windowed.empty


def test_a_displaced_blob_waits_for_its_work(windowed: Machine) -> None:
    make(windowed, 1, PAGE)
    windowed.all(d.map_blob(1, 0), d.unmap_blob(1), d.create_blob(2, PAGE))
    end_work = windowed.hold(d.submit(d.fill(1, 0, PAGE, 0x77777777)))
    mapping = windowed.start(d.map_blob(2, 0))
    mapping.send(None)  # stands still until the work is done
    assert windowed.executor.waited_for == [1]
    end_work()
    finish(mapping)
    assert windowed.bytes_of(1) == b"\x77" * PAGE
    assert windowed.bar.read(0, PAGE) == bytes(PAGE)


def test_work_on_a_blob_is_done_before_the_blob_moves(machine: Machine) -> None:
    make(machine, 1, PAGE)
    machine.do(d.map_blob(1, 0))
    for number, command in enumerate((d.unmap_blob(1), d.map_blob(1, PAGE), d.unmap_blob(1))):
        end_work = machine.hold(d.submit(d.fill(1, 0, PAGE, number)))
        waiting = machine.start(command)
        waiting.send(None)
        end_work()
        data = number.to_bytes(4, "little") * (PAGE // 4)
        assert machine.bytes_of(1) == data
        finish(waiting)
        assert machine.bytes_of(1) == data


def test_no_memory_to_displace_for_is_an_error_that_loses_nothing() -> None:
    with Machine(limit=WINDOW + 4 * BIG) as machine:
        machine.do(d.ctx_create())
        noise = {}
        for resource in (1, 2, 3):
            machine.all(d.create_blob(resource, BIG), d.map_blob(resource, (resource - 1) * BIG))
            noise[resource] = random_bytes(BIG, resource)
            machine.bar.write((resource - 1) * BIG, noise[resource])
            machine.do(d.unmap_blob(resource))
        for resource in (4, 5, 6):  # bytes of their own, which leave too little
            make(machine, resource, BIG)
        with refused(ResponseType.ERR_OUT_OF_MEMORY):
            machine.do(d.map_blob(4, 0))
        for resource, data in noise.items():
            assert machine.bytes_of(resource) == data
        assert machine.bytes_of(4) == b"\4" * BIG
        machine.all(d.unref(5), d.unref(6), d.map_blob(4, 0))
        assert machine.bar.read(0, BIG) == b"\4" * BIG
        for resource, data in noise.items():
            assert machine.bytes_of(resource) == data


def test_a_vmm_that_does_not_map_is_an_error_that_loses_nothing(machine: Machine) -> None:
    data = make(machine, 1, PAGE)
    used = machine.used
    machine.bar.refusing = True
    with refused(UNSPEC):
        machine.do(d.map_blob(1, PAGE))
    assert machine.used == used
    with refused(INVALID):
        machine.do(d.unmap_blob(1))
    machine.bar.refusing = False
    machine.do(d.map_blob(1, PAGE))
    assert machine.bar.read(PAGE, PAGE) == data


def test_a_vmm_that_does_not_unmap_still_has_the_blob() -> None:
    with Machine(Layout.PER_BLOB) as machine:
        machine.do(d.ctx_create())
        data = make(machine, 1, PAGE)
        machine.do(d.map_blob(1, PAGE))
        make(machine, 2, PAGE)
        machine.bar.refusing = True
        with refused(UNSPEC):
            machine.do(d.unmap_blob(1))
        machine.bar.refusing = False
        assert machine.bar.read(PAGE, PAGE) == data
        with refused(INVALID):  # the guest still sees blob 1 there
            machine.do(d.map_blob(2, PAGE))
        machine.do(d.unmap_blob(1))
        machine.do(d.map_blob(2, PAGE))
        assert machine.bar.read(PAGE, PAGE) == b"\2" * PAGE


def test_a_blob_that_the_vmm_keeps_is_not_given_back() -> None:
    # Its pages live for as long as the VMM has them: else the limit would bound nothing.
    with Machine(Layout.PER_BLOB) as machine:
        machine.do(d.ctx_create())
        make(machine, 1, BIG)
        machine.do(d.map_blob(1, 0))
        used = machine.used
        machine.bar.refusing = True
        with refused(UNSPEC):
            machine.do(d.unref(1))
        assert machine.used >= used - PAGE
        for command in (d.map_blob(1, 0), d.map_blob(1, BIG), d.unmap_blob(1), d.unref(1)):
            with suppress(VgpudError):  # and nothing else
                machine.do(command)
        machine.bar.refusing = False
        machine.reset()
        assert machine.used == machine.empty


SLOTS = 6


@dataclass
class Blob:
    """What the model knows of a blob; `parked` is where it was last mapped."""

    data: bytes
    size: int
    at: int | None = None
    parked: int | None = None


operations = st.tuples(
    st.sampled_from(["create", "map", "map", "map", "unmap", "unref", "guest", "fill", "scribble"]),
    st.integers(1, 5),  # the resource
    st.integers(0, SLOTS - 1),  # the page
    st.integers(1, 3),  # pages
)


def overlaps(at: int | None, size: int, other: int, other_size: int) -> bool:
    return at is not None and at < other + other_size and other < at + size


@pytest.mark.parametrize("layout", Layout)
@given(st.lists(operations, max_size=40))
@settings(max_examples=80, deadline=None)
def test_blobs_are_their_own_whatever_happens(
    layout: Layout, steps: list[tuple[str, int, int, int]]
) -> None:
    with Machine(layout, window=64 * KIB, limit=LIMIT) as machine:
        machine.do(d.ctx_create())
        blobs: dict[int, Blob] = {}
        for number, (what, resource, page, pages) in enumerate(steps):
            blob, offset, size = blobs.get(resource), page * PAGE, pages * PAGE
            noise = random_bytes(size, number)
            if blob is None:
                if what == "create":
                    machine.all(d.create_blob(resource, size), d.ctx_attach(resource))
                    blobs[resource] = Blob(bytes(size), size)
            elif what == "map":
                free = blob.at is None and not any(
                    overlaps(other.at, other.size, offset, blob.size) for other in blobs.values()
                )
                if not free:
                    with refused(INVALID):
                        machine.do(d.map_blob(resource, offset))
                    continue
                machine.do(d.map_blob(resource, offset))
                for other in blobs.values():
                    if overlaps(other.parked, other.size, offset, blob.size):
                        other.parked = None
                blob.at = blob.parked = offset
            elif what == "unmap" and blob.at is not None:
                machine.do(d.unmap_blob(resource))
                blob.at = None
            elif what == "unref":
                machine.do(d.unref(resource))
                del blobs[resource]
            elif what == "guest" and blob.at is not None:
                blob.data = noise[: blob.size].ljust(blob.size, b"\1")
                machine.bar.write(blob.at, blob.data)
            elif what == "fill":
                machine.do(d.submit(d.fill(resource, 0, blob.size, number)))
                blob.data = number.to_bytes(4, "little") * (blob.size // 4)
            elif what == "scribble" and layout is Layout.WINDOW and machine.bar.mappings:
                parked = [(other.parked, other.size) for other in blobs.values()]
                for at in range(offset, offset + size, PAGE):
                    if not any(overlaps(start, length, at, PAGE) for start, length in parked):
                        machine.bar.write(at, noise[:PAGE])
            for name, one in blobs.items():
                assert machine.bytes_of(name) == one.data
                if one.at is not None:
                    assert machine.bar.read(one.at, one.size) == one.data
        for resource in blobs:
            machine.do(d.unref(resource))
        machine.do(d.ctx_destroy())
        assert machine.used == machine.empty
        assert layout is Layout.WINDOW or not machine.bar.mappings


def test_blobs_with_a_file_each_are_so_many_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(per_blob_layout, "MAX_BLOBS", 3)
    with Machine(Layout.PER_BLOB) as machine:
        machine.all(d.ctx_create(), *(d.create_blob(blob, PAGE) for blob in (1, 2, 3)))
        with refused(ResponseType.ERR_OUT_OF_MEMORY):
            machine.do(d.create_blob(4, PAGE))
        machine.all(d.unref(2), d.create_blob(4, PAGE))
