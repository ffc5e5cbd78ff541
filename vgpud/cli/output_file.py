"""Files that a user names for output: written whole or not at all, and never through a link.

The directory may be another user's, who could replace the file by a link at any time. So it is
written under a name of its own and renamed, through a descriptor of the directory. Source:
rename(2), openat(2).
"""

from __future__ import annotations

import errno
import os
import secrets
import stat
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from vgpud.errors import HostError
from vgpud.unix.fd import Fd

_MODE: Final = 0o666
"""The mode of a new file, less the umask."""


def write_file(path: Path, chunks: Iterable[bytes]) -> None:
    """Write a file, in place of a file or link of that name; a pipe or device is written to.

    Raises HostError, and what `chunks` raises; then a former file is still there.
    """
    try:
        with Fd(os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)) as directory:
            stream = _stream(directory, path.name)
            if stream is not None:
                with stream:
                    _write(stream, chunks)
            else:
                _replace(directory, path.name, chunks)
    except OSError as error:
        raise HostError(f"writing {path}", error) from error


def _stream(directory: Fd, name: str) -> Fd | None:
    """Return an existing file that is neither regular nor a directory, such as /dev/stdout."""
    try:
        # Followed, because /dev/stdout is a link. Nothing is created, cut off or written yet.
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


def _replace(directory: Fd, name: str, chunks: Iterable[bytes]) -> None:
    own = directory.fileno()
    partial = f".vgpud-{secrets.token_hex(8)}.partial"
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    with Fd(os.open(partial, flags, _MODE, dir_fd=own)) as file:
        try:
            _keep_mode(file, directory, name)
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
            view = view[os.write(file.fileno(), view) :]
