"""The memory behind one slot: a part of a file in our address space.

Owns the address range, which stays where it is for the life of the slot: KVM finds the pages that
it gives to the guest by that address. Source:
Documentation/virt/kvm/api.rst of the kernel, "KVM_SET_USER_MEMORY_REGION".
"""

from __future__ import annotations

import errno
import logging
import os
import stat
from dataclasses import dataclass

from vgpud.errors import HostError
from vgpud.uapi import address_space
from vgpud.unix.fd import Fd

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class FileId:
    """What tells files apart: st_dev and st_ino.

    Pages that are in two files, as those of a udmabuf, can't be known for the same by it.
    """

    device: int
    inode: int


def identify(fd: Fd, offset: int, length: int) -> FileId:
    """Return which file it is that shall be mapped.

    Raises HostError, with ENXIO if a regular file has no such part.
    """
    operation = f"mapping {length:#x} bytes at offset {offset:#x} of a file"
    try:
        status = os.fstat(fd.fileno())
    except OSError as error:
        raise HostError(operation, error) from error
    if offset < 0 or (stat.S_ISREG(status.st_mode) and offset + length > status.st_size):
        advice = f"the file has {status.st_size:#x} bytes only"
        raise HostError(operation, OSError(errno.ENXIO, ""), advice)
    return FileId(status.st_dev, status.st_ino)


def duplicate(fd: Fd) -> Fd:
    """Return another owner of a slot's file. Raises HostError."""
    try:
        return fd.dup()
    except OSError as error:
        advice = "raise the limit of open files (LimitNOFILE= of the service, ulimit -n)"
        raise HostError("dup of a slot's file", error, advice) from error


class SlotMapping:
    """`length` bytes of a file from `offset` on, mapped at `address`. Raises HostError."""

    __slots__ = ("_length", "address")

    address: int

    def __init__(self, fd: Fd, offset: int, length: int) -> None:
        identify(fd, offset, length)
        self._length = length
        self.address = address_space.map_shared(fd.fileno(), offset, length)

    def close(self) -> None:
        """Unmap everything; the slot must have been deleted. Never raises."""
        try:
            address_space.unmap(self.address, self._length)
        except HostError as error:
            # Nothing that ends here splits a mapping in two, which alone can fail for want of room.
            _log.error("memory of a slot not unmapped address=%#x error=%s", self.address, error)
