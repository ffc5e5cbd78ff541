"""The memory of one slot: a part of a file, mapped into this process.

The mapping's address must not change during the life of the slot: by it KVM finds the pages.
Source: Documentation/virt/kvm/api.rst of the kernel, "KVM_SET_USER_MEMORY_REGION".
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
    """The identity of a file: st_dev and st_ino.

    It does not show that pages are in two files, as those of a udmabuf are.
    """

    device: int
    inode: int


def identify(fd: Fd, offset: int, length: int) -> FileId:
    """Return the identity of a file of which this part will be mapped.

    Raises HostError, with ENXIO if a regular file is too short.
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
        """Unmap the memory; the slot must have been deleted before. Never raises."""
        try:
            address_space.unmap(self.address, self._length)
        except HostError as error:
            # Not expected: only an munmap that splits a mapping in two can fail for lack of memory.
            _log.error("memory of a slot not unmapped address=%#x error=%s", self.address, error)
