"""Files that a user names for output: written whole or not at all, and never through a link.

The directory may be another user's, who could replace the file by a link at any time. So it is
written under a name of its own and renamed, through a descriptor of the directory. A name for one
of this process's own descriptors, such as /dev/stdout, is no file to replace, whatever the
descriptor is open on. Source: rename(2), openat(2), proc_pid_fd(5).
"""

from __future__ import annotations

import errno
import fcntl
import os
import secrets
import select
import stat
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from vgpud.errors import HostError
from vgpud.unix.fd import Fd

_MODE: Final = 0o666
"""The mode of a new file, less the umask."""
_MAX_LINKS: Final = 40
"""Links that are followed, as many as the kernel follows."""


def write_file(path: Path, chunks: Iterable[bytes]) -> None:
    """Write a file, in place of a file or link of that name; a pipe, a device, and an open
    descriptor of this process (/dev/stdout, /proc/self/fd/N) are written to.

    Raises HostError, and what `chunks` raises; then a former file is still there.
    """
    try:
        with Fd(os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)) as directory:
            stream = _own_descriptor(path) or _stream(directory, path.name)
            if stream is not None:
                with stream:
                    _write(stream, chunks)
            else:
                _replace(directory, path.name, chunks)
    except OSError as error:
        raise HostError(f"writing {path}", error) from error


def replace_file(path: Path, content: bytes, mode: int) -> None:
    """Write a regular file with exactly this mode, in place of whatever has that name.

    Raises OSError; then a former file is still there.
    """
    with Fd(os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)) as directory:
        _replace(directory, path.name, [content], mode)


def _own_descriptor(path: Path) -> Fd | None:
    """Return a duplicate of the descriptor of this process that `path` leads to, if it does.

    Raises OSError if the descriptor is not open. A link of another user's does not count: its owner
    could have this process write to any of its descriptors.
    """
    own = {os.path.realpath(f"/proc/{process}/fd") for process in ("self", "thread-self")}
    for _ in range(_MAX_LINKS):
        parent = Path(os.path.realpath(path.parent))
        if str(parent) in own and path.name.isascii() and path.name.isdecimal():
            return Fd(fcntl.fcntl(int(path.name), fcntl.F_DUPFD_CLOEXEC, 0))
        try:
            link = parent / path.name
            found = link.lstat()
            if not stat.S_ISLNK(found.st_mode) or found.st_uid not in {0, os.geteuid()}:
                return None
            path = parent / link.readlink()
        except FileNotFoundError:
            return None
    return None


def _stream(directory: Fd, name: str) -> Fd | None:
    """Return an existing file that is neither regular nor a directory, such as a pipe."""
    try:
        # Followed, because it may be a link. Nothing is created, cut off or written yet.
        found = os.stat(name or ".", dir_fd=directory.fileno())
        if stat.S_ISDIR(found.st_mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        if stat.S_ISREG(found.st_mode):
            return None
        fd = Fd(os.open(name, os.O_WRONLY | os.O_CLOEXEC | os.O_NOCTTY, dir_fd=directory.fileno()))
    except FileNotFoundError:
        return None
    if stat.S_ISREG(os.fstat(fd.fileno()).st_mode):  # it was replaced in between
        fd.close()
        return None
    return fd


def _replace(directory: Fd, name: str, chunks: Iterable[bytes], mode: int | None = None) -> None:
    """Write a file and rename it to `name`; without `mode`, it has that of its predecessor."""
    own = directory.fileno()
    partial = f".vgpud-{secrets.token_hex(8)}.partial"
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    with Fd(os.open(partial, flags, _MODE, dir_fd=own)) as file:
        try:
            if mode is None:
                _keep_mode(file, directory, name)
            else:
                os.fchmod(file.fileno(), mode)
            _write(file, chunks)
            os.rename(partial, name, src_dir_fd=own, dst_dir_fd=own)
        except BaseException:
            os.unlink(partial, dir_fd=own)
            raise


def _keep_mode(file: Fd, directory: Fd, name: str) -> None:
    try:
        former = os.stat(name, dir_fd=directory.fileno(), follow_symlinks=False)
    except FileNotFoundError:
        return
    if stat.S_ISREG(former.st_mode) and former.st_uid == os.geteuid():
        os.fchmod(file.fileno(), former.st_mode & 0o777)


def _write(file: Fd, chunks: Iterable[bytes]) -> None:
    for chunk in chunks:
        view = memoryview(chunk)
        while view:
            try:
                view = view[os.write(file.fileno(), view) :]
            except BlockingIOError:  # O_NONBLOCK is of the open file, which others share
                select.select([], [file], [])
