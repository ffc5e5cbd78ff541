"""The memory behind a host-visible window: one sparse, sealed memfd the size of the BAR region.

It is mapped into the VMM once; a blob is the range of it that the guest chose. `memory.window_map`
has the blobs' ranges.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack

import numpy as np
from numpy.typing import NDArray

from vgpud.memory import memfd
from vgpud.memory.mapping import map_shared


class HostWindow:
    """The memory file of a window and its mapping in this process.

    It reads as zeros at first, and takes memory only where it was written.
    """

    def __init__(self, name: str, size: int) -> None:
        self.size = size
        with ExitStack() as stack:
            self.fd = stack.enter_context(memfd.create(name, size))
            self._view = map_shared(self.fd, size)
            stack.pop_all()

    def view(self, offset: int, size: int) -> NDArray[np.uint8]:
        """Return the bytes of a range, (size,) of uint8, shared with the guest."""
        return self._view[offset : offset + size]

    def clear(self, offset: int, size: int) -> None:
        """Free the pages of a range, which then reads as zeros, also for the guest."""
        memfd.punch_hole(self.fd, offset, size)

    def clear_steps(self, offset: int, size: int) -> Iterator[None]:
        """Do the same in short steps, on any thread."""
        return memfd.punch_hole_steps(self.fd, offset, size)

    def free(self) -> None:
        """Free all pages, so that the file reads as zeros wherever it is mapped, and close it."""
        self.clear(0, self.size)
        self.close()

    def allocated(self) -> int:
        """Return how many bytes of the host's memory the window takes at the moment."""
        return memfd.allocated_bytes(self.fd)

    def close(self) -> None:
        """Close the file.

        Its memory is freed when the VMM's mapping and the last view in this process are gone.
        """
        self.fd.close()
        self._view = np.empty(0, np.uint8)
