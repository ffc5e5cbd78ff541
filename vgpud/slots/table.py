"""The table of a device's memory slots, and the operations for each change of it.

The table assigns slot numbers, checks where slots may be, and orders operations and their undoing;
it performs none. Every change is planned first, and committed when the VM has it, so the table
always says what the VM has. Errors are `HostError`, since the host's resources do not suffice or
would be misused. Source: Documentation/virt/kvm/api.rst of the kernel,
"KVM_SET_USER_MEMORY_REGION".
"""

from __future__ import annotations

import errno
import heapq
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from typing import Final, TypeAlias

from vgpud.errors import HostError
from vgpud.memory.addresses import Gpa
from vgpud.slots.entries import Entry, Slot, SlotBacking, SlotUse
from vgpud.slots.ranges import Pages, Ranges
from vgpud.uapi.memslot import SlotFlag
from vgpud.uapi.page import PAGE_SIZE

GPA_LIMIT: Final = 1 << 52
"""All guest-physical addresses are below this: MAXPHYADDR is at most 52 bits on x86."""

_FLAGS: Final = sum(SlotFlag)


@dataclass(frozen=True, slots=True)
class SetSlot:
    """Set a slot that does not exist yet."""

    entry: Entry
    guest_phys_addr: Gpa


@dataclass(frozen=True, slots=True)
class DeleteSlot:
    """Delete a slot."""

    entry: Entry
    guest_phys_addr: Gpa


Operation: TypeAlias = SetSlot | DeleteSlot


@dataclass(frozen=True, slots=True)
class Change:
    """The operations of a change, in order, and what it does to the table."""

    operations: tuple[Operation, ...]
    added: Entry | None = None
    removed: Entry | None = None
    base: Gpa | None = None
    moves: bool = False

    def undo(self, done: int) -> tuple[Operation, ...]:
        """Return the operations that undo the first `done` ones, last first."""
        return tuple(inverse(operation) for operation in reversed(self.operations[:done]))


def inverse(operation: Operation) -> Operation:
    """Return the operation that undoes another one."""
    match operation:
        case SetSlot(entry, address):
            return DeleteSlot(entry, address)
        case DeleteSlot(entry, address):
            return SetSlot(entry, address)


