"""The fast path of a ring, compared with `split_ring`: the same chains, requests, answers and
errors, whatever a driver wrote."""

from __future__ import annotations

import os
import struct
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from tests.support.ring_driver import Driver, GuestRam
from vgpud.errors import GuestAddressError, RingError
from vgpud.memory.addresses import Gpa, Uva
from vgpud.native import ring as native
from vgpud.unix.fd import Fd
from vgpud.vhost.memory_table import MemoryTable
from vgpud.vhost.ring import BUFFERS_AT_ONCE, CUT, REQUEST_LIMIT, Ring
from vgpud.vhost.ring_views import RingAddress, ring_views
from vgpud.vhost.split_ring import DESC as DESCRIPTOR
from vgpud.vhost.split_ring import (
    F_EVENT_IDX,
    F_INDIRECT_DESC,
    MAX_INDIRECT,
    BufferList,
    Chain,
    SplitRing,
)
from vgpud.vhost.wire.messages import MemRegion

SIZE = 1 << 16
NUM = 8
DESC = struct.Struct("<QIHH")
NEXT, WRITE, INDIRECT = 1, 2, 4
BOTH = F_EVENT_IDX | F_INDIRECT_DESC


class RingStand:
    """Two regions that touch, a ring of `NUM` in the first, and bytes that are not all the same."""

    def __init__(self) -> None:
        self.ram = GuestRam(((0, SIZE), (SIZE, SIZE)))
        self.driver = Driver(self.ram, 0, size=NUM, arena=1 << 12)
        self.memory = MemoryTable().with_regions(
            [
                (MemRegion(Gpa(r.gpa), r.size, Uva(r.uva), r.offset), Fd(os.dup(r.fd)))
                for r in self.ram.regions
            ]
        )
        self.ram.write(0x8000, bytes(range(256)) * 0x100)
        at = self.ram.user_address
        self.address = RingAddress(
            at(self.driver.desc), at(self.driver.avail), at(self.driver.used)
        )
        self.views = ring_views(self.memory, self.address, NUM)

    def ring(self, *, base: int = 0, features: int = 0, logged: bool = False) -> Ring:
        address = replace(self.address, log=0) if logged else self.address
        return Ring(self.memory, address, NUM, base=base, features=features)

    def offer(self, index: int, heads: list[int], ahead: int | None = None) -> None:
        """Makes heads available from an index on, and says there are `ahead`."""
        for position, head in enumerate(heads):
            slot = (index + position) % NUM
            self.ram.store_u16(self.driver.avail + 4 + 2 * slot, head)
        self.ram.store_u16(self.driver.avail + 2, index + (len(heads) if ahead is None else ahead))

    def used(self) -> bytes:
        return self.ram.read(self.driver.used, 6 + 8 * NUM)

    def close(self) -> None:
        self.driver.close()
        self.ram.close()


@contextmanager
def standing() -> Iterator[RingStand]:
    stand = RingStand()
    try:
        yield stand
    finally:
        stand.close()


# Addresses where something is: the border of the regions, their ends, the queue, tables.
ADDRESSES = st.sampled_from(
    [0x8000, 0x8010, 0x8100, SIZE - 8, SIZE, 2 * SIZE - 8, 2 * SIZE, (1 << 64) - 8, 0]
)
LENGTHS = st.sampled_from([0, 1, 8, 16, 24, 32, 48, 4095, 4096, 4097, 0xFFFFFFF0])
DESCRIPTORS = st.tuples(
    ADDRESSES,
    LENGTHS,
    st.sampled_from([0, NEXT, WRITE, NEXT, NEXT | WRITE, INDIRECT, INDIRECT | NEXT]),
    st.integers(0, NUM),
)


def in_python(stand: RingStand, ring: SplitRing) -> list[tuple[Chain, bytes] | type[Exception]]:
    """What the reference makes of all that is available."""
    found: list[tuple[Chain, bytes] | type[Exception]] = []
    try:
        while (chain := ring.pop()) is not None:
            cut = sum(length for _, length in chain.readable) > REQUEST_LIMIT
            request, left = b"", CUT if cut else REQUEST_LIMIT
            for address, length in chain.readable:
                if part := min(length, left):
                    request += stand.memory.read(address, part)
                    left -= part
            found.append((chain._replace(readable=(), cut=cut), request))
    except (RingError, GuestAddressError) as error:
        found.append(type(error))
    return found


def natively(ring: Ring) -> list[tuple[Chain, bytes] | type[Exception]]:
    found: list[tuple[Chain, bytes] | type[Exception]] = []
    try:
        while taken := ring.take():
            found += [(chain._replace(readable=()), request) for chain, request in taken]
    except (RingError, GuestAddressError) as error:
        found.append(type(error))
    return found


