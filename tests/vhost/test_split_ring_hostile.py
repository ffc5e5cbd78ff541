"""The device's side of a split ring, against drivers that break the rules or use them all."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.vhost.ring_model import (
    ENTRY,
    GPA,
    INDIRECT,
    NEXT,
    RAM_SIZE,
    TURN,
    WRITE,
    Descriptor,
    MalformedError,
    ModelDriver,
    Ram,
    meaning,
    push,
)
from vgpud.errors import RingError
from vgpud.vhost.split_ring import F_EVENT_IDX, F_INDIRECT_DESC, MAX_INDIRECT, Chain, SplitRing

BOTH = F_EVENT_IDX | F_INDIRECT_DESC


def ring_of(ram: Ram, *heads: int, features: int = BOTH, base: int = 0) -> SplitRing:
    """A ring in which a driver has made `heads` available, whatever they are."""
    for position, head in enumerate(heads):
        ram.store(ram.avail + 4 + 2 * ((base + position) % ram.num), head)
    ram.store(ram.avail + 2, base + len(heads))
    return SplitRing(ram.views(), ram, base=base, features=features)


TABLE = 0x8000
"""Where the tests below have an indirect table, bytes into memory."""


def table(descriptors: list[Descriptor]) -> Descriptor:
    return (GPA + TABLE, len(descriptors) * ENTRY.size, INDIRECT, 0)


IN, OUT = (0x10, 1, NEXT, 1), (0x20, 2, WRITE, 0)
DEEP = (GPA + TABLE, 16, INDIRECT, 0)

# The queue's descriptors, those of the indirect table, and what is said about them.
MALFORMED = {
    "a loop of one": ([(0, 1, NEXT, 0)], [], "loop"),
    "a loop of four": ([(0, 1, NEXT, at) for at in (1, 2, 3, 0)], [], "loop"),
    "a loop behind the head": ([(0, 1, NEXT, at) for at in (1, 2, 1)], [], "loop"),
    "next is one too far": ([(0, 1, NEXT, 4)], [], "next is 4"),
    "next is far off": ([(0, 1, NEXT, 0xFFFF)], [], "next is 65535"),
    "written, then read": ([(0, 1, NEXT | WRITE, 1), (0, 1, 0, 0)], [], "to be read, after"),
    "an empty table": ([(GPA + TABLE, 0, INDIRECT, 0)], [], "table of 0 bytes"),
    "half a descriptor": ([(GPA + TABLE, 24, INDIRECT, 0)], [IN, OUT], "table of 24 bytes"),
    "less than one": ([(GPA + TABLE, 15, INDIRECT, 0)], [OUT], "table of 15 bytes"),
    "a table of 4 GiB": ([(GPA, (1 << 32) - 16, INDIRECT, 0)], [], "table of 4294967280 bytes"),
    "one more than may be": (
        [(GPA, (MAX_INDIRECT + 1) * ENTRY.size, INDIRECT, 0)],
        [],
        f"table of {(MAX_INDIRECT + 1) * ENTRY.size} bytes",
    ),
    "a table nowhere": ([(GPA - 16, 32, INDIRECT, 0)], [], "indirect table: "),
    "a table over the end": ([(GPA + RAM_SIZE - 16, 32, INDIRECT, 0)], [], "indirect table: "),
    "a table that wraps": ([((1 << 64) - 16, 32, INDIRECT, 0)], [], "indirect table: "),
    "a table with a next": ([(GPA + TABLE, 16, INDIRECT | NEXT, 1), OUT], [OUT], "INDIRECT"),
    "a table in a table": ([DEEP], [DEEP], "INDIRECT"),
    "a table behind one": ([table([IN, DEEP])], [IN, DEEP], "INDIRECT"),
    "a loop in a table": ([table([IN, IN])], [IN, (0, 0, NEXT, 0)], "loop"),
    "next out of a table": ([table([IN]), OUT], [IN], "next is 1 in a table of 1"),
    "written, then read in a table": (
        [table([IN, OUT])],
        [(0, 1, NEXT | WRITE, 1), (0, 1, 0, 0)],
        "to be read, after",
    ),
}


@pytest.mark.parametrize(("queue", "inner", "reason"), MALFORMED.values(), ids=MALFORMED)
def test_a_malformed_chain_is_a_ring_error(
    queue: list[Descriptor], inner: list[Descriptor], reason: str
) -> None:
    ram = Ram(4)
    ram.describe(0, queue)
    ram.describe(TABLE, inner)
    ring = ring_of(ram, 0)
    with pytest.raises(RingError, match=reason):
        ring.pop()
    with pytest.raises(MalformedError):
        meaning(ram, 0, indirect=True)


@pytest.mark.parametrize("head", [4, 5, 0x8000, 0xFFFF])
def test_a_head_outside_of_the_queue(head: int) -> None:
    with pytest.raises(RingError, match=f"head {head}"):
        ring_of(Ram(4), head).pop()


@pytest.mark.parametrize("base", [0, 3, TURN - 2, TURN - 1])
@pytest.mark.parametrize("ahead", [5, 6, TURN // 2, TURN - 1])
def test_an_available_index_too_far_ahead(base: int, ahead: int) -> None:
    ram = Ram(4)
    ram.store(ram.avail + 2, base + ahead)
    with pytest.raises(RingError, match=f"{ahead} entries ahead"):
        SplitRing(ram.views(), ram, base=base).pop()


@pytest.mark.parametrize("base", [0, TURN - 2])
def test_a_full_queue_is_not_too_far_ahead(base: int) -> None:
    ram = Ram(4)
    ram.describe(0, [(at, 1, 0, 0) for at in range(4)])
    ram.store(ram.used + 2, base)
    ring = ring_of(ram, 3, 1, 2, 0, base=base)
    chains = [ring.pop() for _ in range(5)]
    assert [chain and chain.head for chain in chains] == [3, 1, 2, 0, None]


def test_indirect_takes_effect_only_if_negotiated() -> None:
    ram = Ram(1)
    ram.describe(0, [table([OUT])])
    ram.describe(TABLE, [OUT])
    with pytest.raises(RingError, match="not negotiated"):
        ring_of(ram, 0, features=F_EVENT_IDX).pop()
    assert ram.reads == []
    assert ring_of(ram, 0).pop() == Chain(0, (), ((0x20, 2),))


def test_a_table_may_be_longer_than_the_queue_and_lie_anywhere() -> None:
    ram = Ram(1)
    entries = [(at, at, NEXT, at + 1) for at in range(700)]
    ram.describe(TABLE + 1, [*entries, (1, 2, WRITE, 0)])
    # 2.7.5.3.2: the WRITE flag of the descriptor that refers to a table is ignored.
    ram.describe(0, [(GPA + TABLE + 1, 701 * ENTRY.size, INDIRECT | WRITE, 0xFFFF)])
    chain = ring_of(ram, 0).pop()
    assert chain == Chain(0, tuple((at, at) for at in range(700)), ((1, 2),))


def test_normal_descriptors_may_come_before_a_table() -> None:
    # 2.7.5.3.2: "The device MUST handle the case of zero or more normal chained descriptors
    # followed by a single descriptor with flags&VIRTQ_DESC_F_INDIRECT."
    ram = Ram(4)
    ram.describe(0, [(1, 2, NEXT, 2), (0, 0, 0, 0), (3, 4, NEXT, 3), table([IN, OUT])])
    ram.describe(TABLE, [IN, OUT])
    assert ring_of(ram, 0).pop() == Chain(0, ((1, 2), (3, 4), (0x10, 1)), ((0x20, 2),))


def test_a_chain_that_was_refused_is_still_the_next() -> None:
    ram = Ram(2)
    ring = ring_of(ram, 7)
    for _ in range(2):
        with pytest.raises(RingError):
            ring.pop()
    assert ring.indices.next_avail == 0


def test_event_idx_off_leaves_its_words_alone() -> None:
    ram = Ram(2)
    ram.describe(0, [OUT])
    ring = ring_of(ram, 0, features=0)
    ram.store(ram.avail_event, 0xABCD)
    ram.store(ram.used_event, 0x1234)  # says no, if it is read
    assert ring.pop()
    ring.disable_notifications()
    push(ring, 0, 2)
    assert not ring.enable_notifications()
    assert ring.should_notify()
    assert ram.load(ram.avail_event) == 0xABCD


def test_with_event_idx_a_device_that_is_busy_is_not_kicked() -> None:
    ram = Ram(4)
    driver = ModelDriver(ram, base=TURN - 1, event_idx=True)
    ring = SplitRing(ram.views(), ram, base=TURN - 1, features=BOTH)
    assert not ring.enable_notifications()
    wanted = []
    for _ in range(4):
        driver.submit([(1, 2, False)], 1)
        wanted.append(driver.wants_kick())
        ring.disable_notifications()
        assert ring.pop()
    assert wanted == [True, False, False, False]


def test_event_idx_on_leaves_the_flags_alone() -> None:
    # 2.7.10: a device that has EVENT_IDX must set the flags to 0, and not look at the driver's.
    ram = Ram(2)
    ram.describe(0, [OUT])
    ring = ring_of(ram, 0)
    ram.store(ram.avail, 1)  # says no, if it is read
    assert ring.pop()
    ring.disable_notifications()
    assert ram.load(ram.used) == 0
    push(ring, 0, 2)
    assert ring.should_notify()
    assert not ring.enable_notifications()
    assert ram.load(ram.used) == 0


def test_a_ring_taken_up_again_goes_on_where_the_used_index_is() -> None:
    ram = Ram(4)
    ram.store(ram.used + 2, 7)
    ram.describe(0, [OUT])
    ring = ring_of(ram, 0, base=9)
    assert ring.pop()
    push(ring, 0, 1)
    assert ram.load(ram.used + 2) == 8
    assert ram.views().used[3].item() == (0, 1)


NUMBERS = st.integers(0, 5) | st.just(0xFFFF)
PLACES = st.sampled_from([GPA + TABLE, GPA, GPA + RAM_SIZE - 16, (1 << 64) - 1])
LENGTHS = st.sampled_from([16, 32, 48, 0, 15, (1 << 32) - 16])
# Of noise alone next to nothing is a chain, so half of it is what chains are made of.
USUAL = st.sampled_from(
    [(0x10, 1, NEXT, at) for at in range(4)]
    + [(0x20, 2, WRITE | NEXT, at) for at in range(4)]
    + [(0x30, 3, WRITE, 0), (0x40, 0, 0, 0)]
    + [(GPA + TABLE, 16 * entries, INDIRECT, 0) for entries in range(1, 4)]
)
DESCRIPTORS = USUAL | st.tuples(PLACES, LENGTHS, st.integers(0, 7), NUMBERS)


@given(
    queue=st.lists(USUAL, min_size=4, max_size=4) | st.lists(DESCRIPTORS, min_size=4, max_size=4),
    inner=st.lists(USUAL, min_size=2, max_size=4) | st.lists(DESCRIPTORS, max_size=4),
    head=st.integers(0, 3) | NUMBERS,
    indirect=st.sampled_from([True, True, False]),
)
@settings(max_examples=1000, deadline=None)
def test_whatever_a_guest_writes_is_a_chain_or_a_ring_error(
    queue: list[Descriptor], inner: list[Descriptor], head: int, indirect: bool
) -> None:
    ram = Ram(4)
    ram.describe(0, queue)
    ram.describe(TABLE, inner)
    try:
        expected = Chain(head, *meaning(ram, head, indirect=indirect))
    except MalformedError:
        expected = None
    ring = ring_of(ram, head, features=F_INDIRECT_DESC if indirect else 0)
    try:
        chain = ring.pop()
    except RingError:
        chain = None
    assert chain == expected
    assert len(ram.reads) <= 1
    assert ring.indices.next_avail == (expected is not None)


@given(noise=st.binary(min_size=400, max_size=400), base=st.integers(0, TURN - 1))
@settings(max_examples=300, deadline=None)
def test_noise_raises_nothing_but_ring_errors(noise: bytes, base: int) -> None:
    ram = Ram(8)
    ram.bytes[: len(noise)] = memoryview(noise)
    ram.store(ram.avail + 2, base + 8)
    ring = SplitRing(ram.views(), ram, base=base, features=BOTH)
    try:
        while chain := ring.pop():
            push(ring, chain.head, 0)
            ring.should_notify()
    except RingError:
        pass
    assert (ring.indices.next_avail - base) % TURN <= 8
