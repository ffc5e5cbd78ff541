"""A device's slots that this process numbers and tracks in a `slots.table.SlotTable`.

A change is planned in the table, performed in the VM, undone if it fails half way, and committed to
the table when the VM has it. The slot owners differ in how they perform single operations:
`slots.local` in a VM of this process, `slots.agent` by an agent in the VMM.
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Sequence

from vgpud.errors import HostError
from vgpud.memory.addresses import Gpa
from vgpud.pace import Pace, paced
from vgpud.publish import Publish, unheard
from vgpud.slots.entries import Entry, SlotBacking, SlotUse
from vgpud.slots.errors import InDoubtError
from vgpud.slots.slot_mapping import identify
from vgpud.slots.table import Change, DeleteSlot, Operation, SetSlot, SlotTable
from vgpud.unix.fd import Fd


class TrackedSlots(ABC):
    """The slots of one device; changes wait for each other.

    All changes raise HostError if they fail; the guest's memory is then as it was before.
    """

    def __init__(self, table: SlotTable) -> None:
        self.table = table
        self._lock = asyncio.Lock()
        self._device = ""
        self._publish: Publish = unheard

    def report_to(self, publish: Publish, device: str) -> None:
        """Publish slots that are set, deleted and refused as events of `device`."""
        self._publish, self._device = publish, device

    def entries(self) -> list[tuple[Entry, Gpa | None]]:
        """Return the slots with their guest-physical addresses; None if the BAR is not mapped."""
        return [(entry, self.table.address(entry)) for entry in self.table]

    def part(self, start: int, stop: int) -> list[tuple[Entry, Gpa | None]]:
        """Return a part of `entries`, in the same order."""
        return [(entry, self.table.address(entry)) for entry in self.table.part(start, stop)]

    async def map(
        self,
        fd: Fd,
        fd_offset: int,
        bar_offset: int,
        length: int,
        *,
        flags: int = 0,
        use: SlotUse = SlotUse.BAR,
    ) -> None:
        """Map `length` bytes of a file for the guest at `bar_offset`.

        The file may be closed afterwards. `flags` (KVM_MEM_*) hold as long as the range is mapped;
        one that the VM's KVM does not have is an error, as the guest is told a memory type that
        depends on it. With `use` RAM, `bar_offset` is a guest-physical address outside of the BAR.
        """
        file = identify(fd, fd_offset, length)
        async with self._lock:
            self._check(f"mapping {length:#x} bytes at {bar_offset:#x}")
            backing = SlotBacking(file.device, file.inode, fd_offset)
            change = self.table.add(bar_offset, length, flags, backing, use)
            assert change.added is not None
            self._hold(change.added, fd)
            try:
                await self._perform(change)
            except BaseException:
                self._release(change.added)
                raise
            self._commit(change)

    async def unmap(self, bar_offset: int, length: int, *, use: SlotUse = SlotUse.BAR) -> None:
        """Unmap exactly the range of one `map`."""
        async with self._lock:
            await self._remove(self.table.find(bar_offset, length, use))

    async def move(self, base: Gpa | None) -> None:
        """Move all slots to a new address of the BAR; None if the guest has unmapped it."""
        async with self._lock:
            change = await paced(self.table.move_steps(base))
            await self._perform(change)
            self.table.commit(change)
            await self._announce_all(change.operations)

    async def clear(self) -> None:
        """Unmap all slots, on a reset of the device. Never raises HostError."""
        async with self._lock:
            pace, stuck = Pace(), 0
            while entries := self.table.part(stuck, stuck + 1):
                [entry] = entries
                try:
                    await self._remove(entry)
                except HostError as error:
                    before = len(self.table)
                    self._delete_failed(entry, error)
                    stuck += len(self.table) == before
                await pace.step()

    async def _remove(self, entry: Entry) -> None:
        change = self.table.remove(entry.offset, entry.size, entry.use)
        await self._perform(change)
        self._commit(change)
        self._release(entry)

    async def _perform(self, change: Change) -> None:
        pace = Pace()
        for done, operation in enumerate(change.operations):
            try:
                await self._do(operation)
                await pace.step()
            except HostError as error:
                self._refused(operation, error)
                in_doubt = isinstance(error, InDoubtError)
                self._undo(change.undo(done + in_doubt))
                raise
            except BaseException:
                self._undo(change.undo(done + 1))
                raise

    def _commit(self, change: Change) -> None:
        """Commit a change of one slot."""
        self.table.commit(change)
        for operation in change.operations:
            self._announce(operation)

    async def _announce_all(self, operations: Sequence[Operation]) -> None:
        pace = Pace()
        for operation in operations:
            self._announce(operation)
            await pace.step()

    def _announce(self, operation: Operation) -> None:
        match operation:
            case SetSlot(entry, address):
                kind, done = "slot.set", "set"
            case DeleteSlot(entry, address):
                kind, done = "slot.deleted", "deleted"
        self._publish(
            kind,
            f"slot {entry.slot} was {done}",
            slot=entry.slot,
            flags=int(entry.flags),
            guest_phys_addr=address,
            memory_size=entry.size,
        )

    def _refused(self, operation: Operation, error: HostError) -> None:
        if isinstance(operation, SetSlot):
            entry = operation.entry
            self._publish(
                "slot.refused",
                str(error),
                slot=entry.slot,
                flags=int(entry.flags),
                errno=error.errno,
            )

    def _check(self, operation: str) -> None:
        """Raise HostError if no slot can be set at the moment."""
        return

    @abstractmethod
    def _hold(self, entry: Entry, fd: Fd) -> None:
        """Keep the file's memory for setting the slot, also again after a move."""

    @abstractmethod
    def _release(self, entry: Entry) -> None:
        """Release what `_hold` keeps."""

    @abstractmethod
    async def _do(self, operation: Operation) -> None:
        """Perform one operation in the VM.

        Raises HostError if it was not done, InDoubtError if that is not known.
        """

    @abstractmethod
    def _undo(self, operations: Sequence[Operation]) -> None:
        """Perform these operations in the VM, in order, without waiting; never raises."""

    @abstractmethod
    def _delete_failed(self, entry: Entry, error: HostError) -> None:
        """Handle a slot that could not be deleted on a reset."""
