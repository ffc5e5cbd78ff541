"""A memory slot as a value: its number, its flags, its guest-physical range, and its pages' file.

Source: Documentation/virt/kvm/api.rst of the kernel, "KVM_SET_USER_MEMORY_REGION".
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import NewType

from vgpud.uapi.memslot import SlotFlag

Slot = NewType("Slot", int)
"""The number of a KVM memory slot."""


class SlotUse(StrEnum):
    """What a slot is for the guest: a part of the BAR or RAM."""

    BAR = "bar"
    RAM = "ram"


@dataclass(frozen=True, slots=True)
class SlotBacking:
    """The pages of a slot: a file's st_dev and st_ino, and the offset in it in bytes."""

    device: int
    inode: int
    offset: int

    @property
    def file(self) -> tuple[int, int]:
        """The identity of the file."""
        return self.device, self.inode


@dataclass(frozen=True, slots=True)
class Entry:
    """A slot; `offset` is in bytes from the start of the BAR, or for RAM from address 0."""

    slot: Slot
    use: SlotUse
    offset: int
    size: int
    flags: SlotFlag
    backing: SlotBacking

    @property
    def non_coherent(self) -> bool:
        """Whether the slot has KVM_MEM_NON_COHERENT_DMA."""
        return bool(self.flags & SlotFlag.NON_COHERENT_DMA)

    @property
    def end(self) -> int:
        """The offset of the first byte after the slot."""
        return self.offset + self.size
