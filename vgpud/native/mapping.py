"""Shared file mappings that survive a file that shrinks: the facade of mapping.c."""

from __future__ import annotations

import os
from typing import Any, Final

from vgpud.native._native import ffi, lib

FAULT_EVENT: Final[int] = lib.vgpud_fault_event()
"""A non-blocking eventfd that is signalled when a mapping has faulted; -1 if there is none.

It is made on import, when the process has descriptors left.
"""


class GuardedMapping:
    """A shared mapping of a file that survives the file's shrinking.

    An access to a lost page turns `faulted` into True and puts private zeros in place of the
    mapping from there to its end; of all of it where the process can't have another mapping
    (vm.max_map_count). `address` is where the mapping is, `length` its length in bytes: whole pages
    of `page_size`. Raises OSError as mmap(2) does.
    """

    __slots__ = ("_handle", "address", "length")

    _handle: Any
    address: int
    length: int

    def __init__(self, fd: int, offset: int, length: int, page_size: int, writable: bool) -> None:
        handle = lib.vgpud_map_shared(fd, offset, length, page_size, writable)
        if handle == ffi.NULL:
            raise OSError(ffi.errno, os.strerror(ffi.errno))
        self._handle = handle
        self.address = lib.vgpud_mapping_address(handle)
        self.length = length

    @property
    def faulted(self) -> bool:
        """Whether an access found its page gone."""
        return self._handle is not None and bool(lib.vgpud_mapping_faulted(self._handle))

    def unmap(self) -> None:
        """Unmap; the memory must not be accessed any more. A second call does nothing."""
        handle, self._handle = self._handle, None
        if handle is not None:
            lib.vgpud_unmap(handle)


def punch_hole(fd: int, offset: int, length: int) -> None:
    """Free the pages of a range of a file, so that it reads as zeros.

    Raises OSError as fallocate(2) does.
    """
    if lib.vgpud_punch_hole(fd, offset, length) != 0:
        raise OSError(ffi.errno, os.strerror(ffi.errno))
