"""Rings in mapped memory: each part where the specification has it, and never outside of memory."""

from __future__ import annotations

import mmap
import os
import struct
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest

from tests.support.ring_driver import Driver, GuestRam
from tests.vhost.ring_model import push
from vgpud.errors import RingError
from vgpud.memory.addresses import Gpa, Uva
from vgpud.unix.fd import Fd
from vgpud.vhost.memory_table import MemoryTable
from vgpud.vhost.ring_views import RingAddress, ring_views
from vgpud.vhost.split_ring import F_EVENT_IDX, MAX_QUEUE_SIZE, SplitRing
from vgpud.vhost.wire.messages import MemRegion

PAGE = mmap.PAGESIZE
SIZE = 1 << 20


@pytest.fixture
def ram() -> Iterator[GuestRam]:
    # Two regions that touch in the guest, but not at the front-end's addresses.
    ram = GuestRam(((0, SIZE), (SIZE, SIZE)))
    yield ram
    ram.close()


def shared(ram: GuestRam) -> MemoryTable:
    return MemoryTable().with_regions(
        [
            (MemRegion(Gpa(r.gpa), r.size, Uva(r.uva), r.offset), Fd(os.dup(r.fd)))
            for r in ram.regions
        ]
    )


def address_of(ram: GuestRam, driver: Driver) -> RingAddress:
    at = ram.user_address
    return RingAddress(at(driver.desc), at(driver.avail), at(driver.used))


@pytest.mark.parametrize("num", [1, 2, 64, 256])
def test_every_part_is_where_the_driver_has_it(ram: GuestRam, num: int) -> None:
    driver = Driver(ram, 0, size=num, arena=PAGE)
    views = ring_views(shared(ram), address_of(ram, driver), num)
    last = num - 1
    ram.write(driver.desc + 16 * last, struct.pack("<QIHH", 1 << 63 | 7, 1 << 31 | 5, 6, 9))
    ram.write(driver.avail, struct.pack("<HH", 0x0102, 0x0304))
    ram.write(driver.avail + 4 + 2 * last, struct.pack("<HH", 0x0506, 0x0708))
    ram.write(driver.used, struct.pack("<HH", 0x090A, 0x0B0C))
    ram.write(driver.used + 4 + 8 * num, struct.pack("<H", 0x0D0E))

    assert len(views.descriptors) == len(views.available) == len(views.used) == num
    assert views.descriptors[last].item() == (1 << 63 | 7, 1 << 31 | 5, 6, 9)
    assert views.available[last] == 0x0506
    words = (
        views.avail_flags,
        views.avail_idx,
        views.used_event,
        views.used_flags,
        views.used_idx,
        views.avail_event,
    )
    assert [word.load() for word in words] == [0x0102, 0x0304, 0x0708, 0x090A, 0x0B0C, 0x0D0E]

    views.used[last] = (0x11121314, 0x15161718)
    views.used_flags.store(0x2122)
    views.used_idx.store(0x2324)
    views.avail_event.store(0x2526)
    assert ram.read(driver.used + 4 + 8 * last, 10) == struct.pack(
        "<IIH", 0x11121314, 0x15161718, 0x2526
    )
    assert ram.read(driver.used, 4) == struct.pack("<HH", 0x2122, 0x2324)
    views.fence()


def test_a_driver_and_a_device_on_real_memory(ram: GuestRam) -> None:
    """More chains than 16 bits count, so that the indices wrap, with tables and without."""
    driver = Driver(ram, 0, size=8, indirect=False, arena=PAGE)
    driver._avail_idx = driver._decided_idx = driver._used_idx = 0xFFFC
    for index in (driver.avail + 2, driver.used + 2):
        ram.store_u16(index, 0xFFFC)
    memory = shared(ram)
    ring = SplitRing(
        ring_views(memory, address_of(ram, driver), 8), memory, base=0xFFFC, features=F_EVENT_IDX
    )
    for number in range(12):
        assert ring.pop() is None
        head = driver.submit(b"q%d" % number, 4)
        chain = ring.pop()
        assert chain is not None
        assert chain.head == head
        [request], [(answer, _)] = chain.readable, chain.writable
        assert memory.read(*request) == b"q%d" % number
        memory.write(answer, b"a%03d" % number)
        push(ring, head, 4)
        assert driver.wait(head, 0) == b"a%03d" % number
    assert ring.indices.next_avail == 8


