"""The process at the other end of a socket: the kernel's `struct ucred`.

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
"""The user and group number that no user or group has."""


@dataclass(frozen=True, slots=True)
class Credentials:
    """A process, its user and its group; `pid` is 0 if it is in another PID namespace."""

    pid: int
    uid: int
    gid: int

    @classmethod
    def unpack(cls, data: bytes) -> Self:
        """Decode a `struct ucred`. Raises struct.error if `data` is too short."""
        return cls(*_UCRED.unpack_from(data))


UNKNOWN: Final = Credentials(0, _NO_ID, _NO_ID)
"""The credentials of a sender that the kernel did not identify."""


def peer_credentials(connection: socket.socket) -> Credentials:
    """Return the credentials of the process that connected a unix socket, or created the pair.

    Another process may use the socket now: libvirt connects and passes it on.
    """
    return Credentials.unpack(
        connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, UCRED_SIZE)
    )
