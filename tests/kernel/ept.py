"""What KVM writes into its page tables for a guest, by a tracepoint of the running kernel.

Runs in the built host. An entry of the extended page tables (EPT) has the memory type that replaces
the guest's MTRRs, and says whether the guest's PAT is ignored. Source: Intel SDM vol. 3, table
"Format of an EPT Page-Table Entry that Maps a 4-KByte Page"; Linux, arch/x86/kvm/mmu/mmutrace.h.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

TRACING: Final = Path("/sys/kernel/tracing")
EVENT: Final = TRACING / "events/kvmmmu/kvm_mmu_set_spte/enable"
ENTRY: Final = re.compile(r"kvm_mmu_set_spte: gfn ([0-9a-f]+) spte ([0-9a-f]+) .* level (\d)")
TYPES: Final = {0: "UC", 1: "WC", 4: "WT", 5: "WP", 6: "WB"}
PAGE: Final = 4096


@dataclass(frozen=True, slots=True)
class Entry:
    """A page table entry that maps a page of the guest: its first page frame, its value, its level
    (1 for a page of 4 KiB)."""

    frame: int
    value: int
    level: int

    @property
    def memory_type(self) -> str:
        """The memory type and the ignore-PAT bit of an EPT entry, such as "WB, PAT ignored"."""
        pat = "ignored" if self.value >> 6 & 1 else "honoured"
        return f"{TYPES.get(self.value >> 3 & 7, 'reserved')}, PAT {pat}"

    @property
    def host_pat_entry(self) -> int:
        """The entry of the *host's* PAT that a shadow page table entry of 4 KiB selects."""
        return self.value >> 3 & 3 | self.value >> 5 & 4


@contextmanager
def traced() -> Iterator[list[Entry]]:
    """Collect the entries that KVM writes meanwhile; they are in the list afterwards.

    Raises OSError where the kernel has no such tracepoint, and RuntimeError if entries were lost.
    """
    if not EVENT.exists():
        subprocess.run(["mount", "-t", "tracefs", "tracefs", TRACING], check=True)
    entries: list[Entry] = []
    (TRACING / "trace").write_text("")
    EVENT.write_text("1")
    try:
        yield entries
    finally:
        EVENT.write_text("0")
    text = (TRACING / "trace").read_text()
    lost = re.search(r"entries-in-buffer/entries-written: (\d+)/(\d+)", text)
    if lost is None or lost[1] != lost[2]:
        raise RuntimeError(f"the trace is not whole: {lost and lost[0]}")
    for frame, value, level in ENTRY.findall(text):
        entries.append(Entry(int(frame, 16), int(value, 16), int(level)))


def memory_types(entries: Iterable[Entry], start: int, end: int) -> list[str]:
    """Return the memory types of the entries for guest addresses from `start` to `end`."""
    frames = range(start // PAGE, end // PAGE)
    return sorted({entry.memory_type for entry in entries if entry.frame in frames})
