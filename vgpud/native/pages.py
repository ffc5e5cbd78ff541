"""Zeroed memory of this process in small pages: the facade of pages.c."""

from __future__ import annotations

import os
from typing import Any

from vgpud.native._native import ffi, lib


class SmallPages:
    """`length` bytes of zeros at `address`, which take memory where they are touched.

    Raises OSError as mmap(2) does.
    """

    __slots__ = ("_pages", "address", "length")

    _pages: Any
    address: int
    length: int

    def __init__(self, length: int) -> None:
        pages = lib.vgpud_map_pages(length)
        if pages == ffi.NULL:
            raise OSError(ffi.errno, os.strerror(ffi.errno))
        self._pages = pages
        self.address = int(ffi.cast("uintptr_t", pages))
        self.length = length

    def unmap(self) -> None:
        """Free the pages in short steps, on any thread; the memory must not be accessed any more.
        A second call does nothing."""
        pages, self._pages = self._pages, None
        if pages is not None:
            lib.vgpud_unmap_pages(pages, self.length)
