"""The guest's memory, for the parts of a device."""

from __future__ import annotations

from weakref import ref

from vgpud.vhost.memory_table import MemoryTable


class GuestMemory:
    """The memory table in use. The session sets `table` once for each table, and the parts resolve
    addresses in it when they need them.

    A part that keeps what it has resolved keeps `mark` with it, and not the table, which would keep
    memory mapped that the front-end has taken away.
    """

    __slots__ = ("table",)

    def __init__(self) -> None:
        self.table = MemoryTable()

    def mark(self) -> ref[MemoryTable]:
        """Return a mark of the table in use, for `is_current`."""
        return ref(self.table)

    def is_current(self, mark: ref[MemoryTable]) -> bool:
        """Return whether the table of a mark is still in use."""
        return mark() is self.table
