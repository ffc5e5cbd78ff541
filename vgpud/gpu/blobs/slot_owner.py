"""What the blob layouts need of a device's slot owner: mappings of files for the guest."""

from __future__ import annotations

from typing import Protocol

from vgpud.slots.entries import SlotUse
from vgpud.unix.fd import Fd


class BarSlots(Protocol):
    """Maps files into the guest's host-visible window."""

    async def map(
        self, fd: Fd, fd_offset: int, bar_offset: int, length: int, *, flags: int = 0
    ) -> None:
        """Map `length` bytes of the file, read-write; return once the VMM has done so.

        `flags` (KVM_MEM_*) are the memory slot's, where the owner makes one. Raises `HostError`
        where the VMM refuses.
        """

    async def unmap(self, bar_offset: int, length: int) -> None:
        """Remove exactly what one `map` has mapped; raise `HostError` where the VMM refuses."""


class RamSlots(Protocol):
    """Maps files anywhere into the guest's address space: with `SlotUse.RAM`, `offset` is a
    guest-physical address. Errors are those of `BarSlots`."""

    async def map(
        self, fd: Fd, fd_offset: int, offset: int, length: int, /, *, flags: int, use: SlotUse
    ) -> None:
        """Map `length` bytes of the file, read-write."""

    async def unmap(self, offset: int, length: int, /, *, use: SlotUse) -> None:
        """Remove exactly what one `map` has mapped."""
