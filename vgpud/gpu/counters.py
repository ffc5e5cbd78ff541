"""What a device has done since the daemon started, for metrics: plain numbers, cheap to count.

Outlives sessions. Everything is counted on the event loop, so that no increment gets lost.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field

from vgpud.gpu.wire.command_codec import Command
from vgpud.gpu.work import Traffic


@dataclass(slots=True, eq=False)
class Counters:
    """Totals. Bytes `read` and `written` are the DMA engine's, without snooping; those that a plan
    has it move through the caches are `snooped`."""

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
        """Add what work has moved."""
        self.bytes_read += traffic.read
        self.bytes_written += traffic.written
        self.bytes_snooped += traffic.snooped
