"""Memory files that back blobs and windows: sealed in size, sparse, with holes where unused.

Source: memfd_create(2), fcntl(2) "File Sealing", fallocate(2) "Deallocating file space".
"""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Iterable, Iterator

from vgpud.errors import HostError
from vgpud.native import mapping as native
from vgpud.unix.fd import Fd

# linux/memfd.h, Linux 6.3; not every supported Python has it in the os module.
_MFD_NOEXEC_SEAL = 0x0008

# The size is sealed so that processes that map the file get no SIGBUS and can't make it grow.
# F_SEAL_SEAL keeps a peer that gets the descriptor from adding seals, above all F_SEAL_WRITE, after
# which the daemon could neither write nor punch holes.
_SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL

HOLE_STEP = 1 << 20
"""Bytes that are freed at a time: about 0.3 ms, if all of them are in memory."""


def create(name: str, size: int) -> Fd:
    """Return a new memory file of `size` bytes, sparse and sealed against changes of its size.

    `name` is shown in /proc/PID/maps, up to 249 bytes. The file can't be executed if the kernel has
    MFD_NOEXEC_SEAL. Raises HostError.
    """
    flags = os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING
    operation = f"memfd_create {name} of {size} bytes"
    try:
        try:
            fd = Fd(os.memfd_create(name, flags | _MFD_NOEXEC_SEAL))
        except OSError as error:
            if error.errno != errno.EINVAL:  # an older kernel
                raise
            fd = Fd(os.memfd_create(name, flags))
        try:
            os.ftruncate(fd.fileno(), size)
            fcntl.fcntl(fd.fileno(), fcntl.F_ADD_SEALS, _SEALS)
        except BaseException:
            fd.close()
            raise
    except OSError as error:
        advice = ""
        if error.errno in {errno.EMFILE, errno.ENFILE}:
            advice = "raise the limit of open files (LimitNOFILE= of the service, ulimit -n)"
        elif error.errno == errno.EFBIG:
            advice = "raise the limit of file sizes (LimitFSIZE= of the service, ulimit -f)"
        raise HostError(operation, error, advice) from error
    return fd


def filled(name: str, parts: Iterable[bytes]) -> Fd:
    """Return a new memory file of these bytes, sealed against changes. Raises HostError."""
    size = 0
    try:
        fd = Fd(os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING))
        try:
            for part in parts:
                size += len(part)
                view = memoryview(part)
                while view:
                    view = view[os.write(fd.fileno(), view) :]
            os.lseek(fd.fileno(), 0, os.SEEK_SET)
            fcntl.fcntl(fd.fileno(), fcntl.F_ADD_SEALS, _SEALS | fcntl.F_SEAL_WRITE)
        except BaseException:
            fd.close()
            raise
    except OSError as error:
        raise HostError(f"memfd {name} of {size} bytes or more", error) from error
    return fd


def punch_hole(fd: Fd, offset: int, length: int) -> None:
    """Free the pages of a range, which then reads as zeros in every mapping.

    Only whole pages inside the range are freed, the rest of it is zeroed. Takes about 0.3 s for
    each GiB, without the interpreter's lock. Raises HostError.
    """
    try:
        native.punch_hole(fd.fileno(), offset, length)
    except OSError as error:
        raise HostError(f"fallocate: punching {length} bytes at 0x{offset:x}", error) from error


def punch_hole_steps(fd: Fd, offset: int, length: int) -> Iterator[None]:
    """Free the pages of a range as `punch_hole` does, in steps of a fraction of a millisecond, on
    any thread."""
    end = offset + length
    while offset < end:
        part = min(end - offset, HOLE_STEP)
        punch_hole(fd, offset, part)
        offset += part
        yield


def allocated_bytes(fd: Fd) -> int:
    """Return how many bytes of memory a file has allocated. Raises HostError."""
    try:
        return os.fstat(fd.fileno()).st_blocks * 512
    except OSError as error:
        raise HostError("fstat", error) from error
