"""The file of a bound unix socket: making its directory, removing it, replacing a stale one.

Source: unix(7), bind(2) and "Pathname socket ownership and permissions".
"""

from __future__ import annotations

import errno
import logging
import os
import socket
import stat
from pathlib import Path
from typing import Final

from vgpud.errors import ConfigError, HostError

log = logging.getLogger(__name__)

DIRECTORY_MODE: Final = 0o755
"""All users may see the sockets; the mode of each socket decides who may connect."""


class SocketFile:
    """The file of a socket that this process bound to `path`. Raises OSError if there is none."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._inode = path.stat().st_ino

    def remove(self) -> None:
        """Remove the file, unless another process has replaced it by one of its own."""
        try:
            if self._path.stat().st_ino == self._inode:
                self._path.unlink()
        except OSError as error:
            log.debug("socket not removed path=%s: %s", self._path, error.strerror)


def make_directory(path: Path) -> None:
    """Make the directory of a socket if it does not exist. Raises HostError."""
    try:
        path.mkdir(mode=DIRECTORY_MODE, parents=True, exist_ok=True)
    except OSError as error:
        advice = "set daemon.runtime_dir to a directory that this user can write to"
        raise HostError(f"making {path}", error, advice) from error


def remove_stale(path: Path, kind: int) -> None:
    """Remove the file of a socket of this kind (SOCK_STREAM, SOCK_DGRAM) that no process has open.

    Raises `ConfigError` if a process has it open, or if the file is no socket.
    """
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise ConfigError(f"{path} exists and is no socket; remove it or choose another path")
    with socket.socket(socket.AF_UNIX, kind) as probe:
        probe.setblocking(False)
        number = probe.connect_ex(os.fspath(path))
    if number != errno.ECONNREFUSED:
        raise ConfigError(f"{path} is in use by another process; stop it or choose another path")
    path.unlink()