def test_the_views_keep_the_memory_mapped(ram: GuestRam) -> None:
    driver = Driver(ram, 0, size=4, arena=PAGE)
    memory = shared(ram)
    views = ring_views(memory, address_of(ram, driver), 4)
    memory = memory.with_regions([])
    del memory
    ram.store_u16(driver.avail + 2, 0x4321)
    assert views.avail_idx.load() == 0x4321
    views.used[3] = (1, 2)
    assert ram.read(driver.used + 28, 8) == struct.pack("<II", 1, 2)


@pytest.mark.parametrize("num", [0, -1, 3, 5, 255, 257, MAX_QUEUE_SIZE * 2, (1 << 32) - 1])
def test_sizes_that_are_none(ram: GuestRam, num: int) -> None:
    uva = ram.regions[0].uva
    with pytest.raises(RingError, match=f"a queue of {num} descriptors"):
        ring_views(shared(ram), RingAddress(uva, uva, uva), num)


def test_the_largest_size(ram: GuestRam) -> None:
    uva = ram.regions[0].uva
    address = RingAddress(uva, uva + SIZE // 2, uva + SIZE // 8 * 5)
    views = ring_views(shared(ram), address, MAX_QUEUE_SIZE)
    assert len(views.descriptors) == MAX_QUEUE_SIZE == 32768


PARTS = [("desc", 16), ("avail", 2), ("used", 4)]


@pytest.mark.parametrize(("part", "align"), PARTS)
def test_alignment(ram: GuestRam, part: str, align: int) -> None:
    memory, uva = shared(ram), ram.regions[0].uva
    address = RingAddress(uva, uva + PAGE, uva + 2 * PAGE)
    for off in range(1, align):
        with pytest.raises(RingError, match=f"not aligned to {align}"):
            ring_views(memory, replace(address, **{part: uva + PAGE + off}), 4)
    ring_views(memory, replace(address, **{part: uva + PAGE + align}), 4)


def test_alignment_is_that_of_the_memory_too(ram: GuestRam) -> None:
    """A front-end that maps its file at an odd place has aligned addresses for what is not."""
    memory, uva = MemoryTable(), 0x5000_0000_0000
    region = MemRegion(Gpa(0), 16 * PAGE, Uva(uva), PAGE + 1)
    memory = memory.with_regions([(region, Fd(os.dup(ram.regions[0].fd)))])
    with pytest.raises(RingError, match="aligned"):
        ring_views(memory, RingAddress(uva, uva + PAGE, uva + 2 * PAGE), 4)


@pytest.mark.parametrize(
    ("part", "size"), [("desc", 16 * 8), ("avail", 6 + 2 * 8), ("used", 6 + 8 * 8)]
)
def test_every_part_is_in_memory_to_its_last_byte(ram: GuestRam, part: str, size: int) -> None:
    memory, region = shared(ram), ram.regions[0]
    address = RingAddress(region.uva, region.uva + PAGE, region.uva + 2 * PAGE)
    align = dict(PARTS)[part]
    # The last place where all of it is in memory, the event word behind the ring included.
    last = region.uva + (region.size - size) // align * align
    ring_views(memory, replace(address, **{part: last}), 8)
    outside = [
        last + align,  # goes on in what is the guest's next region, but not the front-end's
        region.uva + region.size,
        region.uva - align,
        0,
        (1 << 64) - 16,
    ]
    for bad in outside:
        with pytest.raises(RingError, match="no memory region"):
            ring_views(memory, replace(address, **{part: bad}), 8)


def test_addresses_are_the_front_ends_not_the_guests(ram: GuestRam) -> None:
    driver = Driver(ram, 0, size=4, arena=PAGE)
    with pytest.raises(RingError, match="no memory region"):
        ring_views(shared(ram), RingAddress(driver.desc, driver.avail, driver.used), 4)


def test_no_memory_no_ring() -> None:
    with pytest.raises(RingError, match="no memory region"):
        ring_views(MemoryTable(), RingAddress(0, 0, 0), 1)


def test_parts_may_lie_in_different_regions(ram: GuestRam) -> None:
    low, high = ram.regions
    views = ring_views(shared(ram), RingAddress(high.uva, low.uva, high.uva + PAGE), 4)
    views.used[0] = (3, 4)
    assert ram.read(SIZE + PAGE + 4, 8) == struct.pack("<II", 3, 4)
    assert not np.any(np.frombuffer(ram.read(0, PAGE), np.uint8))
