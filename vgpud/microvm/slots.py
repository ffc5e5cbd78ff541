"""The micro-VM's memory slots for its host-visible window, set by its front-end or by a slot agent.

`SlotWindow` is the VMM's side of SHMEM_MAP. `SlotRecorder` records the slots that KVM took, whether
`SlotWindow` or a slot agent set them. Slot numbers and ranges are decided in `slots.table`, and set
by `slots.memslots`.
"""

from __future__ import annotations

import errno
from dataclasses import dataclass
from typing import Final

import numpy as np

from vgpud.errors import HostError
from vgpud.memory.addresses import Gpa
from vgpud.memory.extents import NON_COHERENT, Extents
from vgpud.native.spans import SPAN
from vgpud.slots.entries import SlotBacking
from vgpud.slots.memslots import Memslots, SlotVm
from vgpud.slots.slot_mapping import identify
from vgpud.slots.table import Change, DeleteSlot, Operation, SetSlot, SlotTable
from vgpud.unix.fd import Fd

NUMBERS: Final = range(1, 32)
"""The slots that the window may have; 0 is RAM."""


@dataclass(frozen=True, slots=True)
class Accepted:
    """A memory slot that KVM took; `size` is in bytes."""

    slot: int
    flags: int
    guest_phys_addr: int
    size: int
    userspace_addr: int


class SlotRecorder:
    """A `SlotVm` that forwards to `vm` and records the slots that it took.

    `history` has every slot that was ever set, `live` those that are set now, by number.
    """

    def __init__(self, vm: SlotVm) -> None:
        self.history: list[Accepted] = []
        self.live: dict[int, Accepted] = {}
        self._vm = vm

    def set_user_memory_region(
        self, slot: int, flags: int, guest_phys_addr: int, memory_size: int, userspace_addr: int
    ) -> None:
        """Set or delete a slot, as `uapi.kvm.Vm.set_user_memory_region` does, and record it."""
        self._vm.set_user_memory_region(slot, flags, guest_phys_addr, memory_size, userspace_addr)
        if memory_size == 0:
            del self.live[slot]
            return
        accepted = Accepted(slot, flags, guest_phys_addr, memory_size, userspace_addr)
        self.history.append(accepted)
        self.live[slot] = accepted

    def contents(self, guest_phys_addr: int, size: int) -> Extents:
        """Return the memory of a range within one slot, for as long as the slot is set.

        Reads flush first, as the guest's data may be dirty in a cache, or stale in this CPU's.
        Raises `HostError` (ENOENT) if no slot has the range.
        """
        for slot in self.live.values():
            offset = guest_phys_addr - slot.guest_phys_addr
            if 0 <= offset <= slot.size - size:
                span = np.array([(slot.userspace_addr + offset, size)], SPAN)
                return Extents(span, (), access=NON_COHERENT)
        operation = f"reading {size:#x} bytes at {guest_phys_addr:#x} of the guest"
        raise HostError(operation, OSError(errno.ENOENT, ""), "no slot has them")


class SlotWindow:
    """A host-visible window of `size` bytes at `guest_phys_addr`, whose slots get `flags`.

    A method that raises `HostError` has changed nothing. Close the window before the VM.
    """

    def __init__(self, vm: SlotVm, guest_phys_addr: int, size: int, *, flags: int = 0) -> None:
        self.size = size
        self.flags = flags
        self._slots = Memslots(vm)
        self._table = SlotTable(NUMBERS, base=Gpa(guest_phys_addr))

    def map(self, fd: Fd, fd_offset: int, offset: int, length: int) -> None:
        """Map a range of a file into the window.

        Raises `HostError` as `SlotTable.add` does, and with EINVAL beyond the window.
        """
        if offset + length > self.size:
            operation = f"mapping {length:#x} bytes at {offset:#x} of the window"
            raise HostError(operation, OSError(errno.EINVAL, ""), f"it has {self.size:#x}")
        file = identify(fd, fd_offset, length)
        backing = SlotBacking(file.device, file.inode, fd_offset)
        change = self._table.add(offset, length, self.flags, backing)
        assert change.added is not None
        slot = change.added.slot
        self._slots.attach(slot, fd, fd_offset, length)
        try:
            self._perform(change)
        except HostError:
            self._slots.release(slot)
            raise

    def unmap(self, offset: int, length: int) -> None:
        """Remove the mapping that one `map` made; the range must be exactly the same."""
        change = self._table.remove(offset, length)
        assert change.removed is not None
        self._perform(change)
        self._slots.release(change.removed.slot)

    def move(self, guest_phys_addr: int) -> None:
        """Move the window with its mappings, as a VMM does when a guest writes to a BAR.

        The guest must not run meanwhile.
        """
        self._perform(self._table.move(Gpa(guest_phys_addr)))

    def close(self) -> None:
        """Delete all slots; a second call does nothing."""
        self._slots.close()

    def _perform(self, change: Change) -> None:
        for done, operation in enumerate(change.operations):
            try:
                self._do(operation)
            except HostError:
                for undo in change.undo(done):
                    self._do(undo)
                raise
        self._table.commit(change)

    def _do(self, operation: Operation) -> None:
        match operation:
            case SetSlot(entry, guest_phys_addr):
                self._slots.set(entry.slot, entry.flags, guest_phys_addr)
            case DeleteSlot(entry):
                self._slots.delete(entry.slot)
