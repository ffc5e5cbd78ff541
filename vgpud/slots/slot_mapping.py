"""The memory behind one slot: a file in our address space, with parts of others mapped over it.

Owns the address range, which stays where it is for the life of the slot: KVM finds the pages that
it gives to the guest by that address, and follows when another file is mapped there. Source:
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


class SlotMapping:
    """`length` bytes of a file from `offset` on, mapped at `address`. Raises HostError.

    One that shall take inlays keeps the file open, to map it again where an inlay has gone.
    """

    __slots__ = ("_fd", "_length", "_offset", "address")

    address: int

    def __init__(self, fd: Fd, offset: int, length: int, *, inlays: bool = False) -> None:
        identify(fd, offset, length)
        self._offset = offset
        self._length = length
        self._fd: Fd | None = None
        if inlays:
            try:
                self._fd = fd.dup()
            except OSError as error:
                advice = "raise the limit of open files (LimitNOFILE= of the service, ulimit -n)"
                raise HostError("dup of a slot's file", error, advice) from error
        try:
            self.address = address_space.map_shared(fd.fileno(), offset, length)
        except HostError:
            self._close_file()
            raise

    def put_inlay(self, at: int, fd: Fd, offset: int, length: int) -> None:
        """Map a part of another file over `length` bytes from `at` on: the guest sees it at once.

        Raises HostError; our own memory is there then, as before.
        """
        self._check(at, length)
        identify(fd, offset, length)
        try:
            address_space.map_shared(fd.fileno(), offset, length, at=self.address + at)
        except HostError:
            # The kernel may have taken the old pages out of the way before it failed.
            self.remove_inlay(at, length)
            raise

    def remove_inlay(self, at: int, length: int) -> None:
        """Map our own memory again. Raises HostError."""
        self._check(at, length)
        assert self._fd is not None
        address_space.map_shared(self._fd.fileno(), self._offset + at, length, at=self.address + at)

    def close(self) -> None:
        """Unmap everything; the slot must have been deleted. Never raises."""
        self._close_file()
        try:
            address_space.unmap(self.address, self._length)
        except HostError as error:
            # Nothing that ends here splits a mapping in two, which alone can fail for want of room.
            _log.error("memory of a slot not unmapped address=%#x error=%s", self.address, error)

    def _check(self, at: int, length: int) -> None:
        # MAP_FIXED replaces whatever is there: outside of our own range that would be anything.
        if self._fd is None or not 0 <= at <= self._length - length or length <= 0:
            raise ValueError(f"no room for {length:#x} bytes at {at:#x} of a slot's mapping")

    def _close_file(self) -> None:
        if self._fd is not None:
            self._fd.close()
            self._fd = None