@given(
    table=st.lists(DESCRIPTORS, min_size=NUM, max_size=NUM),
    inner=st.lists(DESCRIPTORS, min_size=3, max_size=3),
    heads=st.lists(st.integers(0, NUM), max_size=NUM),
    base=st.sampled_from([0, 5, 0xFFFD]),
    ahead=st.sampled_from([None, None, None, NUM + 1]),
    features=st.sampled_from([0, F_INDIRECT_DESC, BOTH]),
)
@settings(max_examples=300, deadline=None)
def test_any_ring_is_taken_as_in_python(
    table: list[tuple[int, int, int, int]],
    inner: list[tuple[int, int, int, int]],
    heads: list[int],
    base: int,
    ahead: int | None,
    features: int,
) -> None:
    with standing() as stand:
        stand.ram.write(stand.driver.desc, b"".join(DESC.pack(*one) for one in table))
        stand.ram.write(0x8000, b"".join(DESC.pack(*one) for one in inner))
        stand.offer(base, heads, ahead)
        reference = SplitRing(stand.views, stand.memory, base=base, features=features)
        ring = stand.ring(base=base, features=features)
        expected = in_python(stand, reference)
        assert natively(ring) == expected
        assert ring.next_avail == reference.indices.next_avail


@given(
    pieces=st.lists(st.tuples(ADDRESSES, st.sampled_from([0, 1, 8, 24, 32])), max_size=3),
    response=st.binary(max_size=64),
    base=st.sampled_from([0, 0xFFFF]),
    features=st.sampled_from([0, F_EVENT_IDX]),
    event=st.integers(0, 3),
    flags=st.integers(0, 1),
)
@settings(max_examples=200, deadline=None)
def test_any_answer_is_written_as_in_python(
    pieces: list[tuple[int, int]],
    response: bytes,
    base: int,
    features: int,
    event: int,
    flags: int,
) -> None:
    chain = Chain(3, (), tuple(pieces))
    seen: list[tuple[bool | None, bytes | None, bytes]] = []
    for logged in (False, True):  # while it logs, a ring goes the way in Python
        with standing() as stand:
            stand.ram.store_u16(stand.driver.used + 2, base)
            stand.ram.store_u16(stand.driver.avail, flags)
            stand.ram.store_u16(stand.driver.avail + 4 + 2 * NUM, base + event)
            ring = stand.ring(features=features, logged=logged)
            try:
                ring.answer(chain, response)
            except GuestAddressError:
                seen.append((None, None, stand.used()))
                continue
            assert stand.ram.load_u16(stand.driver.used + 2) == base  # not before `publish`
            wanted = ring.publish()
            assert stand.ram.load_u16(stand.driver.used + 2) == (base + 1) & 0xFFFF
            seen.append((wanted, stand.ram.read(0x8000, 2 * SIZE - 0x8000), stand.used()))
            assert not ring.publish()
    assert seen[0] == seen[1]


def test_more_chains_than_a_batch_has_come_in_order() -> None:
    with standing() as stand:
        stand.ram.write(stand.driver.desc, DESC.pack(0x8000, 4096, 0, 0) * NUM)
        stand.offer(0, list(range(NUM)))
        ring = stand.ring()
        taken = natively(ring)
        assert taken == [(Chain(head, (), ()), stand.ram.read(0x8000, 4096)) for head in range(NUM)]
        assert ring.next_avail == NUM


def test_a_new_memory_table_holds_at_once() -> None:
    with standing() as stand:
        stand.ram.write(stand.driver.desc, DESC.pack(SIZE + 64, 8, 0, 0) * 2)
        ring = stand.ring()
        stand.offer(0, [0])
        assert len(ring.take()) == 1
        first = stand.ram.regions[0]
        region = MemRegion(Gpa(first.gpa), first.size, Uva(first.uva), first.offset)
        memory = stand.memory.with_regions([(region, Fd(os.dup(first.fd)))])
        ring.relocate(memory, stand.address)
        stand.offer(1, [1])
        with pytest.raises(GuestAddressError):
            ring.take()
        ring.answer(Chain(0, (), ((0x8000, 8),)), b"12345678")
        with pytest.raises(GuestAddressError):
            ring.answer(Chain(0, (), ((SIZE + 64, 8),)), b"12345678")


