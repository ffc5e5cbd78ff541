"""Buffers for blobs: files that can be mapped into this process and into a VMM.

Here are the interface of buffer sources and the source of memory files; those of dma-bufs are in
`memory.udmabuf` and `memory.gem`.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from vgpud.errors import HostError
from vgpud.memory import memfd
from vgpud.memory.backing import HostBacking
from vgpud.memory.mapping import map_file
from vgpud.unix.fd import Fd, in_reserve

_ADVICE = 'raise LimitNOFILE, or use layout = "window"'


class Buffer:
    """The first `size` bytes of the file `fd`, mapped as `view`, which is (size,) of uint8.

    The bytes are zeros at first, and the file is whole pages. `backing` is the kind of memory. The
    buffer owns the file; the mapping lasts as long as any view of it. `lost` returns why the bytes
    can't be relied on any more. Raises HostError if the file can't be mapped; the descriptor is
    closed then.
    """

    __slots__ = ("_lost", "_mapping", "backing", "fd", "view")

    def __init__(
        self,
        fd: Fd,
        size: int,
        backing: HostBacking = HostBacking.RAM_WB,
        lost: Callable[[], str | None] = lambda: None,
    ) -> None:
        self.fd = fd
        self.backing = backing
        self._lost = lost
        with ExitStack() as stack:
            stack.callback(fd.close)
            if in_reserve(fd):
                raise HostError("a file for a blob", OSError(errno.EMFILE, ""), _ADVICE)
            self._mapping = map_file(fd, size)
            self.view: NDArray[np.uint8] = self._mapping.array
            stack.pop_all()

    def lost(self) -> str | None:
        """Return why the contents are lost; None while they are not.

        They are lost when the device that had them is gone.
        """
        if self._mapping.faulted:
            return "its memory is gone"
        return self._lost()

    def free_steps(self) -> Iterator[None]:
        """Free the pages in short steps, after which they read as zeros, and close the file.

        Only in a thread of `memory.page_freer`. A dma-buf's pages are freed by `close`.
        """
        try:
            with suppress(HostError):
                yield from memfd.punch_hole_steps(self.fd, 0, self.view.size)
        finally:
            self.close()

    def close(self) -> None:
        """Close the file; its memory is freed when all mappings of it are gone."""
        self.fd.close()


class BufferSource(Protocol):
    """A source of buffers."""

    @property
    def backing(self) -> HostBacking:
        """The kind of memory of all its buffers."""

    @property
    def slow(self) -> bool:
        """Whether making a buffer takes time in proportion to its size, and so needs a thread."""

    def allocate(self, name: str, size: int) -> Buffer:
        """Make a buffer of whole pages, on any thread. Raises HostError. `name` is for people."""

    def problem(self) -> str | None:
        """Return why no buffer can be made at the moment; None if one can, as far as known."""


class MemfdSource:
    """Sealed memory files: pages that the kernel may move and swap, mapped write-back."""

    slow = False
    backing = HostBacking.RAM_WB

    def allocate(self, name: str, size: int) -> Buffer:
        return Buffer(memfd.create(name, size), size, self.backing)

    def problem(self) -> str | None:
        return None
