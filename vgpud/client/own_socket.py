"""A client's own socket: connected to the daemon's, and bound to where the daemon can answer.

Source: unix(7); tcp(7) on SIOCOUTQ, which unix sockets have as well.
"""

from __future__ import annotations

import errno
import fcntl
import os
import secrets
import socket
import struct
import termios
from pathlib import Path
from typing import Final, Self

from vgpud.unix.socket_file import CLIENTS, SocketFile, bind

MODE: Final = 0o666
"""The daemon may run as another user. Datagrams of others are not accepted."""

_INT: Final = struct.Struct("=i")


class OwnSocket(socket.socket):
    """A datagram socket that is connected to the daemon's; `close` removes its file.

    It is bound to a file in the directory `clients`, or next to the daemon's socket, or else to
    an abstract name, and then `file` is None. Raises OSError if there is no daemon's socket.
    """

    file: SocketFile | None = None

    def __init__(self, path: Path) -> None:
        super().__init__(socket.AF_UNIX, socket.SOCK_DGRAM)
        try:
            # Connected, and before it has a name: so the kernel accepts datagrams from the daemon's
            # socket only, though others may know the name.
            self.connect(os.fspath(path))
            self.file = _bind(self, path.parent)
            if self.file is None:
                self.bind("")
            # Last, because it has the kernel pick a name for a socket that has none.
            self.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def close(self) -> None:
        """Close the socket and remove its file."""
        super().close()
        if self.file is not None:
            self.file.remove()

    def unread(self) -> bool:
        """Return whether the daemon has not received all datagrams yet."""
        size: int = _INT.unpack(fcntl.ioctl(self, termios.TIOCOUTQ, bytes(_INT.size)))[0]
        return size > 0


def _bind(sock: socket.socket, directory: Path) -> SocketFile | None:
    name = f".{os.getpid()}-{secrets.token_hex(4)}"
    for place in (directory / CLIENTS, directory):
        try:
            return bind(sock, place / name, MODE)
        except OSError as error:
            if error.errno == errno.EINVAL:  # it is bound already, but the file is gone
                raise
    return None
