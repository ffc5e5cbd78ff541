"""Memory entries: the extents of guest memory that some commands bring after their struct.

Specification: virtio 1.3, 5.7.6.8, `struct virtio_gpu_mem_entry`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

MEM_ENTRY = np.dtype([("addr", "<u8"), ("length", "<u4"), ("padding", "<u4")])
"""One extent of guest memory."""
assert MEM_ENTRY.itemsize == 16

MemEntries: TypeAlias = "NDArray[np.void]"
"""A one-dimensional read-only array of MEM_ENTRY, a copy of the driver's."""


def mem_entries(*extents: tuple[int, int]) -> MemEntries:
    """Make memory entries of (guest-physical address, length in bytes) pairs."""
    entries = np.array([(addr, length, 0) for addr, length in extents], dtype=MEM_ENTRY)
    entries.flags.writeable = False
    return entries


def bytes_kept(entries: MemEntries) -> int:
    """Return how many bytes an array of entries keeps: its own, or those of all of its request."""
    request = entries.base
    return len(request) if isinstance(request, bytes) else entries.nbytes
