"""Memory slots of a VM that this process owns: the memory behind them, and the calls to KVM.

Owns the mappings of live slots. Which slot has which number and address is the caller's to decide
(`slots.table`, or for an agent the daemon). Source: Documentation/virt/kvm/api.rst of the kernel,
"KVM_SET_USER_MEMORY_REGION".
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
    """What is needed of a VM; a `uapi.kvm.Vm` has it."""

    def set_user_memory_region(
        self, slot: int, flags: int, guest_phys_addr: int, memory_size: int, userspace_addr: int
    ) -> None:
        """Make a slot, or with a size of 0 delete it."""


class _Live:
    """A slot's memory, and whether the VM has the slot at the moment."""

    __slots__ = ("mapping", "set", "size")

    def __init__(self, mapping: SlotMapping, size: int) -> None:
        self.mapping = mapping
        self.size = size
        self.set = False


class Memslots:
    """The slots of one device in `vm`. Close it before the VM.

    A slot's memory is mapped first (`attach`), and stays mapped while the slot is set, deleted and
    set elsewhere. Everything raises HostError where the kernel refuses, and has then changed
    nothing; a slot number that is not attached, or attached twice, is a bug: KeyError, ValueError.
    """

    def __init__(self, vm: SlotVm) -> None:
        self._vm = vm
        self._slots: dict[int, _Live] = {}

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
        """Map the memory that a slot will have; the file may be closed afterwards."""
        if slot in self._slots:
            raise ValueError(f"slot {slot} has its memory already")
        self._slots[slot] = _Live(SlotMapping(fd, fd_offset, size), size)

    def set(self, slot: int, flags: int, guest_phys_addr: int) -> None:
        """Have KVM show the memory to the guest.

        Flags that this KVM does not have are EINVAL: none is left out silently.
        """
        live = self._slots[slot]
        self._vm.set_user_memory_region(
            slot, flags, guest_phys_addr, live.size, live.mapping.address
        )
        live.set = True

    def delete(self, slot: int) -> None:
        """Have KVM take it away from the guest, if it has it; the memory stays mapped."""
        live = self._slots[slot]
        if live.set:
            # Flags are checked on deletion too, and none is needed.
            self._vm.set_user_memory_region(slot, 0, 0, 0, 0)
            live.set = False

    def release(self, slot: int) -> None:
        """Unmap the memory of a slot that KVM does not have."""
        if self._slots[slot].set:
            raise ValueError(f"slot {slot} is live")
        self._slots.pop(slot).mapping.close()

    def close(self) -> None:
        """Delete all slots and unmap their memory; a second call does nothing. Never raises.

        The memory of a slot that can't be deleted stays mapped: KVM knows it by its address, where
        the guest would get whatever else this process maps there.
        """
        # All deletions first: one right after an munmap has to wait for the kernel's own clean-up,
        # some 0.5 ms each.
        for slot in list(self._slots):
            try:
                self.delete(slot)
            except HostError as error:
                _log.error("slot not deleted slot=%d error=%s", slot, error)
                del self._slots[slot]
        for slot in list(self._slots):
            self.release(slot)
