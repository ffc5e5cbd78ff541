"""Zeroed memory for resources, pictures and scratch, as numpy arrays.

A large array is in pages of its own, which are small and are freed in a thread: numpy would have
huge ones, of which each takes up to milliseconds when it is first touched, and would free them on
the event loop, while no other thread runs Python either. Source: madvise(2), MADV_NOHUGEPAGE.
"""

from __future__ import annotations

import weakref
from functools import partial
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from vgpud.errors import OutOfMemory
from vgpud.native.pages import SmallPages
from vgpud.unix.closer import Closer

LARGE: Final = 1 << 20
"""Bytes from which an array has pages of its own. A smaller one is zeroed, and freed, in a tenth of
a millisecond, and needs no mapping, of which a process may have some 65,000 (vm.max_map_count)."""

_freer = Closer(idle=None)


class _Pages:
    """Pages that are freed when their last array is gone."""

    __slots__ = ("__weakref__", "_pages")

    def __init__(self, size: int) -> None:
        self._pages = SmallPages(size)
        _freer.begin()  # `run` may be called by the garbage collector
        # Not at exit: the process's end frees all, and other threads may still use the memory.
        weakref.finalize(self, _freer.run, self._pages.unmap).atexit = False

    @property
    def __array_interface__(self) -> dict[str, Any]:
        """Numpy's array interface: an array of the pages keeps them alive as its base."""
        return {
            "version": 3,
            "shape": (self._pages.length,),
            "typestr": "|u1",
            "data": (self._pages.address, False),
        }


def zeroed(size: int) -> NDArray[np.uint8]:
    """Return `size` zero bytes, on any thread; raise `OutOfMemory` if the host has none.

    All of the array is freed when its last view is gone.
    """
    try:
        return np.zeros(size, np.uint8) if size < LARGE else np.asarray(_Pages(size), np.uint8)
    except (MemoryError, OSError) as error:
        raise OutOfMemory(f"the host has no {size} bytes") from error


def drop_in_thread(held: list[Any]) -> None:
    """Drop what a list has the last references to, one after the other, in a thread."""
    if held:
        _freer.run(partial(_drop, held))


def _drop(held: list[Any]) -> None:
    while held:
        held.pop()  # in steps, between which other threads run