@pytest.mark.parametrize("long", [False, True])
def test_a_head_in_flight_is_not_taken_again(long: bool) -> None:
    """It would take memory without limit. The two ways to take a chain know of each other's."""
    with standing() as stand:
        ring = stand.ring()
        stand.ram.write(stand.driver.desc, DESC.pack(0x8000, 8, WRITE, 0) * NUM)
        if long:  # not for the fast path
            stand.ram.write(stand.driver.desc, DESC.pack(SIZE - 8, 16, WRITE, 0))
        stand.offer(0, [3, 0, 5])
        chains = {chain.head: chain for taken in iter(ring.take, []) for chain, _ in taken}
        assert [*chains] == [3, 0, 5]
        stand.offer(3, [1, 0, 2])
        assert [chain.head for chain, _ in ring.take()] == [1]
        for _ in range(2):
            with pytest.raises(RingError, match="head 0 is available again"):
                ring.take()
        ring.answer(chains[0], b"")
        assert [c.head for taken in iter(ring.take, []) for c, _ in taken] == [0, 2]
        ring.put_back([0, 2])
        assert [c.head for taken in iter(ring.take, []) for c, _ in taken] == [0, 2]


def test_heads_in_flight_are_known_to_the_next_ring() -> None:
    with standing() as stand:
        stand.ram.write(stand.driver.desc, DESC.pack(0x8000, 8, WRITE, 0) * NUM)
        in_flight = np.zeros(NUM, np.uint8)
        first = Ring(stand.memory, stand.address, NUM, features=0, in_flight=in_flight)
        stand.offer(0, [1, 2, 3])
        assert len(first.take()) == 3
        first.put_back([3])
        second = Ring(stand.memory, stand.address, NUM, base=2, features=0, in_flight=in_flight)
        assert [chain.head for chain, _ in second.take()] == [3]
        stand.offer(3, [2])
        with pytest.raises(RingError, match="head 2 is available again"):
            second.take()


def pieces(lengths: list[int], flags: int, at: int) -> list[tuple[int, int, int]]:
    """Buffers that do not touch, from an address on: address, length, flags."""
    places = at + np.concatenate(([0], np.cumsum(np.array(lengths) + 1)[:-1]))
    return [(int(place), length, flags) for place, length in zip(places, lengths, strict=True)]


def offer_table(stand: RingStand, buffers: list[tuple[int, int, int]]) -> None:
    """Makes a chain of buffers available, which has an indirect table."""
    at, last = SIZE + 0x4000, len(buffers) - 1
    entries = [
        DESC.pack(addr, length, flags | (NEXT if number < last else 0), number + 1)
        for number, (addr, length, flags) in enumerate(buffers)
    ]
    stand.ram.write(at, b"".join(entries))
    stand.ram.write(stand.driver.desc, DESC.pack(at, 16 * len(entries), INDIRECT, 0))
    stand.offer(0, [0])


@pytest.mark.parametrize("logged", [False, True])
def test_as_many_buffers_as_there_can_be(logged: bool) -> None:
    """Requests and responses in thousands of pieces: all of them count, and none takes long."""
    with standing() as stand:
        readable = pieces([1] * 1900, 0, 0x8000)
        offer_table(stand, readable + pieces([0, 1, 2] * 365, WRITE, SIZE - 500))
        ring = stand.ring(features=F_INDIRECT_DESC, logged=logged)
        [(chain, request)] = ring.take()
        assert request == stand.ram.read(0x8000, 3800)[::2]
        assert (len(chain.readable), len(chain.writable)) == (0, 1095)
        response = os.urandom(1000)
        ring.answer(chain, response)
        ring.publish()
        assert struct.unpack("<II", stand.used()[4:12]) == (0, 1000)
        written = b"".join(stand.ram.read(addr, length) for addr, length in chain.writable)
        assert written[:1000] == response


def test_a_chain_that_waits_takes_little_memory() -> None:
    with standing() as stand:
        offer_table(stand, pieces([1] * 1000, 0, 0x8000) + pieces([1] * 1000, WRITE, 0x8000))
        ring = stand.ring(features=F_INDIRECT_DESC)
        tracemalloc.start()
        taken = ring.take()
        size, _ = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert len(taken) == 1
        assert size < 1000 * 16 + 8192


