"""Who a socket's peer is: the kernel's `struct ucred`.

Source: unix(7), SO_PEERCRED and SCM_CREDENTIALS.
"""

from __future__ import annotations

import socket
import struct
from dataclasses import dataclass
from typing import Final, Self

_UCRED: Final = struct.Struct("=iII")
UCRED_SIZE: Final = _UCRED.size

_NO_ID: Final = 0xFFFFFFFF
"""A number that no user and no group has."""


@dataclass(frozen=True, slots=True)
class Credentials:
    """A process, its user and its group; `pid` is 0 if it is not in our PID namespace."""

    pid: int
    uid: int
    gid: int

    @classmethod
    def unpack(cls, data: bytes) -> Self:
        """Read a `struct ucred`; raises struct.error for less."""
        return cls(*_UCRED.unpack_from(data))


UNKNOWN: Final = Credentials(0, _NO_ID, _NO_ID)
"""Of a sender of whom the kernel says nothing."""


def peer_credentials(connection: socket.socket) -> Credentials:
    """Return the credentials of the process that connected a unix socket, or made the pair.

    That process need not be the one that uses the socket now: libvirt connects and passes it on.
    """
    return Credentials.unpack(
        connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, UCRED_SIZE)
    )
