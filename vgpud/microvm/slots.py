"""The micro-VM's memory slots for its host-visible window, by either of the two ways to get them.

Owns the VMM's side of SHMEM_MAP, and the book of what KVM has taken, whoever asked for it: that is
us (`Window`) or an agent that does as the daemon tells it. Which slot has which number and may lie
where is `slots.table`, doing it is `slots.memslots`.
"""

from __future__ import annotations

import errno
from dataclasses import dataclass
from typing import Final

import numpy as np

from vgpud.errors import HostError
from vgpud.memory.addresses import Gpa
from vgpud.memory.extents import NON_COHERENT, Extents
from vgpud.native.core import SPAN
from vgpud.slots.entries import SlotBacking
from vgpud.slots.memslots import Memslots, SlotVm
from vgpud.slots.slot_mapping import identify
from vgpud.slots.table import Change, DeleteSlot, Operation, SetSlot, SlotTable
from vgpud.unix.fd import Fd

NUMBERS: Final = range(1, 32)
"""The slots that the window may have; 0 is RAM."""


@dataclass(frozen=True, slots=True)
class Accepted:
    """A memory slot as KVM took it; addresses and `size` in bytes."""

    slot: int
    flags: int
    guest_phys_addr: int
    size: int
    userspace_addr: int


class SlotBook:
    """A `SlotVm` that passes all on to `vm`, and writes down what that took.

    `history` has every slot that was ever set, `live` those that are, by number.
    """

    def __init__(self, vm: SlotVm) -> None:
        self.history: list[Accepted] = []
        self.live: dict[int, Accepted] = {}
        self._vm = vm

    def set_user_memory_region(
        self, slot: int, flags: int, guest_phys_addr: int, memory_size: int, userspace_addr: int
    ) -> None:
        """As `uapi.kvm.Vm` has it."""
        self._vm.set_user_memory_region(slot, flags, guest_phys_addr, memory_size, userspace_addr)
        if memory_size == 0:
            del self.live[slot]
            return
        accepted = Accepted(slot, flags, guest_phys_addr, memory_size, userspace_addr)
        self.history.append(accepted)
        self.live[slot] = accepted

    def contents(self, guest_phys_addr: int, size: int) -> Extents:
        """The memory of a range that one slot has, for as long as the slot is there.

        Read after a flush, as it may be dirty in a cache, or stale in ours. Raises `HostError`
        (ENOENT) where no slot is.
        """
        for slot in self.live.values():
            offset = guest_phys_addr - slot.guest_phys_addr
            if 0 <= offset <= slot.size - size:
                span = np.array([(slot.userspace_addr + offset, size)], SPAN)
                return Extents(span, (), access=NON_COHERENT)
        operation = f"looking at {size:#x} bytes at {guest_phys_addr:#x} of the guest"
        raise HostError(operation, OSError(errno.ENOENT, ""), "no slot has them")


class Window:
    """`size` bytes of guest-physical space from `guest_phys_addr` on; slots get `flags`.

    Raises `HostError` where a mapping can't be, and has then changed nothing. Close it before the
    VM.
    """

    def __init__(self, vm: SlotVm, guest_phys_addr: int, size: int, *, flags: int = 0) -> None:
        self.size = size
        self.flags = flags
        self._slots = Memslots(vm)
        self._table = SlotTable(NUMBERS, base=Gpa(guest_phys_addr))

    def map(self, fd: Fd, fd_offset: int, offset: int, length: int) -> None:
        """Has the guest see a range of a file; raises `HostError` as `SlotTable.add` does, and
        EINVAL beyond the window."""
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
        """Takes back exactly what one `map` put there."""
        change = self._table.remove(offset, length)
        assert change.removed is not None
        self._perform(change)
        self._slots.release(change.removed.slot)

    def move(self, guest_phys_addr: int) -> None:
        """Puts the window, and all that is mapped in it, somewhere else, as a VMM does when a guest
        writes to a BAR. The guest must stand still."""
        self._perform(self._table.move(Gpa(guest_phys_addr)))

    def close(self) -> None:
        """Deletes what is left; a second call does nothing."""
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
