"""SUBMIT_3D: every packet on every kind of resource against a model; bad ones write nothing."""

from __future__ import annotations

import tracemalloc
import zlib
from collections.abc import Coroutine, Iterator
from struct import pack

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from tests.gpu import driver as d
from tests.gpu.machine import HIGH, LOW, NEXT, PAGE, WINDOW, Machine, random_bytes, refused
from vgpud.coherency.slot_policy import Layout
from vgpud.gpu.wire import commands, dma
from vgpud.gpu.wire.protocol import BlobMem, ResourceId, ResponseType
from vgpud.native.overlap import PLACE

INVALID = ResponseType.ERR_INVALID_PARAMETER
NO_RESOURCE = ResponseType.ERR_INVALID_RESOURCE_ID
U64 = (1 << 64) - 1
SIZE = 2 * PAGE
GUEST_PAGES = ((HIGH + 3, 1000), (NEXT - 500, 1001), (LOW, 0), (LOW + 8, 2 * PAGE))

# Resources by what they are: in the window, parked in it, outside, with a guest side, in guest
# memory, and an image.
MAPPED, PARKED, PRIVATE, BOTH, GUEST, IMAGE, APART = range(1, 8)
ALL = (MAPPED, PARKED, PRIVATE, BOTH, GUEST, IMAGE)


def populate(machine: Machine) -> dict[int, NDArray[np.uint8]]:
    """Makes one resource of every sort, attached but for the last; returns their bytes."""
    machine.all(
        d.ctx_create(),
        d.create_blob(MAPPED, SIZE),
        d.map_blob(MAPPED, PAGE),
        d.create_blob(PARKED, SIZE),
        d.map_blob(PARKED, 8 * PAGE),
        d.unmap_blob(PARKED),
        d.create_blob(PRIVATE, SIZE),
        d.create_blob(BOTH, SIZE, BlobMem.HOST3D_GUEST),
        d.guest_blob(GUEST, *GUEST_PAGES, size=SIZE),
        d.create_2d(IMAGE, 64, 32),
        d.create_blob(APART, SIZE),
    )
    model = {}
    for resource in ALL:
        machine.do(d.ctx_attach(resource))
        contents = machine.gpu.resources.get(ResourceId(resource)).contents()
        contents.write(0, random_bytes(contents.size, resource))
        model[resource] = contents.read(0, contents.size).copy()
    return model


@pytest.fixture(params=list(Layout))
def machine(request: pytest.FixtureRequest) -> Iterator[Machine]:
    with Machine(request.param) as machine:
        yield machine


def same(machine: Machine, model: dict[int, NDArray[np.uint8]]) -> bool:
    return all(machine.bytes_of(name) == data.tobytes() for name, data in model.items())


resources = st.sampled_from(ALL)
offsets = st.integers(0, 300) | st.sampled_from([SIZE - 100, PAGE - 1])
lengths = st.integers(0, 300) | st.sampled_from([PAGE, SIZE, SIZE - 300])

fills = st.builds(dma.Fill, resources, offsets, lengths, st.integers(0, 0xFFFFFFFF))
copies = st.builds(dma.Copy, resources, resources, offsets, offsets, lengths)
blits = st.builds(
    dma.Blit,
    resources,
    resources,
    st.integers(0, 9),
    st.integers(0, 90),
    st.integers(0, 90),
    offsets,
    offsets,
    st.integers(0, 12),
    st.integers(0, 30),
)
checksums = st.builds(dma.Crc32, resources, resources, offsets, lengths, offsets)
packets = st.just(dma.Nop()) | fills | copies | blits | checksums


def outside(data: NDArray[np.uint8], offset: int, length: int) -> bool:
    return offset + length > data.size


def outside_rect(
    data: NDArray[np.uint8], offset: int, stride: int, row_bytes: int, rows: int
) -> bool:
    length = stride * (rows - 1) + row_bytes if rows and row_bytes else 0
    return outside(data, offset, length) or bool(length and rows > 1 and stride < row_bytes)


