"""Shared mappings of files as numpy arrays.

A mapping lasts as long as any view of it, and has a guard against SIGBUS. An address also has a
**canonical address**, which is equal for two addresses of the same memory: the same page of a file
may be mapped more than once, by a front-end that sends one file in several regions, or that sends
the daemon's own window back.
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
from vgpud.unix.closer import Closer
from vgpud.unix.fd import Fd
from vgpud.unix.file_kind import FileKind, file_kind

# A canonical address is the number of a file times 2**48, plus the offset in the file. Number 0 is
# memory of no file, whose canonical address is the address itself (below 2**47 on x86-64, as this
# process asks mmap for no higher one). All are below 2**63, so that differences fit in an int64.
_FILE_SHIFT = 48
_MAX_FILES = 1 << 15
_NO_END = 1 << 64  # sorts after every mapping of the same address

_ADDRESSES = 1 << 47
"""Bytes of addresses that a process has on x86-64: mmap gives out no higher ones unless asked."""


UNMAP_IN_THREAD = 16 << 20
"""Bytes from which a mapping is unmapped in a thread: that takes 0.1 ms for each MiB in use."""


class _Mappings:
    """The live mappings by address, and the numbers of the files that they map.

    A mapping may end at any time, when the garbage collector finds the last view of it, also in a
    thread that holds the lock. So its end is only put on a list, which the thread that holds or
    next takes the lock works off.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._ended: deque[tuple[GuardedMapping, tuple[int, int], bool]] = deque()
        self._files: dict[tuple[int, int], tuple[int, int]] = {}  # number, mappings
        self._free = list(range(_MAX_FILES - 1, 0, -1))
        self._mappings: list[tuple[int, int, int]] = []  # start, end, canonical start
        self._used = 0  # bytes of addresses
        # For large mappings, and for memory that others share: the last to unmap frees its pages.
        self._unmapper = Closer(idle=None)

    @property
    def unused(self) -> int:
        """Bytes of addresses that no mapping has; about half of them may be in one piece."""
        return _ADDRESSES - self._used

    def knows(self, file: tuple[int, int]) -> bool:
        """Return whether a part of a file is mapped."""
        return file in self._files

    def prepare_thread(self) -> None:
        """Prepare for mappings that end later than `end` is called."""
        self._unmapper.begin()

    def add(self, address: int, end: int, file: tuple[int, int], offset: int) -> None:
        with self._lock:
            number, users = self._files.get(file, (0, 0))
            if not number:
                if not self._free:
                    raise OSError(errno.ENFILE, os.strerror(errno.ENFILE))
                number = self._free.pop()
            self._files[file] = number, users + 1
            insort(self._mappings, (address, end, (number << _FILE_SHIFT) + offset))
            self._used += end - address
        self._work_off()

    def end(self, guarded: GuardedMapping, file: tuple[int, int], in_thread: bool) -> None:
        """Forget a mapping and unmap it, now or as soon as the lock is free."""
        self._ended.append((guarded, file, in_thread))
        self._work_off()

    def _work_off(self) -> None:
        while self._ended and self._lock.acquire(blocking=False):
            try:
                while self._ended:
                    self._remove(*self._ended.popleft())
            finally:
                self._lock.release()

    def _remove(self, guarded: GuardedMapping, file: tuple[int, int], in_thread: bool) -> None:
        # The entry first: the kernel may use the address for the next mapping at once.
        del self._mappings[bisect_left(self._mappings, (guarded.address,))]
        number, users = self._files.pop(file)
        if users > 1:
            self._files[file] = number, users - 1
        else:
            self._free.append(number)
        if in_thread:
            self._unmapper.run(lambda: self._unmap(guarded))
        else:
            guarded.unmap()
            self._used -= guarded.length

    def _unmap(self, guarded: GuardedMapping) -> None:
        guarded.unmap()
        with self._lock:
            self._used -= guarded.length
        self._work_off()

    def canonical_address(self, address: int) -> int:
        with self._lock:
            index = bisect_right(self._mappings, (address, _NO_END)) - 1
            start, end, canonical = self._mappings[index] if index >= 0 else (0, 0, 0)
        self._work_off()
        return address - start + canonical if address < end else address

    def canonical_addresses(self, addresses: NDArray[np.uint64]) -> NDArray[np.int64]:
        with self._lock:
            mappings = np.array([(0, 0, 0), *self._mappings], np.uint64)
        self._work_off()
        index = mappings[:, 0].searchsorted(addresses, "right") - 1
        start, end, canonical = mappings[index].T
        known = addresses < end
        return np.where(known, addresses - start + canonical, addresses).astype(np.int64)


_mappings = _Mappings()


