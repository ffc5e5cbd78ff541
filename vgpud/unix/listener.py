"""A device's listening stream socket: opened at a path, or passed by the service manager.

Source: unix(7); listen(2).
"""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import Final

from vgpud.errors import ConfigError, HostError
from vgpud.unix.activation import Activated
from vgpud.unix.socket_file import SocketFile, make_directory, remove_stale

BACKLOG: Final = 16
"""How many front-ends may wait for a device: vhost-user serves one at a time."""

SOCKET_MODE: Final = 0o660


class Listener:
    """A listening socket at `path`; `file` is its file if closing the socket removes that."""

    def __init__(self, sock: socket.socket, path: Path, file: SocketFile | None) -> None:
        self.sock = sock
        self.path = path
        self._file = file

    @classmethod
    def open(cls, path: Path, device: str, activated: Activated) -> Listener:
        """Return the activated socket of a device, or else a new one at `path`.

        The file of an activated socket stays when the socket is closed. Raises ConfigError or
        HostError as `listen`.
        """
        passed = activated.find(path, device, socket.SOCK_STREAM)
        if passed is not None:
            bound = passed.getsockname()
            return cls(passed, Path(os.fsdecode(bound)) if bound else path, None)
        make_directory(path.parent)
        sock = listen(path)
        try:
            return cls(sock, path, SocketFile(path))
        except OSError as error:
            sock.close()
            raise HostError(f"listening on {path}", error) from error

    def share(self) -> Listener:
        """Return a second owner of the socket, which also becomes the owner of the file."""
        file, self._file = self._file, None
        return Listener(self.sock.dup(), self.path, file)

    def unshare(self, other: Listener) -> None:
        """Undo `share`: take the file back from the other owner and close that."""
        self._file, other._file = other._file, None
        other.close()

    def close(self) -> None:
        """Close the socket and remove its file; a second call does nothing."""
        if self.sock.fileno() == -1:
            return
        self.sock.close()
        if self._file is not None:
            self._file.remove()


def listen(path: Path) -> socket.socket:
    """Return a new listening stream socket at `path`, which may replace a stale socket file.

    Raises `ConfigError` for an invalid path or one that another process listens on, and `HostError`
    for all other errors.
    """
    sock = socket.socket(
        socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC
    )
    try:
        remove_stale(path, sock.type)
        sock.bind(os.fspath(path))
        path.chmod(SOCKET_MODE)
        sock.listen(BACKLOG)
    except OSError as error:
        sock.close()
        if "too long" in str(error):
            raise ConfigError(
                f"socket path of {len(os.fspath(path))} bytes is too long (107 at most): {path}"
            ) from error
        raise HostError(
            f"listening on {path}", error, "choose another runtime_dir or socket"
        ) from error
    except ConfigError:
        sock.close()
        raise
    return sock
