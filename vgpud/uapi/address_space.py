"""Mappings of files whose address matters, for memory that only a guest accesses.

Python's mmap module does not tell the address of a mapping. This process neither reads nor writes
what is mapped, so no guard against files that shrink is needed: KVM answers a guest's access there
with EFAULT. Source: mmap(2).
"""

from __future__ import annotations

import errno
import os
from types import MappingProxyType
from typing import Final

from vgpud.errors import HostError
from vgpud.uapi._linux import ffi, lib
from vgpud.uapi.ioctl import Remedies

_REMEDIES: Final[Remedies] = MappingProxyType(
    {
        errno.ENOMEM: "more mappings or address space than the system allows (vm.max_map_count)",
        errno.EACCES: "the file must be open for reading and writing",
        errno.EPERM: "the file is sealed against writing",
        errno.ENODEV: "this kind of file can't be mapped",
        errno.EINVAL: "offset and length must be multiples of the file's page size",
        errno.EAGAIN: "raise the limit of locked memory (LimitMEMLOCK= of the service, ulimit -l)",
    }
)
_MAP_FAILED: Final = ffi.cast("void *", -1)


def map_shared(fd: int, offset: int, length: int) -> int:
    """Map a part of a file, shared and writable; return the address. Raises HostError."""
    operation = f"mmap of {length:#x} bytes at offset {offset:#x}"
    protection = lib.PROT_READ | lib.PROT_WRITE
    result = lib.mmap(ffi.NULL, length, protection, lib.MAP_SHARED, fd, offset)
    if result == _MAP_FAILED:
        number = ffi.errno
        error = OSError(number, os.strerror(number))
        raise HostError(operation, error, _REMEDIES.get(number, "")) from error
    return int(ffi.cast("uintptr_t", result))


def unmap(address: int, length: int) -> None:
    """Unmap whole pages. Raises HostError."""
    if lib.munmap(ffi.cast("void *", address), length) != 0:
        number = ffi.errno
        error = OSError(number, os.strerror(number))
        raise HostError(f"munmap of {length:#x} bytes", error, _REMEDIES.get(number, ""))
