"""A device's slots that this process numbers and keeps track of, in a `slots.table.SlotTable`.

Owns the way from a planned change to the VM and back: what was half done is undone, and the table
holds what the VM has. The owners differ in how single operations are performed: `slots.local` in a
VM of this process, `slots.agent` by a VMM.
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Sequence

from vgpud.errors import HostError
from vgpud.memory.addresses import Gpa
from vgpud.publish import Publish, unheard
from vgpud.slots.entries import Entry, SlotBacking, SlotUse
from vgpud.slots.errors import InDoubtError
from vgpud.slots.slot_mapping import identify
from vgpud.slots.table import Change, DeleteSlot, Operation, SetSlot, SlotTable
from vgpud.unix.fd import Fd


class TrackedSlots(ABC):
    """The slots of one device; one change at a time, others wait.

    Everything raises HostError, and the guest then sees what it saw before; the device goes on.
    """

    def __init__(self, table: SlotTable) -> None:
        self.table = table
        self._lock = asyncio.Lock()
        self._device = ""
        self._publish: Publish = unheard

    def report_to(self, publish: Publish, device: str) -> None:
        """Have slots that are set, deleted and refused published as events of `device`."""
        self._publish, self._device = publish, device

    def entries(self) -> list[tuple[Entry, Gpa | None]]:
        """Return the slots, and where the guest has each; None for nowhere."""
        return [(entry, self.table.address(entry)) for entry in self.table]

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
        """Show `length` bytes of a file to the guest at `bar_offset`; the file may be closed
        afterwards.

        `flags` (KVM_MEM_*) hold for as long as it is mapped; one that the VM's KVM does not have is
        an error, as the guest was or will be told a memory type that goes with it. With `use` RAM,
        `bar_offset` is a guest-physical address outside of the BAR.
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
        """Take back exactly what one `map` put there."""
        async with self._lock:
            await self._remove(self.table.find(bar_offset, length, use))

    async def move(self, base: Gpa | None) -> None:
        """Have all slots follow the BAR, which the guest has moved, or with None unmapped."""
        async with self._lock:
            change = self.table.move(base)
            await self._perform(change)
            self._commit(change)

    async def clear(self) -> None:
        """Take everything back: the device was reset. Never raises HostError."""
        async with self._lock:
            for entry in [*self.table]:
                try:
                    await self._remove(entry)
                except HostError as error:
                    self._left_behind(entry, error)

    async def _remove(self, entry: Entry) -> None:
        change = self.table.remove(entry.offset, entry.size, entry.use)
        await self._perform(change)
        self._commit(change)
        self._release(entry)

    async def _perform(self, change: Change) -> None:
        for done, operation in enumerate(change.operations):
            try:
                await self._do(operation)
            except HostError as error:
                self._refused(operation, error)
                in_doubt = isinstance(error, InDoubtError)
                self._undo(change.undo(done + in_doubt))
                raise
            except BaseException:
                self._undo(change.undo(done + 1))
                raise

    def _commit(self, change: Change) -> None:
        self.table.commit(change)
        self._announce(change.operations)

    def _announce(self, operations: Sequence[Operation]) -> None:
        for operation in operations:
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
        """Raise HostError if nothing can be set at the moment; by default, something always can."""
        return

    @abstractmethod
    def _hold(self, entry: Entry, fd: Fd) -> None:
        """Keep what is needed of a file to set the slot, also again after a move."""

    @abstractmethod
    def _release(self, entry: Entry) -> None:
        """Let go of what `_hold` keeps."""

    @abstractmethod
    async def _do(self, operation: Operation) -> None:
        """Have the VM do one thing.

        Raises HostError if it has not been done, InDoubtError if that is not known.
        """

    @abstractmethod
    def _undo(self, operations: Sequence[Operation]) -> None:
        """Have the VM do these, in order, without waiting; never raises."""

    @abstractmethod
    def _left_behind(self, entry: Entry, error: HostError) -> None:
        """Deal with a slot that could not be taken back on a reset."""
