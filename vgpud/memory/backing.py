"""The kind of memory that a buffer is in, on which memory types depend."""

from __future__ import annotations

from enum import StrEnum


class HostBacking(StrEnum):
    """The kind of memory that a blob is in, and how this process maps it.

    RAM_WB: RAM, mapped write-back (memfd, udmabuf). RAM_WC: RAM, mapped write-combining (GEM
    buffers). MMIO: memory of the device behind a host BAR, mapped write-combining or uncached.
    """

    RAM_WB = "ram-wb"
    RAM_WC = "ram-wc"
    MMIO = "mmio"
