"""A device's listening stream socket: opened at a path, or passed by the service manager.

Source: unix(7); listen(2).
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from pathlib import Path
from typing import Final

from vgpud.errors import ConfigError, HostError
from vgpud.unix.activation import Activated
from vgpud.unix.closer import Closer
from vgpud.unix.received_fd import ReceivedFd, close_socket
from vgpud.unix.socket_file import SocketFile, bind, make_directory, remove_stale
from vgpud.unix.socket_place import SocketPlace

BACKLOG: Final = 16
"""How many front-ends may wait for a device: vhost-user serves one at a time."""

_AT_ONCE: Final = struct.pack("@ll", 0, 1)
"""A timeval of a microsecond, for which accept may wait. O_NONBLOCK of an activated socket belongs
to all that have the socket, such as the service manager."""


class Listener:
    """A listening socket at `path`; `file` is its file if closing the socket removes that."""

    def __init__(self, sock: socket.socket, path: Path, file: SocketFile | None) -> None:
        self.sock = sock
        self.path = path
        self._file = file

    @classmethod
    def open(cls, place: SocketPlace, device: str, activated: Activated) -> Listener:
        """Return the activated socket of a device, or else a new one at `place`.

        The file of an activated socket is as the service manager has made it, and stays when the
        socket is closed. Raises ConfigError or HostError as `listen`.
        """
        path = place.path
        passed = activated.find(path, device, socket.SOCK_STREAM)
        if passed is not None:
            passed.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, _AT_ONCE)
            bound = passed.getsockname()
            return cls(passed, Path(os.fsdecode(bound)) if bound else path, None)
        make_directory(path.parent)
        sock, file = listen(place)
        return cls(sock, path, file)

    def share(self) -> Listener:
        """Return a second owner of the socket, which also becomes the owner of the file."""
        file, self._file = self._file, None
        return Listener(self.sock.dup(), self.path, file)

    def unshare(self, other: Listener) -> None:
        """Undo `share`: take the file back from the other owner and close that."""
        self._file, other._file = other._file, None
        other.close()

    def close(self) -> None:
        """Close the socket, soon, and remove its file; a second call does nothing.

        Connections that were not accepted end with it.
        """
        if self.sock.fileno() == -1:
            return
        if self._file is not None:
            self._file.remove()
            close_socket(self.sock)
        else:  # others have it, too: the service manager, or the other owner
            ReceivedFd(self.sock.detach(), Closer()).close()


def listen(place: SocketPlace) -> tuple[socket.socket, SocketFile]:
    """Return a new listening stream socket, which may replace a stale file, and its file.

    Raises `ConfigError` for an invalid path, one that another process listens on, or an unknown
    group, and `HostError` for all other errors.
    """
    path, gid = place.path, place.looked_up().gid
    sock = socket.socket(
        socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC
    )
    try:
        remove_stale(path, sock.type)
        file = bind(sock, path, place.mode)
        if gid is not None:
            _change_group(file, gid)
        sock.listen(BACKLOG)
    except OSError as error:
        sock.close()
        if "too long" in str(error):
            raise ConfigError(
                f"socket path of {len(os.fspath(path))} bytes is too long (107 at most): {path}"
            ) from error
        advice = "choose another runtime_dir or socket"
        if gid is not None and error.errno == errno.EPERM:
            advice = f"only root, or a member, can give the socket to group {place.group}"
        raise HostError(f"listening on {path}", error, advice) from error
    except ConfigError:
        sock.close()
        raise
    return sock, file


def _change_group(file: SocketFile, gid: int) -> None:
    try:
        file.change_group(gid)
    except OSError:
        file.remove()
        raise