class SlotTable:
    """The slots of one device in one VM, with numbers from `numbers`.

    `base` is the guest-physical address of the BAR; None while it is not mapped: then the BAR's
    slots are in the table, and none is in the VM.
    """

    def __init__(
        self, numbers: range, *, base: Gpa | None = None, allow_guest_ram: bool = False
    ) -> None:
        self.base = base
        self._numbers = numbers
        self._allow_guest_ram = allow_guest_ram
        self._used = 0  # of numbers, from the first on
        self._freed: list[int] = []  # a heap
        self._slots = {use: Ranges() for use in SlotUse}
        self._pages = Pages()

    def __len__(self) -> int:
        return sum(len(ranges) for ranges in self._slots.values())

    def __iter__(self) -> Iterator[Entry]:
        """Iterate over the slots by use and address."""
        for ranges in self._slots.values():
            yield from ranges

    def part(self, start: int, stop: int) -> list[Entry]:
        """Return a part of the slots, in the order of `__iter__`."""
        found: list[Entry] = []
        for ranges in self._slots.values():
            found += ranges.part(max(start, 0), max(stop, 0))
            start, stop = start - len(ranges), stop - len(ranges)
        return found

    def address(self, entry: Entry) -> Gpa | None:
        """Return a slot's guest-physical address; None if the BAR is not mapped."""
        if entry.use is SlotUse.RAM:
            return Gpa(entry.offset)
        return None if self.base is None else Gpa(self.base + entry.offset)

    def add(
        self, offset: int, size: int, flags: int, backing: SlotBacking, use: SlotUse = SlotUse.BAR
    ) -> Change:
        """Return the change that maps `size` bytes of a file at `offset`.

        Raises HostError: EINVAL for a range that is not whole pages or beyond all addresses, or for
        flags that the slot may not have; EEXIST if another slot overlaps it; EBUSY for pages that
        another slot has with another memory type; ENOSPC if no slot number is free.
        """
        operation = f"a {use} slot of {size:#x} bytes at {offset:#x} flags={flags:#x}"
        if (offset | size | backing.offset) % PAGE_SIZE or size <= 0 or offset < 0:
            advice = f"offset, size and offset in the file must be multiples of {PAGE_SIZE} bytes"
            raise _refused(operation, errno.EINVAL, advice)
        checked = self._checked_flags(operation, flags, use)
        entry = Entry(self._number(operation), use, offset, size, checked, backing)
        self._check_pages(operation, entry)
        found = self._slots[use].overlapping(offset, size)
        if found is not None:
            raise _overlap(operation, found)
        address = self.address(entry)
        if address is None:
            return Change((), added=entry)
        self._check_address(operation, entry, address)
        return Change((SetSlot(entry, address),), added=entry)

    def remove(self, offset: int, size: int, use: SlotUse = SlotUse.BAR) -> Change:
        """Return the change that removes exactly the range of one `add`.

        Raises HostError (ENOENT) if there is no such range.
        """
        entry = self.find(offset, size, use)
        address = self.address(entry)
        if address is None:
            return Change((), removed=entry)
        return Change((DeleteSlot(entry, address),), removed=entry)

    def find(self, offset: int, size: int, use: SlotUse = SlotUse.BAR) -> Entry:
        """Return the slot of exactly this range; raises HostError (ENOENT) if there is none."""
        entry = self._slots[use].at(offset)
        if entry is None or entry.size != size:
            operation = f"finding the {use} slot of {size:#x} bytes at {offset:#x}"
            raise _refused(operation, errno.ENOENT, "nothing was mapped to exactly this range")
        return entry

    def move(self, base: Gpa | None) -> Change:
        """Return the change that moves the BAR's slots to another address; None deletes them."""
        steps = self.move_steps(base)
        while True:
            try:
                next(steps)
            except StopIteration as end:
                change: Change = end.value
                return change

    def move_steps(self, base: Gpa | None) -> Generator[None, None, Change]:
        """Plan as `move` does, in short steps; the last one returns the change.

        All are deleted before the first is set, as the old and
        the new range may overlap. Raises HostError as `add` does.
        """
        if base == self.base:
            return Change((), base=base, moves=True)
        operation = f"moving a BAR to {base:#x}" if base is not None else ""
        if base is not None and base % PAGE_SIZE:
            advice = f"the address must be a multiple of {PAGE_SIZE} bytes"
            raise _refused(operation, errno.EINVAL, advice)
        deletes: list[Operation] = []
        sets: list[Operation] = []
        for entry in self._slots[SlotUse.BAR]:
            if self.base is not None:
                deletes.append(DeleteSlot(entry, Gpa(self.base + entry.offset)))
            if base is not None:
                address = Gpa(base + entry.offset)
                self._check_address(operation, entry, address)
                sets.append(SetSlot(entry, address))
            yield
        return Change((*deletes, *sets), base=base, moves=True)

    def commit(self, change: Change) -> None:
        """Record that the VM has the change; a second one must not be planned before that."""
        if change.moves:
            self.base = change.base
        if change.removed is not None:
            self._delete(change.removed)
        if change.added is not None:
            self._insert(change.added)

    def _insert(self, entry: Entry) -> None:
        if self._freed and self._freed[0] == entry.slot:
            heapq.heappop(self._freed)
        else:
            self._used += 1
        self._slots[entry.use].insert(entry)
        self._pages.insert(entry)

    def _delete(self, entry: Entry) -> None:
        self._slots[entry.use].delete(entry)
        heapq.heappush(self._freed, entry.slot)
        self._pages.delete(entry)

    def _number(self, operation: str) -> Slot:
        if self._freed:
            return Slot(self._freed[0])
        if self._used == len(self._numbers):
            advice = (
                f"all {len(self._numbers)} slots of this device are taken: unmap blobs,"
                ' or use layout = "window", which needs one slot for all of them'
            )
            raise _refused(operation, errno.ENOSPC, advice)
        return Slot(self._numbers[self._used])

    def _checked_flags(self, operation: str, flags: int, use: SlotUse) -> SlotFlag:
        if flags & ~_FLAGS:
            raise _refused(operation, errno.EINVAL, "a flag that no slot of a device has")
        if flags & SlotFlag.NON_COHERENT_DMA and use is SlotUse.RAM and not self._allow_guest_ram:
            advice = (
                "guest RAM has other users in the host, which reach the same pages through their"
                " caches: only allow_guest_ram = true puts this flag on it"
            )
            raise _refused(operation, errno.EINVAL, advice)
        return SlotFlag(flags)

    def _check_pages(self, operation: str, entry: Entry) -> None:
        slot = self._pages.of_other_type(entry)
        if slot is None:
            return
        kind = "without" if entry.non_coherent else "with"
        advice = (
            f"slot {slot} has some of these pages {kind} KVM_MEM_NON_COHERENT_DMA, and one page"
            " must not have two memory types: unmap it there, or give both the same policy"
        )
        raise _refused(operation, errno.EBUSY, advice)

    def _check_address(self, operation: str, entry: Entry, address: Gpa) -> None:
        if not 0 <= address <= GPA_LIMIT - entry.size:
            raise _refused(operation, errno.EINVAL, f"{address:#x} is beyond any guest's addresses")
        # Slots of one use do not overlap at any base, as their offsets do not.
        if entry.use is SlotUse.BAR:
            found = self._slots[SlotUse.RAM].overlapping(address, entry.size)
        elif self.base is not None:
            found = self._slots[SlotUse.BAR].overlapping(address - self.base, entry.size)
        else:
            found = None
        if found is not None:
            raise _overlap(operation, found)


def _overlap(operation: str, other: Entry) -> HostError:
    advice = f"slot {other.slot} has {other.size:#x} bytes at {other.offset:#x}: unmap that first"
    return _refused(operation, errno.EEXIST, advice)


def _refused(operation: str, number: int, advice: str) -> HostError:
    return HostError(operation, OSError(number, ""), advice)
