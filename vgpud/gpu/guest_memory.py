"""The guest's memory, for the parts of a device."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final
from weakref import ref

from vgpud.errors import GuestAddressError
from vgpud.gpu.quota import Quota
from vgpud.gpu.wire.mem_entries import MemEntries
from vgpud.gpu.work import BackgroundWork
from vgpud.memory.extents import Extents
from vgpud.memory.steps import Steps
from vgpud.vhost.memory_table import MemoryTable, check_crossings

LONG_LIST: Final = 4096
"""Entries up to which a list is resolved at once, which takes a fraction of a millisecond. A longer
one is resolved in a thread, as many entries a step."""

ENTRY_COST: Final = 64
"""Bytes that an entry costs in addition to its own: its addresses and its span."""


class GuestMemory:
    """The memory table in use. The session sets `table` once for each table, and the parts resolve
    addresses in it when they need them.

    A part that keeps what it has resolved keeps `mark` with it, and not the table, which would keep
    memory mapped that the front-end has taken away.
    """

    __slots__ = ("_resolved", "table")

    def __init__(self) -> None:
        self.table = MemoryTable()
        self._resolved: tuple[MemEntries, MemoryTable, Extents | GuestAddressError] | None = None

    def mark(self) -> ref[MemoryTable]:
        """Return a mark of the table in use, for `is_current`."""
        return ref(self.table)

    def is_current(self, mark: ref[MemoryTable]) -> bool:
        """Return whether the table of a mark is still in use."""
        return mark() is self.table

    def resolve(self, entries: MemEntries) -> Extents:
        """Return the extents of a scatter-gather list; raise `GuestAddressError` for an entry that
        is not guest memory."""
        if self._resolved is not None:
            known, table, found = self._resolved
            if known is entries and table is self.table:
                if isinstance(found, GuestAddressError):
                    raise GuestAddressError(str(found))
                return found
        return self.table.resolve(entries)

    @asynccontextmanager
    async def resolved(
        self, entries: MemEntries, quota: Quota, executor: BackgroundWork
    ) -> AsyncIterator[None]:
        """Resolve a long list in a thread, for `resolve` inside of the block.

        Its memory is charged meanwhile. Raises `OutOfMemory`; for an entry that is not guest
        memory, `resolve` raises.
        """
        charge = quota.charge(ENTRY_COST * len(entries))
        try:
            table = None
            while table is not self.table:  # another one may be in use by then
                table, found = self.table, list[Extents | GuestAddressError]()
                await executor.run_in_thread(_resolve(table, entries, found))
            self._resolved = entries, table, found.pop()
        finally:
            charge.release()
        try:
            yield
        finally:
            self._resolved = None


def _resolve(
    table: MemoryTable, entries: MemEntries, found: list[Extents | GuestAddressError]
) -> Steps:
    """Add the extents of a list to `found`, or the error of its first entry that has none."""
    parts, crossings = [], 0
    for at in range(0, len(entries), LONG_LIST):
        some = entries[at : at + LONG_LIST]
        try:
            part = table.resolve(some)
            crossings += max(part.fragments - len(some), 0)
            check_crossings(crossings)
        except GuestAddressError as error:
            found.append(GuestAddressError(f"in the entries from {at} on, {error}"))
            return
        parts.append(part)
        yield
    found.append(Extents.join(parts))
