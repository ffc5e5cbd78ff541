"""What the memory of blobs is made of: files that can be mapped here and in a VMM.

Owns the interface of the sources, and the plain one. Those of dma-bufs are `udmabuf` and `gem`.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from contextlib import ExitStack
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
    """`size` bytes, zeros at first: from the start of the file `fd`, which is whole pages, and in
    `view`, which is (size,) of uint8.

    `backing` is what memory they are in. Owns the file; the mapping lasts as long as any view of
    it. `lost` says why the bytes can't be relied on any more. Raises HostError if the file can't be
    mapped; the descriptor is closed then.
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
        """Why the bytes are lost, as the device that had them has gone; None while all is well."""
        if self._mapping.faulted:
            return "its memory is gone"
        return self._lost()

    def close(self) -> None:
        """Close the file; its memory goes when all mappings of it have gone."""
        self.fd.close()


class BufferSource(Protocol):
    """Where buffers come from."""

    @property
    def backing(self) -> HostBacking:
        """What memory all of its buffers are in."""

    @property
    def slow(self) -> bool:
        """Whether making a buffer takes time in proportion to its size, so that a thread of its own
        should do it."""

    def allocate(self, name: str, size: int) -> Buffer:
        """Make a buffer of whole pages, on any thread; raises HostError. `name` is for people."""

    def problem(self) -> str | None:
        """Why no buffer can be had at the moment; None if one can, as far as is known."""


class MemfdSource:
    """Sealed memory files: pages that the kernel may move and swap, mapped write-back."""

    slow = False
    backing = HostBacking.RAM_WB

    def allocate(self, name: str, size: int) -> Buffer:
        return Buffer(memfd.create(name, size), size, self.backing)

    def problem(self) -> str | None:
        return None
