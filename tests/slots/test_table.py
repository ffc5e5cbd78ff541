"""The slot table: numbers, addresses, flags, and operations from one state to another."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vgpud.errors import HostError
from vgpud.memory.addresses import Gpa
from vgpud.slots.entries import Entry, Slot, SlotBacking, SlotUse
from vgpud.slots.table import (
    GPA_LIMIT,
    Change,
    DeleteSlot,
    Operation,
    SetSlot,
    SlotTable,
    inverse,
)
from vgpud.uapi.memslot import SlotFlag

PAGE = 4096
BASE = Gpa(1 << 32)
FLAG = SlotFlag.NON_COHERENT_DMA


def file(inode: int = 1, offset: int = 0) -> SlotBacking:
    return SlotBacking(0, inode, offset)


def add(
    table: SlotTable,
    offset: int,
    pages: int = 1,
    flags: int = 0,
    backing: SlotBacking | None = None,
    use: SlotUse = SlotUse.BAR,
) -> Change:
    backing = backing if backing is not None else file(100 + offset // PAGE)
    change = table.add(offset, pages * PAGE, flags, backing, use)
    table.commit(change)
    return change


@contextmanager
def refused(number: int, match: str) -> Iterator[None]:
    with pytest.raises(HostError, match=match) as raised:
        yield
    assert raised.value.errno == number


def test_a_slot_is_set_at_its_place_in_the_bar() -> None:
    table = SlotTable(range(5, 9), base=BASE)
    change = table.add(2 * PAGE, PAGE, FLAG, file(7))
    entry = Entry(Slot(5), SlotUse.BAR, 2 * PAGE, PAGE, FLAG, file(7))
    assert change.operations == (SetSlot(entry, Gpa(BASE + 2 * PAGE)),)
    assert list(table) == []
    table.commit(change)
    assert list(table) == [entry]


def test_nothing_is_taken_by_a_change_that_was_not_committed() -> None:
    table = SlotTable(range(1), base=BASE)
    assert table.add(0, PAGE, 0, file()) == table.add(0, PAGE, 0, file())
    add(table, 0)
    assert len(table) == 1


def test_numbers_are_given_out_lowest_first_and_again() -> None:
    table = SlotTable(range(10, 14), base=BASE)
    for index in range(4):
        change = add(table, index * PAGE)
        assert change.added is not None
        assert change.added.slot == 10 + index
    for offset in (2 * PAGE, PAGE):
        table.commit(table.remove(offset, PAGE))
    numbers = [add(table, index * PAGE).added for index in (8, 9)]
    assert [entry.slot for entry in numbers if entry] == [11, 12]


def test_exhaustion_is_told_with_the_remedy_and_ends_with_the_first_that_goes() -> None:
    table = SlotTable(range(3), base=BASE)
    for index in range(3):
        add(table, index * PAGE)
    with refused(errno.ENOSPC, 'all 3 slots of this device are taken.* layout = "window"'):
        table.add(3 * PAGE, PAGE, 0, file())
    table.commit(table.remove(PAGE, PAGE))
    assert add(table, 3 * PAGE).added is not None


@pytest.mark.parametrize(
    ("offset", "size", "file_offset"),
    [(1, PAGE, 0), (0, PAGE + 1, 0), (0, PAGE, 512), (0, 0, 0), (0, -PAGE, 0), (-PAGE, PAGE, 0)],
)
def test_only_whole_pages_are_slots(offset: int, size: int, file_offset: int) -> None:
    with refused(errno.EINVAL, "must be multiples of 4096 bytes"):
        SlotTable(range(3), base=BASE).add(offset, size, 0, file(1, file_offset))


@pytest.mark.parametrize(("offset", "pages"), [(0, 1), (3, 2), (2, 8), (5, 1), (4, 3), (0, 20)])
def test_slots_do_not_overlap(offset: int, pages: int) -> None:
    table = SlotTable(range(9), base=BASE)
    add(table, 4 * PAGE, 2)
    if offset + pages <= 4 or offset >= 6:
        add(table, offset * PAGE, pages)
    else:
        with refused(errno.EEXIST, "slot 0 has 0x2000 bytes at 0x4000: unmap that first"):
            table.add(offset * PAGE, pages * PAGE, 0, file())


def test_exactly_what_was_mapped_is_removed() -> None:
    table = SlotTable(range(9), base=BASE)
    add(table, 4 * PAGE, 2)
    for offset, pages in ((4, 1), (5, 1), (3, 2), (4, 3)):
        with refused(errno.ENOENT, "nothing was mapped to exactly this range"):
            table.remove(offset * PAGE, pages * PAGE)
    change = table.remove(4 * PAGE, 2 * PAGE)
    assert [type(operation) for operation in change.operations] == [DeleteSlot]
    table.commit(change)
    assert len(table) == 0


@pytest.mark.parametrize("flags", [4, 16, 1 << 40, -1])
def test_flags_that_no_slot_has_are_refused(flags: int) -> None:
    with refused(errno.EINVAL, "a flag that no slot of a device has"):
        SlotTable(range(3), base=BASE).add(0, PAGE, flags, file())


def test_guest_ram_gets_the_flag_only_if_the_policy_says_so_in_words() -> None:
    with refused(errno.EINVAL, "only allow_guest_ram = true puts this flag on it"):
        SlotTable(range(3)).add(0, PAGE, FLAG, file(), SlotUse.RAM)
    add(SlotTable(range(3)), 0, 1, SlotFlag.LOG_DIRTY_PAGES, file(), SlotUse.RAM)
    change = add(SlotTable(range(3), allow_guest_ram=True), 0, 1, FLAG, file(), SlotUse.RAM)
    assert change.added is not None
    assert change.added.flags == FLAG


@pytest.mark.parametrize("first", [0, FLAG])
def test_pages_have_one_memory_type_whatever_they_are_mapped_by(first: int) -> None:
    table = SlotTable(range(9), base=BASE)
    add(table, 0, 4, first, file(1, 8 * PAGE))
    # The same type may be there twice, and another type beside it.
    add(table, 8 * PAGE, 2, first, file(1, 9 * PAGE))
    add(table, 16 * PAGE, 4, first ^ FLAG, file(1, 4 * PAGE))
    add(table, 24 * PAGE, 4, first ^ FLAG, file(1, 12 * PAGE))
    add(table, 32 * PAGE, 4, first ^ FLAG, file(2, 8 * PAGE))
    how = "with" if first else "without"
    for start, pages in ((5, 4), (11, 1), (10, 9), (8, 4)):
        with refused(errno.EBUSY, f"some of these pages {how} KVM_MEM_NON_COHERENT_DMA"):
            table.add(40 * PAGE, pages * PAGE, first ^ FLAG, file(1, start * PAGE))
    table.commit(table.remove(0, 4 * PAGE))
    add(table, 40 * PAGE, 1, first ^ FLAG, file(1, 8 * PAGE))
    with refused(errno.EBUSY, "some of these pages"):
        table.add(48 * PAGE, PAGE, first ^ FLAG, file(1, 9 * PAGE))


def test_a_window_and_guest_ram_do_not_share_pages_of_two_types() -> None:
    table = SlotTable(range(9), base=BASE)
    add(table, 0, 16, 0, file(1), SlotUse.RAM)
    with refused(errno.EBUSY, "slot 0 has some of these pages without"):
        table.add(0, PAGE, FLAG, file(1, 4 * PAGE))


def test_a_bar_that_is_nowhere_is_kept_for_later() -> None:
    table = SlotTable(range(9))
    assert add(table, 0).operations == ()
    assert add(table, PAGE).operations == ()
    assert table.remove(PAGE, PAGE).operations == ()
    table.commit(table.remove(PAGE, PAGE))
    change = table.move(BASE)
    assert [operation.entry.offset for operation in change.operations] == [0]
    assert all(isinstance(operation, SetSlot) for operation in change.operations)


def test_a_bar_that_moves_is_deleted_before_it_is_set() -> None:
    table = SlotTable(range(9), base=BASE)
    for index in range(3):
        add(table, index * PAGE, 1, FLAG)
    entries = list(table)
    change = table.move(Gpa(BASE + PAGE))
    assert change.operations == (
        *(DeleteSlot(entry, Gpa(BASE + entry.offset)) for entry in entries),
        *(SetSlot(entry, Gpa(BASE + PAGE + entry.offset)) for entry in entries),
    )
    table.commit(change)
    assert table.base == BASE + PAGE
    assert table.move(Gpa(BASE + PAGE)).operations == ()
    away = table.move(None)
    assert [type(operation) for operation in away.operations] == [DeleteSlot] * 3
    table.commit(away)
    assert table.address(entries[0]) is None


@pytest.mark.parametrize(
    ("base", "number", "match"),
    [
        (BASE + 1, errno.EINVAL, "must be a multiple"),
        (-PAGE, errno.EINVAL, "beyond any guest's addresses"),
        (GPA_LIMIT - PAGE, errno.EINVAL, "beyond any guest's addresses"),
        (PAGE, errno.EEXIST, "slot 0 has 0x4000 bytes at 0x0"),
    ],
)
def test_a_bar_is_not_moved_where_it_can_not_be(base: int, number: int, match: str) -> None:
    table = SlotTable(range(9), base=BASE)
    add(table, 0, 4, 0, file(), SlotUse.RAM)
    add(table, 0, 2)
    with refused(number, match):
        table.move(Gpa(base))
    assert table.base == BASE


def test_ram_does_not_lie_where_the_bar_is() -> None:
    table = SlotTable(range(9), base=BASE)
    add(table, PAGE)
    with refused(errno.EEXIST, "slot 0 has 0x1000 bytes at 0x1000"):
        table.add(BASE, 2 * PAGE, 0, file(), SlotUse.RAM)
    add(table, BASE, 1, 0, file(), SlotUse.RAM)
    with refused(errno.EEXIST, "at 0x100000000"):
        table.add(0, PAGE, 0, file(9))


def test_undoing_takes_back_what_was_done_last_first() -> None:
    entries = [Entry(Slot(n), SlotUse.BAR, n, PAGE, SlotFlag.NONE, file(n)) for n in range(3)]
    first, second, third = (SetSlot(entry, BASE) for entry in entries)
    change = Change((first, second, third))
    assert change.undo(0) == ()
    assert change.undo(2) == (DeleteSlot(entries[1], BASE), DeleteSlot(entries[0], BASE))


@pytest.mark.parametrize("kind", [SetSlot, DeleteSlot])
def test_the_inverse_of_the_inverse_is_the_same(kind: type[SetSlot | DeleteSlot]) -> None:
    entry = Entry(Slot(0), SlotUse.BAR, 0, PAGE, SlotFlag.NONE, file())
    assert inverse(kind(entry, BASE)) != kind(entry, BASE)
    assert inverse(inverse(kind(entry, BASE))) == kind(entry, BASE)


class Vm:
    """What KVM would do, and refuse."""

    def __init__(self) -> None:
        self.slots: dict[int, tuple[int, Entry]] = {}

    def do(self, operation: Operation) -> None:
        entry = operation.entry
        match operation:
            case SetSlot(_, address):
                assert entry.slot not in self.slots
                for start, other in self.slots.values():
                    assert address + entry.size <= start or start + other.size <= address
                self.slots[entry.slot] = address, entry
            case DeleteSlot(_, address):
                assert self.slots.pop(entry.slot) == (address, entry)


steps = st.one_of(
    st.tuples(
        st.just("add"),
        st.integers(0, 24),
        st.integers(1, 4),
        st.sampled_from([SlotFlag.NONE, FLAG]),
        st.integers(1, 2),
        st.integers(0, 12),
    ),
    st.tuples(st.just("remove"), st.integers(0, 7)),
    st.tuples(st.just("move"), st.sampled_from([None, *range(0, 40, 3)])),
)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(steps, st.integers(0, 12)), max_size=40), st.booleans())
def test_the_table_has_what_the_vm_has_whatever_fails(
    actions: list[tuple[tuple[object, ...], int]], ram: bool
) -> None:
    """Each change may fail at any of its operations, and is then undone."""
    vm, table = Vm(), SlotTable(range(6))
    if ram:
        change = table.add(16 * PAGE, 2 * PAGE, 0, file(9), SlotUse.RAM)
        vm.do(change.operations[0])
        table.commit(change)
    for action, survives in actions:
        try:
            match action:
                case ("add", int(at), int(pages), SlotFlag() as flags, int(inode), int(start)):
                    backing = file(inode, start * PAGE)
                    change = table.add(at * PAGE, pages * PAGE, flags, backing)
                case ("remove", int(index)):
                    entry = [*table][index % len(table)] if len(table) else None
                    if entry is None or entry.use is SlotUse.RAM:
                        continue
                    change = table.remove(entry.offset, entry.size)
                case ("move", base):
                    change = table.move(None if base is None else Gpa(int(str(base)) * PAGE))
        except HostError:
            continue
        before = dict(vm.slots)
        for operation in change.operations[:survives]:
            vm.do(operation)
        if survives < len(change.operations):
            for operation in change.undo(survives):
                vm.do(operation)
            assert vm.slots == before
        else:
            table.commit(change)
        live = {entry.slot: (table.address(entry), entry) for entry in table}
        assert vm.slots == {slot: pair for slot, pair in live.items() if pair[0] is not None}
        check_types(table)


def check_types(table: SlotTable) -> None:
    """By brute force: no page of a file in slots of two types."""
    types: dict[tuple[tuple[int, int], int], bool] = {}
    for entry in table:
        for page in range(entry.size // PAGE):
            key = entry.backing.file, entry.backing.offset + page * PAGE
            assert types.setdefault(key, entry.non_coherent) == entry.non_coherent


def test_entries_tell_their_memory_type() -> None:
    entry = Entry(Slot(0), SlotUse.BAR, 0, PAGE, FLAG | SlotFlag.LOG_DIRTY_PAGES, file())
    assert entry.non_coherent
    assert not replace(entry, flags=SlotFlag.LOG_DIRTY_PAGES).non_coherent
