"""The counters of a device for metrics, from the start of the daemon over all sessions.

Everything is counted on the event loop, so that no increment is lost.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field

from vgpud.gpu.wire.command_codec import Command
from vgpud.gpu.work import Traffic


@dataclass(slots=True, eq=False)
class Counters:
    """Totals. `bytes_read` and `bytes_written` are what the DMA engine moved past the caches,
    `bytes_snooped` what it moved through them."""

    commands: dict[type[Command], int] = field(default_factory=lambda: defaultdict(int))
    """By the kind of command."""
    refused: int = 0
    fences: int = 0
    maps: int = 0
    unmaps: int = 0
    bytes_read: int = 0
    bytes_written: int = 0
    bytes_snooped: int = 0
    display_updates: int = 0
    display_bytes: int = 0
    sessions: int = 0
    resets: int = 0

    def moved(self, traffic: Traffic) -> None:
        """Add the bytes that work has moved."""
        self.bytes_read += traffic.read
        self.bytes_written += traffic.written
        self.bytes_snooped += traffic.snooped
