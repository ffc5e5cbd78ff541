"""Memory slots of a VM that this process owns: their mappings in this process, and KVM's ioctls.

The caller chooses numbers and addresses (`slots.table`, or for an agent the daemon).
Source: Documentation/virt/kvm/api.rst of the kernel, "KVM_SET_USER_MEMORY_REGION".
"""

from __future__ import annotations

import logging
from types import TracebackType
from typing import Protocol, Self

from vgpud.errors import HostError
from vgpud.slots.slot_mapping import SlotMapping
from vgpud.unix.fd import Fd

_log = logging.getLogger(__name__)


class SlotVm(Protocol):
    """A VM in which slots can be set, such as a `uapi.kvm.Vm`."""

    def set_user_memory_region(
        self, slot: int, flags: int, guest_phys_addr: int, memory_size: int, userspace_addr: int
    ) -> None:
        """Create a slot, or with a size of 0 delete it."""


class _MappedSlot:
    """A slot's memory, and whether the slot is set in the VM."""

    __slots__ = ("mapping", "set", "size")

    def __init__(self, mapping: SlotMapping, size: int) -> None:
        self.mapping = mapping
        self.size = size
        self.set = False


class Memslots:
    """The slots of one device in `vm`. Close it before the VM.

    A slot's memory is mapped first (`attach`), and stays mapped while the slot is set, deleted and
    set elsewhere. All methods raise HostError if the kernel refuses, and then have changed nothing.
    A slot number that is not attached, or attached twice, is a bug: KeyError, ValueError.
    """

    def __init__(self, vm: SlotVm) -> None:
        self._vm = vm
        self._slots: dict[int, _MappedSlot] = {}

    def __len__(self) -> int:
        return len(self._slots)

    def __contains__(self, slot: object) -> bool:
        return slot in self._slots

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def attach(self, slot: int, fd: Fd, fd_offset: int, size: int) -> None:
        """Map the memory of a slot; the file may be closed afterwards."""
        if slot in self._slots:
            raise ValueError(f"slot {slot} has its memory already")
        self._slots[slot] = _MappedSlot(SlotMapping(fd, fd_offset, size), size)

    def set(self, slot: int, flags: int, guest_phys_addr: int) -> None:
        """Set the slot in the VM, so that the guest can access the memory.

        Raises HostError (EINVAL) for flags that this KVM does not have: none is left out silently.
        """
        mapped = self._slots[slot]
        self._vm.set_user_memory_region(
            slot, flags, guest_phys_addr, mapped.size, mapped.mapping.address
        )
        mapped.set = True

    def delete(self, slot: int) -> None:
        """Delete the slot in the VM, if it is set; its memory stays mapped in this process."""
        mapped = self._slots[slot]
        if mapped.set:
            # KVM checks flags on deletion, too, and none is needed.
            self._vm.set_user_memory_region(slot, 0, 0, 0, 0)
            mapped.set = False

    def release(self, slot: int) -> None:
        """Unmap the memory of a slot that is not set in the VM."""
        if self._slots[slot].set:
            raise ValueError(f"slot {slot} is still set")
        self._slots.pop(slot).mapping.close()

    def close(self) -> None:
        """Delete all slots and unmap their memory; a second call does nothing. Never raises.

        The memory of a slot that can't be deleted stays mapped: KVM knows it by its address, so the
        guest would get whatever this process maps there next.
        """
        # All deletions first: a deletion right after an munmap waits some 0.5 ms for the kernel's
        # clean-up.
        for slot in list(self._slots):
            try:
                self.delete(slot)
            except HostError as error:
                _log.error("slot not deleted slot=%d error=%s", slot, error)
                del self._slots[slot]
        for slot in list(self._slots):
            self.release(slot)
