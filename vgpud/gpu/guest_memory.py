"""The guest's memory, for the parts of a device."""

from __future__ import annotations

from vgpud.vhost.memory_table import MemoryTable


class GuestMemory:
    """The memory table in use. The session sets `table` once for each table, and the parts resolve
    addresses in it when they need them."""

    __slots__ = ("table",)

    def __init__(self) -> None:
        self.table = MemoryTable()
