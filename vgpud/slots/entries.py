"""What a memory slot is: its number, its flags, where it is for the guest and whose pages it has.

Values only. Source: Documentation/virt/kvm/api.rst of the kernel, "KVM_SET_USER_MEMORY_REGION".
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import NewType

from vgpud.uapi.memslot import SlotFlag

Slot = NewType("Slot", int)
"""The number of a KVM memory slot."""


class SlotUse(StrEnum):
    """What a slot is to the guest."""

    BAR = "bar"
    RAM = "ram"


@dataclass(frozen=True, slots=True)
class SlotBacking:
    """Where in which file a slot's pages are: st_dev, st_ino, and bytes from the file's start."""

    device: int
    inode: int
    offset: int

    @property
    def file(self) -> tuple[int, int]:
        """What tells files apart."""
        return self.device, self.inode


@dataclass(frozen=True, slots=True)
class Entry:
    """A slot; `offset` is in bytes, from the BAR's base for a BAR and from address 0 for RAM."""

    slot: Slot
    use: SlotUse
    offset: int
    size: int
    flags: SlotFlag
    backing: SlotBacking

    @property
    def non_coherent(self) -> bool:
        """Whether the guest's own page attributes decide the memory type there."""
        return bool(self.flags & SlotFlag.NON_COHERENT_DMA)

    @property
    def end(self) -> int:
        """The first byte behind it."""
        return self.offset + self.size
