"""The control socket as the event loop sees it: datagrams that come with who sent them.

Owns the one place where credentials and descriptors are part of a datagram. `asyncio_dgram` does
the receiving: what its streams call an address is a `Sender` here. Source: unix(7), SCM_CREDENTIALS
and SCM_RIGHTS; recvmsg(2), MSG_TRUNC.
"""

from __future__ import annotations

import array
import errno
import fcntl
import os
import socket
import struct
import termios
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from vgpud.control.call import Address
from vgpud.errors import ConfigError, HostError
from vgpud.unix.fd import Fd
from vgpud.unix.listening import remove_stale

MAX_MESSAGE: Final = 64 << 10
"""Bytes. Far more than any call needs, and less than a sender's default buffer lets through."""
SEND_BUFFER: Final = 8 << 20
"""Bytes that are asked for: all that clients have not read yet is in this one buffer."""
SOCKET_MODE: Final = 0o666
"""Everybody may send: credentials decide, so that who is refused can be told so."""

_CREDENTIALS: Final = struct.Struct("=iII")  # struct ucred
_ROOM: Final = socket.CMSG_SPACE(_CREDENTIALS.size)
"""For control data. No method takes a descriptor: without room, the kernel lets go of those that
are sent before any of them gets into our table."""
_SO_SNDBUFFORCE: Final = 32  # asm-generic/socket.h; Python has no name for it


@dataclass(frozen=True, slots=True)
class Sender:
    """Where a datagram came from; an empty `address` can't be answered. `cut`: it was longer."""

    address: Address
    pid: int
    uid: int
    gid: int
    cut: bool


class ControlSocket(socket.socket):
    """An AF_UNIX datagram socket that tells senders apart by the kernel's word."""

    @classmethod
    def bound(cls, path: Path) -> ControlSocket:
        """A new one at `path`, in place of a dead one only.

        Raises ConfigError if something is there that must not be replaced, another server's socket
        or a file of another kind, and HostError if there can be no socket for other reasons.
        """
        sock = cls(socket.AF_UNIX, socket.SOCK_DGRAM)
        try:
            sock._prepare()
            remove_stale(path, sock.type)
            sock.bind(os.fspath(path))
            path.chmod(SOCKET_MODE)
        except OSError as error:
            sock.close()
            advice = "set daemon.runtime_dir to a directory that exists and can be written to"
            raise HostError(f"control socket {path}", error, advice) from error
        except ConfigError:
            sock.close()
            raise
        return sock

    @classmethod
    def of(cls, sock: socket.socket) -> ControlSocket:
        """Takes over a socket that somebody else bound, with a mode of theirs."""
        control = cls(sock.family, sock.type, sock.proto, sock.detach())
        control._prepare()
        return control

    def _prepare(self) -> None:
        self.setblocking(False)
        self.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        try:
            self.setsockopt(socket.SOL_SOCKET, _SO_SNDBUFFORCE, SEND_BUFFER)
        except PermissionError:
            # As much as net.core.wmem_max lets anybody have.
            self.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER)

    def recvfrom(self, bufsize: int, flags: int = 0) -> tuple[bytes, Sender]:
        """One datagram; of a longer one than MAX_MESSAGE, the beginning."""
        size = min(bufsize, MAX_MESSAGE)
        data, ancillary, received, address = self.recvmsg(
            size, _ROOM, flags | socket.MSG_CMSG_CLOEXEC
        )
        pid, uid, gid = _credentials(ancillary)
        cut = bool(received & socket.MSG_TRUNC)
        return data, Sender(address or "", pid, uid, gid, cut)

    def send_to(self, address: Address, data: bytes, fd: Fd | None = None) -> None:
        """Send a datagram now; raises BlockingIOError where there is no room, OSError."""
        ancillary = []
        if fd is not None:
            rights = array.array("i", [fd.fileno()])
            ancillary.append((socket.SOL_SOCKET, socket.SCM_RIGHTS, rights))
        self.sendmsg([data], ancillary, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL, address)

    def is_gone(self, address: Address) -> bool:
        """Whether no socket has that name any more."""
        with socket.socket(self.family, self.type) as probe:
            try:
                probe.connect(address)
            except OSError as error:
                # One that is connected to ours refuses others, EPERM.
                return error.errno in {errno.ECONNREFUSED, errno.ENOENT}
        return False

    def unread(self) -> int:
        """Bytes of our send buffer that are in clients' queues, with the kernel's overhead."""
        count = array.array("i", [0])
        fcntl.ioctl(self, termios.TIOCOUTQ, count)
        return count[0]


NOBODY: Final = (0, 0xFFFFFFFF, 0xFFFFFFFF)
"""Credentials of a sender of whom the kernel says nothing: no user has this number."""


def _credentials(ancillary: list[tuple[int, int, bytes]]) -> tuple[int, int, int]:
    for level, kind, data in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_CREDENTIALS):
            pid, uid, gid = _CREDENTIALS.unpack(data[: _CREDENTIALS.size])
            return pid, uid, gid
    return NOBODY