def apply(model: dict[int, NDArray[np.uint8]], packet: dma.Packet) -> bool:
    """Does a packet on the model; False if it is a bad one."""
    match packet:
        case dma.Nop():
            return True
        case dma.Fill(resource, offset, length, pattern):
            dst = model[resource]
            if outside(dst, offset, length):
                return False
            repeated = np.frombuffer(pattern.to_bytes(4, "little") * (length // 4 + 1), np.uint8)
            dst[offset : offset + length] = repeated[:length]
        case dma.Copy(src_id, dst_id, src_offset, dst_offset, length):
            src, dst = model[src_id], model[dst_id]
            if outside(src, src_offset, length) or outside(dst, dst_offset, length):
                return False
            dst[dst_offset : dst_offset + length] = src[src_offset : src_offset + length].copy()
        case dma.Blit():
            src, dst = model[packet.src], model[packet.dst]
            rows, row_bytes = packet.height, packet.row_bytes
            if outside_rect(src, packet.src_offset, packet.src_stride, row_bytes, rows):
                return False
            if outside_rect(dst, packet.dst_offset, packet.dst_stride, row_bytes, rows):
                return False
            before = src.copy()
            for row in range(rows):
                at = packet.dst_offset + row * packet.dst_stride
                from_ = packet.src_offset + row * packet.src_stride
                dst[at : at + row_bytes] = before[from_ : from_ + row_bytes]
        case dma.Crc32(src_id, dst_id, src_offset, length, dst_offset):
            src, dst = model[src_id], model[dst_id]
            if outside(src, src_offset, length) or outside(dst, dst_offset, 4):
                return False
            value = zlib.crc32(src[src_offset : src_offset + length].tobytes())
            dst[dst_offset : dst_offset + 4] = np.frombuffer(value.to_bytes(4, "little"), np.uint8)
    return True


@pytest.mark.parametrize("layout", Layout)
@given(st.lists(packets, max_size=12))
@settings(max_examples=80, deadline=None)
def test_a_stream_does_what_the_model_does(layout: Layout, stream: list[dma.Packet]) -> None:
    with Machine(layout) as machine:
        model = populate(machine)
        bad = not all(apply(model, packet) for packet in stream)  # stops at the first bad one
        if bad:
            with refused(INVALID):
                machine.do(d.submit(*stream))
        else:
            machine.do(d.submit(*stream))
        assert same(machine, model)


GOOD = d.fill(MAPPED, 0, 16, 0x01010101)
LATER = d.fill(PRIVATE, 0, 16, 0x02020202)
BLIT = dma.Blit(ResourceId(MAPPED), ResourceId(PRIVATE), 4, 64, 64, 0, 0, 16, 4)
BAD: list[tuple[dma.Packet | bytes, ResponseType]] = [
    (d.fill(MAPPED, SIZE, 1, 0), INVALID),
    (d.fill(MAPPED, SIZE + 1, 0, 0), INVALID),
    (d.fill(MAPPED, U64, 2, 0), INVALID),
    (d.fill(MAPPED, 1, U64, 0), INVALID),
    (d.fill(GUEST, SIZE + 2 * PAGE, 1, 0), INVALID),
    (d.fill(APART, 0, 4, 0), NO_RESOURCE),
    (d.fill(99, 0, 4, 0), NO_RESOURCE),
    (d.fill(0, 0, 4, 0), NO_RESOURCE),
    (d.copy(MAPPED, PRIVATE, 1, 0, SIZE), INVALID),
    (d.copy(MAPPED, PRIVATE, 0, 1, SIZE), INVALID),
    (d.copy(MAPPED, PRIVATE, U64 - 3, 0, 8), INVALID),
    (d.copy(MAPPED, PRIVATE, 0, U64 - 3, 8), INVALID),
    (d.copy(APART, PRIVATE, 0, 0, 8), NO_RESOURCE),
    (d.copy(PRIVATE, APART, 0, 0, 8), NO_RESOURCE),
    (dma.Blit(BLIT.src, BLIT.dst, 4, 63, 64, 0, 0, 16, 4), INVALID),
    (dma.Blit(BLIT.src, BLIT.dst, 4, 64, 63, 0, 0, 16, 4), INVALID),
    (dma.Blit(BLIT.src, BLIT.dst, 4, 64, 64, 0, 0, 16, 129), INVALID),
    (dma.Blit(BLIT.src, BLIT.dst, 4, 64, 64, U64, 0, 16, 1), INVALID),
    (dma.Blit(BLIT.src, BLIT.dst, 4, 64, 64, 0, U64, 0, 1), INVALID),
    (d.blit(MAPPED, PRIVATE, *[0xFFFFFFFF] * 3, 0, 0, *[0xFFFFFFFF] * 2), INVALID),
    (dma.Crc32(BLIT.src, BLIT.dst, 0, SIZE + 1, 0), INVALID),
    (dma.Crc32(BLIT.src, BLIT.dst, 0, 4, SIZE - 3), INVALID),
    (dma.Crc32(BLIT.src, ResourceId(APART), 0, 4, 0), NO_RESOURCE),
    (pack("<I", 5 | 1 << 16), INVALID),
    (pack("<I", 0xFFFF | 1 << 16), INVALID),
    (pack("<I", 0), INVALID),
    (pack("<II", 0 | 2 << 16, 0), INVALID),
    (pack("<IIQQI", 1 | 7 << 16, MAPPED, 0, 4, 0), INVALID),
    (pack("<IIQQII", 1 | 8 << 16, MAPPED, 0, 4, 0, 1), INVALID),
    (pack("<IIQQI", 1 | 8 << 16, MAPPED, 0, 4, 0), INVALID),
    (b"\0", INVALID),
    (b"\0\0\1", INVALID),
]


@pytest.mark.parametrize(("bad", "code"), BAD, ids=lambda one: str(one)[:60])
def test_a_bad_packet_writes_nothing_and_ends_the_stream(
    machine: Machine, bad: dma.Packet | bytes, code: ResponseType
) -> None:
    model = populate(machine)
    good = dma.encode([GOOD])
    middle = bad if isinstance(bad, bytes) else dma.encode([bad])
    apply(model, GOOD)
    header = d.header(commands.Submit3D, d.CTX)
    with refused(code):
        machine.do(commands.Submit3D(header, good + middle + dma.encode([LATER])))
    assert same(machine, model)
    assert machine.bytes_of(APART) == bytes(SIZE)


def test_a_stream_has_no_more_packets_than_the_capset_says(machine: Machine) -> None:
    populate(machine)
    full = [dma.Nop()] * (dma.MAX_PACKETS - 1)
    machine.do(d.submit(*full, d.fill(MAPPED, 0, 4, 1)))
    assert machine.bar.read(PAGE, 4) == b"\1\0\0\0"
    with refused(INVALID):
        machine.do(d.submit(*full, d.fill(MAPPED, 0, 4, 2), d.fill(MAPPED, 0, 4, 3)))
    assert machine.bar.read(PAGE, 4) == b"\2\0\0\0"


def test_an_empty_stream_is_done(machine: Machine) -> None:
    populate(machine)
    machine.all(d.submit(), d.submit(dma.Nop()))


def test_a_packet_moves_no_more_than_the_capset_says() -> None:
    with Machine() as machine:
        populate(machine)
        pages = ((LOW, 256 << 10),) * 5  # more than the window, of few pages
        machine.all(d.guest_blob(20, *pages), d.ctx_attach(20), d.submit(d.fill(20, 0, WINDOW, 1)))
        with refused(INVALID):
            machine.do(d.submit(d.fill(20, 0, WINDOW + 1, 2)))
        assert machine.ram.read((LOW, 4)).tobytes() == b"\1\0\0\0"


def test_nothing_is_touched_before_the_work_is_done(machine: Machine) -> None:
    model = populate(machine)
    done = machine.hold(d.submit(d.copy(GUEST, MAPPED, 0, 0, SIZE)))
    assert same(machine, model)
    assert machine.executor.busy(ResourceId(MAPPED))
    assert machine.executor.busy(ResourceId(GUEST))
    assert not machine.executor.busy(ResourceId(PRIVATE))
    done()
    model[MAPPED] = model[GUEST][:SIZE]
    assert same(machine, model)


def test_the_same_pages_through_two_blobs(machine: Machine) -> None:
    machine.all(
        d.ctx_create(),
        d.guest_blob(1, (LOW, 3 * PAGE)),
        d.guest_blob(2, (LOW + 2 * PAGE, PAGE), (LOW + PAGE, PAGE), (LOW, PAGE)),
        d.ctx_attach(1),
        d.ctx_attach(2),
    )
    pages = machine.ram.read((LOW, 3 * PAGE)).reshape(3, PAGE)
    machine.do(d.submit(d.copy(1, 2, 0, 0, 3 * PAGE)))
    assert machine.ram.read((LOW, 3 * PAGE)).tobytes() == pages[::-1].tobytes()
    machine.do(d.submit(d.copy(1, 2, PAGE // 2, 100, 2 * PAGE)))
    source = pages[::-1].reshape(-1).copy()
    expected = source.reshape(3, PAGE)[::-1].reshape(-1).copy()
    expected[100 : 100 + 2 * PAGE] = source[PAGE // 2 : PAGE // 2 + 2 * PAGE]
    assert machine.bytes_of(2) == expected.tobytes()


def test_waiting_work_takes_little_memory_or_is_paid_for() -> None:
    # A ring holds hundreds of commands, each of thousands of packets, behind one that is slow.
    with Machine() as machine:
        populate(machine)
        stream = [d.copy(MAPPED, GUEST, 0, 0, 64)] * dma.MAX_PACKETS
        command = d.submit(*stream)
        machine.do(command)  # imports and caches
        used = machine.used
        tracemalloc.start()
        try:
            before = tracemalloc.get_traced_memory()[0]
            machine.hold(command)
            taken = tracemalloc.get_traced_memory()[0] - before
        finally:
            tracemalloc.stop()
        assert isinstance(command, commands.Submit3D)
        assert taken < 8 * len(command.data) + machine.used - used


def test_the_order_of_a_copy_between_scattered_pages_is_paid_for() -> None:
    # Each timeline may be in the middle of finding one.
    count, length = 20_000, 32
    pages = [(LOW + length * (7 * number % 8192), length) for number in range(count)]
    size = count * length
    with Machine() as machine:
        machine.all(d.ctx_create(), d.guest_blob(GUEST, *pages, size=size), d.ctx_attach(GUEST))
        used = machine.used
        halves = d.copy(GUEST, GUEST, 0, size // 2, size // 2), d.copy(GUEST, GUEST, 0, 0, size)
        for packets in (halves[:1], halves, [*halves] * 3):
            extents = count if len(packets) > 1 else count // 2
            finish = machine.hold(d.submit(*packets))
            charged = machine.used - used
            assert 3 * PLACE.itemsize * extents <= charged < 3 * PLACE.itemsize * extents + 8192
            finish()
            assert machine.used == used


def test_a_copy_whose_order_can_not_be_paid_for_ends_a_stream() -> None:
    count, length = 4096, 32
    pages = [(LOW + length * (7 * number % 8192), length) for number in range(count)]
    size = count * length
    with Machine(limit=WINDOW + 100 * count) as machine:
        machine.all(d.ctx_create(), d.guest_blob(GUEST, *pages, size=size), d.ctx_attach(GUEST))
        used = machine.used
        with refused(ResponseType.ERR_OUT_OF_MEMORY):
            machine.do(d.submit(d.fill(GUEST, 0, length, 7), d.copy(GUEST, GUEST, 0, 0, size)))
        assert machine.used == used
        assert machine.bytes_of(GUEST)[:length] == length // 4 * b"\7\0\0\0"


def test_a_short_stream_that_takes_long_to_check_lets_others_run(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("vgpud.gpu.dma_renderer.CHECKING", 0.0)
    with Machine() as machine:
        machine.do(d.ctx_create())
        used = machine.used
        outcome = machine.gpu.execute(d.submit(dma.Nop(), dma.Nop()))
        assert isinstance(outcome, Coroutine)
        assert machine.used == used
        outcome.close()
