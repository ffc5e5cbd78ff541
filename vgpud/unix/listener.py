"""A device's listening socket and its file: opened or taken over, and removed if it is ours.

Owns the file in the filesystem, which goes with the socket unless the service manager made it.
"""

from __future__ import annotations

import logging
import os
import socket
from pathlib import Path

from vgpud.errors import HostError
from vgpud.unix.activation import Activated
from vgpud.unix.listening import listen

log = logging.getLogger(__name__)

DIRECTORY_MODE = 0o755  # who may connect is the sockets' own business


class Listener:
    """A listening socket at `path`. With `inode`, the file is ours to remove, as long as it is that
    one: another daemon may have replaced it."""

    def __init__(self, sock: socket.socket, path: Path, inode: int | None) -> None:
        self.sock = sock
        self.path = path
        self._inode = inode

    @classmethod
    def open(cls, path: Path, device: str, activated: Activated) -> Listener:
        """The activated socket for a device, or else a new one at `path`.

        Raises ConfigError or HostError where there can be none.
        """
        passed = activated.find(path, device, socket.SOCK_STREAM)
        if passed is not None:
            bound = passed.getsockname()
            return cls(passed, Path(os.fsdecode(bound)) if bound else path, None)
        make_directory(path.parent)
        sock = listen(path)
        try:
            return cls(sock, path, path.stat().st_ino)
        except OSError as error:
            sock.close()
            raise HostError(f"listening on {path}", error) from error

    def share(self) -> Listener:
        """Another owner of the same socket, who is left the file."""
        inode, self._inode = self._inode, None
        return Listener(self.sock.dup(), self.path, inode)

    def unshare(self, other: Listener) -> None:
        """Take back what `share` has given to another owner, who is closed."""
        self._inode, other._inode = other._inode, None
        other.close()

    def close(self) -> None:
        """Close the socket and remove its file; a second call does nothing."""
        if self.sock.fileno() == -1:
            return
        self.sock.close()
        try:
            if self._inode is not None and self.path.stat().st_ino == self._inode:
                self.path.unlink()
        except OSError as error:
            log.debug("socket not removed path=%s: %s", self.path, error.strerror)


def make_directory(path: Path) -> None:
    """Make the directory of a socket, if need be; raises HostError."""
    try:
        path.mkdir(mode=DIRECTORY_MODE, parents=True, exist_ok=True)
    except OSError as error:
        advice = "set daemon.runtime_dir to a directory that this user can write to"
        raise HostError(f"making {path}", error, advice) from error
