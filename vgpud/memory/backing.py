"""What memory a buffer is in, and how this process has it mapped: what memory types depend on."""

from __future__ import annotations

from enum import StrEnum


class HostBacking(StrEnum):
    """What memory a blob is in, and how this process has it mapped.

    RAM_WB: RAM, mapped write-back (memfd, udmabuf). RAM_WC: RAM, mapped write-combining (what GEM
    drivers give). MMIO: memory of the device behind a host BAR, mapped write-combining or uncached.
    """

    RAM_WB = "ram-wb"
    RAM_WC = "ram-wc"
    MMIO = "mmio"