class Mapping:
    """A shared mapping of a part of a file, unmapped when its last array is garbage-collected.

    Made by `map_file`; `map_shared` returns just its bytes.
    """

    __slots__ = ("__weakref__", "_guarded", "_length", "_skip", "_writable")

    def __init__(self, guarded: GuardedMapping, skip: int, length: int, writable: bool) -> None:
        self._guarded = guarded
        self._skip = skip
        self._length = length
        self._writable = writable

    @property
    def __array_interface__(self) -> dict[str, Any]:
        """Numpy's array interface: an array of the mapping keeps it alive as its base."""
        return {
            "version": 3,
            "shape": (self._length,),
            "typestr": "|u1",
            "data": (self._guarded.address + self._skip, not self._writable),
        }

    def __len__(self) -> int:
        return self._length

    @property
    def array(self) -> NDArray[np.uint8]:
        """The mapped bytes, without a copy."""
        return np.asarray(self, np.uint8)

    @property
    def faulted(self) -> bool:
        """Whether an access found its page lost: the file was truncated after it was mapped.

        Since then the array has private zeros from there on instead of what others see.
        """
        return self._guarded.faulted


def map_file(fd: Fd, length: int, offset: int = 0, *, writable: bool = True) -> Mapping:
    """Map `length` bytes of a file from any `offset`, shared; the fd can be closed afterwards.

    Raises HostError, also (with ENXIO) if a regular file is too short: mmap would succeed, and an
    access beyond the end fail.
    """
    return _map(fd, length, offset, writable=writable, received=False)


def map_received_file(fd: Fd, length: int, offset: int = 0) -> Mapping:
    """Map `length` bytes of a file that another process has sent, as `map_file` does.

    One mapping has at most half of the addresses that are left, so that the next finds some. Raises
    HostError, also for a file that `received_file` refuses.
    """
    received_file(fd)
    if length > _mappings.unused // 2:
        advice = f"it is more than half of the {_mappings.unused} bytes of addresses that are left"
        raise HostError(_operation(length, offset), OSError(errno.ENOMEM, ""), advice)
    return _map(fd, length, offset, writable=True, received=True)


def unused_addresses() -> int:
    """Return the bytes of addresses of this process that no mapping of a file has."""
    return _mappings.unused


def received_file(fd: Fd) -> tuple[int, int]:
    """Return the device and the inode number of a file that another process has sent.

    The file must be a memory file, a file on tmpfs or hugetlbfs, or a dma-buf that is mapped in
    this process already, because it is its own: an access to another file could wait for a disk, or
    for a server that never answers. Raises HostError, without asking the file itself.
    """
    kind = file_kind(fd)
    if kind in {FileKind.MEMORY, FileKind.DMA_BUF}:
        file = _identity(os.fstat(fd.fileno()))
        if kind is FileKind.MEMORY or _mappings.knows(file):
            return file
    advice = (
        "it must be a memory file, or on tmpfs or hugetlbfs: with QEMU, memory-backend-memfd, or "
        "memory-backend-file with mem-path=/dev/shm"
    )
    raise HostError("sharing memory in a file", OSError(errno.EMEDIUMTYPE, ""), advice)


def _map(fd: Fd, length: int, offset: int, *, writable: bool, received: bool) -> Mapping:
    operation = _operation(length, offset)
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
    file = _identity(status)
    # What others share may be the last to be unmapped, which frees the pages.
    in_thread = received or total >= UNMAP_IN_THREAD
    if in_thread:
        _mappings.prepare_thread()
    try:
        _mappings.add(guarded.address, guarded.address + total, file, offset - skip)
    except OSError as error:
        guarded.unmap()
        raise HostError(operation, error, "too many files are mapped") from error
    mapping = Mapping(guarded, skip, length, writable)
    # Not at exit: the process's end unmaps all, and other threads may still use the memory.
    weakref.finalize(mapping, _mappings.end, guarded, file, in_thread).atexit = False
    return mapping


def _operation(length: int, offset: int) -> str:
    return f"mmap of {length} bytes at offset 0x{offset:x}"


def _identity(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino


def map_shared(fd: Fd, length: int, offset: int = 0, *, writable: bool = True) -> NDArray[np.uint8]:
    """Map part of a file as `map_file` does and return its bytes; views keep the mapping alive."""
    return map_file(fd, length, offset, writable=writable).array


def canonical_address(address: int) -> int:
    """Return a number that is equal for two addresses of the same memory."""
    return _mappings.canonical_address(address)


def canonical_addresses(addresses: NDArray[np.uint64]) -> NDArray[np.int64]:
    """Return the canonical address of each address.

    Those of neighbouring bytes of a mapping differ by one. They are valid while the mapping exists.
    """
    return _mappings.canonical_addresses(addresses)


def _page_size(status: os.stat_result) -> int:
    """Return the alignment of a file's mappings: more than a page on hugetlbfs.

    Other filesystems report a preferred size in st_blksize, too; it only makes mappings a bit
    larger.
    """
    size = status.st_blksize
    return size if size > PAGE_SIZE and size & (size - 1) == 0 else PAGE_SIZE
