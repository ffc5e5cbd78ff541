"""The fast path of a ring, compared with `split_ring`: the same chains, requests, answers and
errors, whatever a driver wrote."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.ring_driver import Driver, GuestRam
from vgpud.errors import GuestAddressError, RingError
from vgpud.memory.addresses import Gpa, Uva
from vgpud.native import ring as native
from vgpud.unix.fd import Fd
from vgpud.vhost.memory_table import MemoryTable
from vgpud.vhost.ring import REQUEST_LIMIT, Ring
from vgpud.vhost.ring_views import RingAddress, ring_views
from vgpud.vhost.split_ring import F_EVENT_IDX, F_INDIRECT_DESC, Chain, SplitRing
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
            if sum(length for _, length in chain.readable) > REQUEST_LIMIT:
                raise RingError("too long")
            request = b"".join(stand.memory.read(*piece) for piece in chain.readable)
            found.append((chain._replace(readable=()), request))
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
        stand.ram.write(stand.driver.desc, DESC.pack(0x8000, 4096, 0, 0))
        stand.offer(0, [0] * NUM)
        ring = stand.ring()
        taken = natively(ring)
        assert taken == [(Chain(0, (), ()), stand.ram.read(0x8000, 4096))] * NUM
        assert ring.next_avail == NUM


def test_a_new_memory_table_holds_at_once() -> None:
    with standing() as stand:
        stand.ram.write(stand.driver.desc, DESC.pack(SIZE + 64, 8, 0, 0))
        ring = stand.ring()
        stand.offer(0, [0])
        assert len(ring.take()) == 1
        first = stand.ram.regions[0]
        region = MemRegion(Gpa(first.gpa), first.size, Uva(first.uva), first.offset)
        memory = stand.memory.with_regions([(region, Fd(os.dup(first.fd)))])
        ring.relocate(memory, stand.address)
        stand.offer(1, [0])
        with pytest.raises(GuestAddressError):
            ring.take()
        ring.answer(Chain(0, (), ((0x8000, 8),)), b"12345678")
        with pytest.raises(GuestAddressError):
            ring.answer(Chain(0, (), ((SIZE + 64, 8),)), b"12345678")


@pytest.mark.parametrize("answered", [0, 5])
def test_a_driver_has_no_more_chains_in_flight_than_descriptors(answered: int) -> None:
    """A head that is made available again before it is used would take memory without limit."""
    with standing() as stand:
        ring = stand.ring()
        stand.ram.write(stand.driver.desc, DESC.pack(0x8000, 8, WRITE, 0))
        stand.offer(0, [0] * 6)
        chains = [chain for chain, _ in ring.take()]
        assert len(chains) == 6
        for chain in chains[:answered]:
            ring.answer(chain, b"")
        ring.publish()
        stand.offer(6, [0] * (NUM - 6 + answered) + [0])
        with pytest.raises(RingError, match="8 chains are not answered"):
            list(iter(ring.take, []))


def test_a_poll_ends_at_once_where_a_chain_waits() -> None:
    with standing() as stand:
        ring = stand.ring()
        assert not ring.poll(0.0001)
        stand.offer(0, [0])
        assert ring.poll(0.9)


def test_a_place_must_be_one() -> None:
    regions = MemoryTable().regions()
    with pytest.raises(ValueError, match="a ring of 3"):
        native.FastRing(0, 0, 0, 3, event_idx=True, indirect=True, regions=regions)
    with pytest.raises(ValueError, match="REGION"):
        native.FastRing(*(0, 0, 0, 4), event_idx=True, indirect=True, regions=regions.view("<u8"))
