"""Shared mappings of files as numpy arrays.

Owns the life of a mapping (it lasts as long as any view of it), its SIGBUS guard, and the answer to
"are these two addresses the same memory?": the same page of a file may be mapped more than once, by
a front-end that sends one file in several regions, or that sends us our own window back.
"""

from __future__ import annotations

import errno
import os
import stat
import threading
import weakref
from bisect import bisect_left, bisect_right, insort
from collections import deque
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vgpud.errors import HostError
from vgpud.native.mapping import GuardedMapping
from vgpud.uapi.page import PAGE_SIZE
from vgpud.unix.fd import Fd

# Memory has a name besides its addresses: the number of a file here times 2**48, plus the offset in
# the file. Number 0 is all that is no file; there the address itself (below 2**47 on x86-64, as
# nobody here asks mmap for more) is the name. The result stays below 2**63, so that differences
# of names fit in an int64.
_FILE_SHIFT = 48
_MAX_FILES = 1 << 15
_NO_END = 1 << 64  # sorts after every mapping of the same address


class _Names:
    """The live mappings by address, and the numbers of the files that they map.

    A mapping may end in the middle of anything, when the garbage collector finds the last view of
    it, also in this thread and while it holds the lock. So the end of one only goes on a list;
    whoever has the lock works the list off.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._ended: deque[tuple[GuardedMapping, tuple[int, int]]] = deque()
        self._files: dict[tuple[int, int], tuple[int, int]] = {}  # number, mappings
        self._free = list(range(_MAX_FILES - 1, 0, -1))
        self._mappings: list[tuple[int, int, int]] = []  # address, end, name of the first byte

    def add(self, address: int, end: int, file: tuple[int, int], offset: int) -> None:
        with self._lock:
            number, users = self._files.get(file, (0, 0))
            if not number:
                if not self._free:
                    raise OSError(errno.ENFILE, os.strerror(errno.ENFILE))
                number = self._free.pop()
            self._files[file] = number, users + 1
            insort(self._mappings, (address, end, (number << _FILE_SHIFT) + offset))

        self._work_off()

    def end(self, guarded: GuardedMapping, file: tuple[int, int]) -> None:
        """Forget a mapping and unmap it, now or as soon as the lock is free."""
        self._ended.append((guarded, file))
        self._work_off()

    def _work_off(self) -> None:
        while self._ended and self._lock.acquire(blocking=False):
            try:
                while self._ended:
                    self._remove(*self._ended.popleft())
            finally:
                self._lock.release()

    def _remove(self, guarded: GuardedMapping, file: tuple[int, int]) -> None:
        # The name goes first: the kernel may give the address to the next mapping at once.
        del self._mappings[bisect_left(self._mappings, (guarded.address,))]
        number, users = self._files.pop(file)
        if users > 1:
            self._files[file] = number, users - 1
        else:
            self._free.append(number)
        guarded.unmap()

    def of_one(self, address: int) -> int:
        with self._lock:
            index = bisect_right(self._mappings, (address, _NO_END)) - 1
            start, end, name = self._mappings[index] if index >= 0 else (0, 0, 0)
        self._work_off()
        return address - start + name if address < end else address

    def of(self, addresses: NDArray[np.uint64]) -> NDArray[np.int64]:
        with self._lock:
            mappings = np.array([(0, 0, 0), *self._mappings], np.uint64)
        self._work_off()
        index = mappings[:, 0].searchsorted(addresses, "right") - 1
        start, end, name = mappings[index].T
        known = addresses < end
        return np.where(known, addresses - start + name, addresses).astype(np.int64)


_names = _Names()


class Mapping:
    """A shared mapping of part of a file, unmapped when its last array dies.

    `array` is its bytes. Made by `map_file`; who needs the bytes only calls `map_shared`.
    """

    __slots__ = ("__weakref__", "_guarded", "_length", "_skip", "_writable")

    def __init__(self, guarded: GuardedMapping, skip: int, length: int, writable: bool) -> None:
        self._guarded = guarded
        self._skip = skip
        self._length = length
        self._writable = writable

    @property
    def __array_interface__(self) -> dict[str, Any]:
        """Numpy's array protocol: an array made of this keeps it alive as its base."""
        return {
            "version": 3,
            "shape": (self._length,),
            "typestr": "|u1",
            "data": (self._guarded.address + self._skip, not self._writable),
        }

    @property
    def array(self) -> NDArray[np.uint8]:
        """The mapped bytes, without a copy."""
        return np.asarray(self, np.uint8)

    @property
    def faulted(self) -> bool:
        """Whether an access found its page gone: the file was truncated after it was mapped.

        From there on the array holds private zeros instead of what others see.
        """
        return self._guarded.faulted


def map_file(fd: Fd, length: int, offset: int = 0, *, writable: bool = True) -> Mapping:
    """Map `length` bytes of a file from any `offset`, shared; the fd can be closed afterwards.

    Raises HostError, also (with ENXIO) if a regular file is too short: a mapping beyond the end
    would work until someone touches it.
    """
    operation = f"mmap of {length} bytes at offset 0x{offset:x}"
    try:
        status = os.fstat(fd.fileno())
        if length <= 0 or offset < 0:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        if offset + length > 1 << _FILE_SHIFT:
            raise OSError(errno.EFBIG, os.strerror(errno.EFBIG))
        if stat.S_ISREG(status.st_mode) and offset + length > status.st_size:
            error = OSError(errno.ENXIO, os.strerror(errno.ENXIO))
            raise HostError(operation, error, f"the file has {status.st_size} bytes only")
        page_size = _page_size(status)
        skip = offset % page_size
        # Whole pages: munmap refuses to cut a huge one.
        total = -(-(skip + length) // page_size) * page_size
        guarded = GuardedMapping(fd.fileno(), offset - skip, total, page_size, writable=writable)
    except OSError as error:
        advice = ""
        if error.errno == errno.ENOMEM:
            advice = "more mappings or address space than the system allows (vm.max_map_count)"
        raise HostError(operation, error, advice) from error
    file = status.st_dev, status.st_ino
    try:
        _names.add(guarded.address, guarded.address + total, file, offset - skip)
    except OSError as error:
        guarded.unmap()
        raise HostError(operation, error, "too many files are mapped") from error
    mapping = Mapping(guarded, skip, length, writable)
    # At exit the process takes its mappings with it, while other threads may still use them.
    weakref.finalize(mapping, _names.end, guarded, file).atexit = False
    return mapping


def map_shared(fd: Fd, length: int, offset: int = 0, *, writable: bool = True) -> NDArray[np.uint8]:
    """Map part of a file as `map_file` does and return its bytes; views keep the mapping alive."""
    return map_file(fd, length, offset, writable=writable).array


def name(address: int) -> int:
    """Return a number that is equal for two addresses if they are the same memory."""
    return _names.of_one(address)


def names(addresses: NDArray[np.uint64]) -> NDArray[np.int64]:
    """Return `name` of each address.

    Names of neighbouring bytes of a mapping differ by one. They hold while the mapping lives.
    """
    return _names.of(addresses)


def _page_size(status: os.stat_result) -> int:
    """Return what a file's mappings must be aligned to: more than a page on hugetlbfs.

    Other filesystems have preferences in st_blksize too; following them maps a bit more than asked.
    """
    size = status.st_blksize
    return size if size > PAGE_SIZE and size & (size - 1) == 0 else PAGE_SIZE
