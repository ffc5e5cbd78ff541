"""The memory behind a host-visible window: one sparse, sealed memfd the size of the BAR region.

It is mapped into the VMM once; a blob is the range of it that the guest asked for. Owns the file
and our own mapping of it, not who lies where (`memory.window_map`).
"""

from __future__ import annotations

from contextlib import ExitStack

import numpy as np
from numpy.typing import NDArray

from vgpud.memory import memfd
from vgpud.memory.mapping import map_shared


class HostWindow:
    """`size` bytes of zeros that cost memory only where they were written."""

    def __init__(self, name: str, size: int) -> None:
        self.size = size
        with ExitStack() as stack:
            self.fd = stack.enter_context(memfd.create(name, size))
            self._view = map_shared(self.fd, size)
            stack.pop_all()

    def view(self, offset: int, size: int) -> NDArray[np.uint8]:
        """The bytes of a range, (size,) of uint8, shared with the guest."""
        return self._view[offset : offset + size]

    def clear(self, offset: int, size: int) -> None:
        """Gives a range's pages back to the host; it reads as zeros from then on, for the guest as
        well."""
        memfd.punch_hole(self.fd, offset, size)

    def allocated(self) -> int:
        """Bytes of the host's memory that the window holds at the moment."""
        return memfd.allocated_bytes(self.fd)

    def close(self) -> None:
        """Closes the file; its memory goes when the VMM's mapping and the last view of ours have
        gone."""
        self.fd.close()
