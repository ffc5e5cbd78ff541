"""The memory behind a host-visible window: one sparse, sealed memfd the size of the BAR region.

It is mapped into the VMM once; a blob is the range of it that the guest chose. `memory.window_map`
has the blobs' ranges.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
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

    def zero(self, offset: int, size: int) -> None:
        """Write zeros to a range, which takes memory for all of it."""
        self._view[offset : offset + size] = 0

    def clear(self, offset: int, size: int) -> None:
        """Free the pages of a range, which then reads as zeros, also for the guest.

        Once others have the file, only in a thread of `memory.page_freer`, as the next two.
        """
        memfd.punch_hole(self.fd, offset, size)

    def clear_steps(self, ranges: Iterable[tuple[int, int]]) -> Iterator[None]:
        """Do that for ranges, each an offset and a size, in short steps."""
        for offset, size in ranges:
            yield from memfd.punch_hole_steps(self.fd, offset, size)

    def free_steps(self) -> Iterator[None]:
        """Free all pages in short steps, so that the file reads as zeros wherever it is mapped, and
        close it."""
        try:
            yield from self.clear_steps([(0, self.size)])
        finally:
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


class UnusedRanges:
    """Ranges of a window whose pages are still to be freed; they don't overlap, and are few."""

    def __init__(self) -> None:
        self._ranges: list[tuple[int, int]] = []  # start, end
        self.size = 0
        """The bytes of all."""

    def __len__(self) -> int:
        return len(self._ranges)

    def add(self, offset: int, size: int) -> None:
        """Add a range, which overlaps none that is there."""
        self._ranges.append((offset, offset + size))
        self.size += size

    def remove(self, offset: int, size: int) -> None:
        """Remove what lies in a range that is used again."""
        end = offset + size
        left: list[tuple[int, int]] = []
        for start, stop in self._ranges:
            if start < offset:
                left.append((start, min(stop, offset)))
            if stop > end:
                left.append((max(start, end), stop))
        self._ranges = left
        self.size = sum(stop - start for start, stop in left)

    def take(self) -> list[tuple[int, int]]:
        """Remove all ranges; return the offset and the size of each."""
        taken, self._ranges, self.size = self._ranges, [], 0
        return [(start, end - start) for start, end in taken]
