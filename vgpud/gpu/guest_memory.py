"""The guest's memory as the parts of a device reach it."""

from __future__ import annotations

from vgpud.vhost.memory_table import MemoryTable


class GuestMemory:
    """The memory table in force: the session hands each one on once, and the parts resolve what
    they need when they need it."""

    __slots__ = ("table",)

    def __init__(self) -> None:
        self.table = MemoryTable()