def test_a_table_may_have_as_many_descriptors_as_the_queue() -> None:
    """2.7.5.3.1: not more; and this implementation takes 4096 from a smaller one."""
    num = 2 * MAX_INDIRECT
    ram = GuestRam(((0, 1 << 21),))
    driver = Driver(ram, 0, size=num, arena=4096)
    region = ram.regions[0]
    sent = MemRegion(Gpa(region.gpa), region.size, Uva(region.uva), region.offset)
    memory = MemoryTable().with_regions([(sent, Fd(os.dup(region.fd)))])
    at = ram.user_address
    address = RingAddress(at(driver.desc), at(driver.avail), at(driver.used))
    table = ram.alloc((num + 1) * 16)
    ram.write(table, b"".join(DESC.pack(table, 1, NEXT, one + 1) for one in range(num + 1)))
    ram.write(table + (num - 1) * 16, DESC.pack(table, 1, 0, 0))
    ram.write(driver.desc, DESC.pack(table, num * 16, INDIRECT, 0))
    ram.write(driver.desc + 16, DESC.pack(table, (num + 1) * 16, INDIRECT, 0))
    ring = Ring(memory, address, num, features=F_INDIRECT_DESC)
    driver.make_available(0, kick=False)
    driver.make_available(1, kick=False)
    [(chain, begin)] = ring.take()
    assert (len(chain.readable), len(begin)) == (num, BUFFERS_AT_ONCE)
    reading = ring.read_steps(chain, begin, num)
    assert sum(1 for _ in reading) == num // BUFFERS_AT_ONCE - 1
    with pytest.raises(RingError, match=f"table of {(num + 1) * 16} bytes"):
        ring.take()
    driver.close()
    ram.close()


@pytest.mark.parametrize("lengths", [[REQUEST_LIMIT + 1], [REQUEST_LIMIT, 1], [0xFFFFFFFF] * 3])
def test_a_request_that_is_too_long_is_the_devices_to_answer(lengths: list[int]) -> None:
    ram = GuestRam(((0, 1 << 33),))
    driver = Driver(ram, 0, size=NUM, arena=4096)
    region = ram.regions[0]
    sent = MemRegion(Gpa(region.gpa), region.size, Uva(region.uva), region.offset)
    memory = MemoryTable().with_regions([(sent, Fd(os.dup(region.fd)))])
    at = ram.user_address
    address = RingAddress(at(driver.desc), at(driver.avail), at(driver.used))
    begin = ram.alloc(CUT)
    ram.write(begin, bytes(range(256)) * (CUT // 256))
    for number, length in enumerate(lengths):
        ram.write(driver.desc + 16 * number, DESC.pack(begin, length, NEXT, number + 1))
    answer = ram.alloc(64)
    ram.write(driver.desc + 16 * len(lengths), DESC.pack(answer, 8, WRITE, 0))
    ring = Ring(memory, address, NUM, features=0)
    driver.make_available(0, kick=False)
    [(chain, request)] = ring.take()
    assert chain == Chain(0, (), ((answer, 8),), cut=True)
    assert request == ram.read(begin, CUT)
    ring.answer(chain, b"refused")
    assert ram.read(answer, 7) == b"refused"
    driver.close()
    ram.close()


@given(
    lengths=st.lists(st.integers(0, 9), max_size=12),
    begin=st.integers(0, 40),
    size=st.integers(1, 40),
    most=st.integers(1, 12),
)
def test_parts_of_buffers(lengths: list[int], begin: int, size: int, most: int) -> None:
    """They have the bytes in order; a part ends early only where it has `most` buffers."""
    buffers = BufferList.of(tuple((1000 * n, length) for n, length in enumerate(lengths)))
    every = [1000 * n + at for n, length in enumerate(lengths) for at in range(length)]
    part = buffers.part(begin, size, most)
    found = [address + at for address, length in part for at in range(length)]
    assert found == every[begin : begin + len(found)]
    assert len(part) <= most
    if len(found) < len(every[begin : begin + size]):
        assert len(part) == most
    assert all(length for _, length in part)


def test_a_poll_ends_at_once_where_a_chain_waits() -> None:
    with standing() as stand:
        ring = stand.ring()
        assert not ring.poll(0.0001)
        stand.offer(0, [0])
        assert ring.poll(0.9)


def test_a_place_must_be_one() -> None:
    regions = MemoryTable().regions()
    with pytest.raises(ValueError, match="a ring of 3"):
        fast_ring(3, 3, regions)
    with pytest.raises(ValueError, match="REGION"):
        fast_ring(4, 4, regions.view("<u8"))
    with pytest.raises(ValueError, match="in_flight must be 4 bytes"):
        fast_ring(4, 3, regions)
    walk = native.ChainWalk(4)
    with pytest.raises(ValueError, match="descriptor 2 in a table of 2"):
        walk.through(np.zeros(2, DESCRIPTOR), 2, indirect=False)


def fast_ring(num: int, heads: int, regions: NDArray[np.void]) -> native.FastRing:
    in_flight = np.zeros(heads, np.uint8)
    return native.FastRing(
        *(0, 0, 0, num), in_flight=in_flight, event_idx=True, indirect=True, regions=regions
    )
