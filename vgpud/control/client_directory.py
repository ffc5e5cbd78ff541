"""The directory where clients bind their sockets, next to the control socket.

A daemon in a network namespace of its own, such as a service, can't answer abstract addresses, so a
client needs a file that both see. Only users with a grant may make files here, by an access control
list: the directory is on the same small filesystem as everything else in /run. Source: acl(5);
include/uapi/linux/posix_acl_xattr.h.
"""

from __future__ import annotations

import errno
import logging
import os
import socket
import stat
import struct
from collections.abc import Iterable
from contextlib import ExitStack, suppress
from itertools import islice
from pathlib import Path
from typing import Final, Self

from vgpud.unix.fd import Fd
from vgpud.unix.socket_file import CLIENTS, is_stale, open_socket

_log = logging.getLogger(__name__)

MAX_CLEANED: Final = 4096
"""Files that are looked at in one `clean`."""

_MODE: Final = 0o1700  # sticky: users remove no files of others
_ACL: Final = "system.posix_acl_access"
_VERSION: Final = struct.Struct("<I")
_ENTRY: Final = struct.Struct("<HHI")
_USER_OBJ, _USER, _GROUP_OBJ, _GROUP, _MASK, _OTHER = 1, 2, 4, 8, 16, 32
_NO_ID: Final = 0xFFFFFFFF
_RWX, _WX = 7, 3


class ClientDirectory:
    """The directory at `path`, which this process's user owns and which is made if it is missing.

    Raises OSError if it can't be made, belongs to another user, or is for something else: it is not
    sticky and has other files than sockets.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        with ExitStack() as undo:
            parent = Fd(os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC))
            self._parent = undo.enter_context(parent)
            with suppress(FileExistsError):
                os.mkdir(path.name, _MODE, dir_fd=parent.fileno())
            flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
            opened = Fd(os.open(path.name, flags, dir_fd=parent.fileno()))
            self._directory = undo.enter_context(opened)
            self._check()
            undo.pop_all()

    def _check(self) -> None:
        found = os.fstat(self._directory.fileno())
        if found.st_uid != os.geteuid():
            raise PermissionError(errno.EPERM, f"it belongs to uid {found.st_uid}: remove it")
        if not found.st_mode & stat.S_ISVTX:
            with os.scandir(self._directory.fileno()) as entries:
                if not all(
                    stat.S_ISSOCK(entry.stat(follow_symlinks=False).st_mode) for entry in entries
                ):
                    raise OSError(errno.ENOTEMPTY, "it has files of something else")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the descriptors; the directory stays."""
        self._directory.close()
        self._parent.close()

    def remove(self) -> None:
        """Remove the directory if no client has a socket in it."""
        with suppress(OSError):
            os.rmdir(self._path.name, dir_fd=self._parent.fileno())

    def open_to(self, users: Iterable[int], groups: Iterable[int]) -> None:
        """Let these users and members of these groups make files here, and no others but root.

        Where the filesystem has no access control lists, only the owner and root may. Logs a
        failure.
        """
        own = self._directory.fileno()
        named = [(_USER, _WX, uid) for uid in sorted(users)]
        named += [(_GROUP, _WX, gid) for gid in sorted(groups)]
        entries = [(_USER_OBJ, _RWX, _NO_ID), (_GROUP_OBJ, 0, _NO_ID), (_OTHER, 0, _NO_ID)]
        if named:
            entries += [*named, (_MASK, _RWX, _NO_ID)]
        acl = _VERSION.pack(2) + b"".join(_ENTRY.pack(*entry) for entry in sorted(entries))
        try:
            os.fchmod(own, _MODE)
            os.setxattr(own, _ACL, acl)
        except OSError as error:
            text = "clients of other users can't be answered path=%s error=%s"
            _log.warning(text, self._path, error.strerror)

    def socket_of(self, path: str, uid: int) -> Fd | None:
        """Return the file of a user's socket, if that is bound here or next to the control socket.

        A caller for which this directory has another path, as in a container, has bound its socket
        to that path: only the last two names count.
        """
        where, name = os.path.split(path)
        if os.path.basename(where) == CLIENTS:  # noqa: PTH119 - it is no path of this process
            return open_socket(name, uid, self._directory)
        if where == str(self._path.parent):
            return open_socket(name, uid, self._parent)
        return None

    def has(self, path: str) -> bool:
        """Return whether a path names a file here or next to the control socket."""
        return os.path.split(path)[0] in {str(self._path), str(self._path.parent)}

    def clean(self) -> None:
        """Remove what clients that were killed have left, and everything that is no socket."""
        own = self._directory.dup()
        with own, os.scandir(own.fileno()) as entries:
            for entry in islice(entries, MAX_CLEANED):
                try:
                    _remove(own, entry)
                except OSError as error:
                    _log.debug("not removed path=%s/%s: %s", self._path, entry.name, error.strerror)


def _remove(directory: Fd, entry: os.DirEntry[str]) -> None:
    if entry.is_dir(follow_symlinks=False):
        os.rmdir(entry.name, dir_fd=directory.fileno())
        return
    mode = entry.stat(follow_symlinks=False).st_mode
    if not stat.S_ISSOCK(mode) or is_stale(directory, entry.name, socket.SOCK_DGRAM):
        os.unlink(entry.name, dir_fd=directory.fileno())
