"""A device's slots in a VM of this process: for a VMM that has vgpud as a library."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from vgpud.errors import HostError
from vgpud.slots.entries import Entry
from vgpud.slots.memslots import Memslots
from vgpud.slots.owner import TrackedSlots
from vgpud.slots.table import DeleteSlot, Operation, SetSlot, SlotTable
from vgpud.unix.fd import Fd

_log = logging.getLogger(__name__)


class LocalSlots(TrackedSlots):
    """Slots in the VM of `memslots`, which the caller closes."""

    def __init__(self, memslots: Memslots, table: SlotTable) -> None:
        super().__init__(table)
        self._memslots = memslots

    def _hold(self, entry: Entry, fd: Fd) -> None:
        self._memslots.attach(entry.slot, fd, entry.backing.offset, entry.size)

    def _release(self, entry: Entry) -> None:
        self._memslots.release(entry.slot)

    async def _do(self, operation: Operation) -> None:
        self._perform_now(operation)

    def _undo(self, operations: Sequence[Operation]) -> None:
        for operation in operations:
            try:
                self._perform_now(operation)
            except HostError as error:
                # The caller raises the first error. The slot is set again with the next move.
                slot = operation.entry.slot
                _log.error("slot not restored device=%s slot=%d: %s", self._device, slot, error)

    def _delete_failed(self, entry: Entry, error: HostError) -> None:
        _log.error("slot not deleted device=%s slot=%d: %s", self._device, entry.slot, error)

    def _perform_now(self, operation: Operation) -> None:
        match operation:
            case SetSlot(entry, address):
                self._memslots.set(entry.slot, entry.flags, address)
            case DeleteSlot(entry):
                self._memslots.delete(entry.slot)
