"""Which memory slots a device has, and what must be done to the VM to get from one set to another.

Owns slot numbers, the rules about what may lie where, and the order of operations with their
undoing; it does none of them. Source: Documentation/virt/kvm/api.rst of the kernel,
"KVM_SET_USER_MEMORY_REGION".

Every change is planned first and committed when the VM has it: a table never says what is not so.
Errors are `HostError`, since it is the host's resources that do not suffice or would be misused.
"""

from __future__ import annotations

import errno
import heapq
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, TypeAlias

from vgpud.errors import HostError
from vgpud.memory.addresses import Gpa
from vgpud.slots.entries import Entry, Slot, SlotBacking, SlotUse
from vgpud.slots.ranges import Pages, Ranges
from vgpud.uapi.memslot import SlotFlag
from vgpud.uapi.page import PAGE_SIZE

GPA_LIMIT: Final = 1 << 52
"""What guest-physical addresses are below, in any x86 processor: MAXPHYADDR is 52 bits at most."""

_FLAGS: Final = sum(SlotFlag)


@dataclass(frozen=True, slots=True)
class SetSlot:
    """Register a slot that is not there yet."""

    entry: Entry
    guest_phys_addr: Gpa


@dataclass(frozen=True, slots=True)
class DeleteSlot:
    """Take a slot away."""

    entry: Entry
    guest_phys_addr: Gpa


Operation: TypeAlias = SetSlot | DeleteSlot


@dataclass(frozen=True, slots=True)
class Change:
    """What is to be done, in order, and what the table will then hold."""

    operations: tuple[Operation, ...]
    added: Entry | None = None
    removed: Entry | None = None
    base: Gpa | None = None
    moves: bool = False

    def undo(self, done: int) -> tuple[Operation, ...]:
        """Return what takes back the first `done` operations, last first."""
        return tuple(inverse(operation) for operation in reversed(self.operations[:done]))


def inverse(operation: Operation) -> Operation:
    """Return the operation that takes another one back."""
    match operation:
        case SetSlot(entry, address):
            return DeleteSlot(entry, address)
        case DeleteSlot(entry, address):
            return SetSlot(entry, address)


class SlotTable:
    """The slots that one device has in one VM, numbered out of `numbers`.

    `base` is where the guest has put the BAR; None while it has not, then BAR slots are kept in the
    table and none is in the VM.
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
        """The slots by use and address."""
        for ranges in self._slots.values():
            yield from ranges

    def address(self, entry: Entry) -> Gpa | None:
        """Return where a slot is for the guest; None for a BAR that is nowhere."""
        if entry.use is SlotUse.RAM:
            return Gpa(entry.offset)
        return None if self.base is None else Gpa(self.base + entry.offset)

    def add(
        self, offset: int, size: int, flags: int, backing: SlotBacking, use: SlotUse = SlotUse.BAR
    ) -> Change:
        """Return the change that puts `size` bytes of a file at `offset`.

        Raises HostError: EINVAL for what is no whole pages, is out of reach, or may not have its
        flags; EEXIST where another slot is; EBUSY for pages that are somewhere else with another
        memory type; ENOSPC when numbers have run out.
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
        """Return the change that takes back exactly what one `add` has put at `offset`.

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
        """Return the change that puts the BAR's slots at another address, or with None nowhere.

        All are deleted before the first is set: the old and the new range may overlap. Raises
        HostError as `add` does.
        """
        if base == self.base:
            return Change((), base=base, moves=True)
        entries = list(self._slots[SlotUse.BAR])
        operations: list[Operation] = []
        if self.base is not None:
            operations += (DeleteSlot(entry, Gpa(self.base + entry.offset)) for entry in entries)
        if base is not None:
            operation = f"moving a BAR to {base:#x}"
            if base % PAGE_SIZE:
                advice = f"the address must be a multiple of {PAGE_SIZE} bytes"
                raise _refused(operation, errno.EINVAL, advice)
            for entry in entries:
                address = Gpa(base + entry.offset)
                self._check_address(operation, entry, address)
                operations.append(SetSlot(entry, address))
        return Change(tuple(operations), base=base, moves=True)

    def commit(self, change: Change) -> None:
        """Record that the VM has the change. Only one may be between planning and here."""
        if change.moves:
            self.base = change.base
        if change.removed is not None:
            self._forget(change.removed)
        if change.added is not None:
            self._take(change.added)

    def _take(self, entry: Entry) -> None:
        if self._freed and self._freed[0] == entry.slot:
            heapq.heappop(self._freed)
        else:
            self._used += 1
        self._slots[entry.use].insert(entry)
        self._pages.insert(entry)

    def _forget(self, entry: Entry) -> None:
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
        # The BAR's slots do not overlap among themselves wherever they are, nor do the RAM's.
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
