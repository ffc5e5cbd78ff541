"""The control socket, as asyncio_dgram uses it: its addresses are `Sender` values with credentials.

Source: unix(7), SO_PASSCRED.
"""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import struct
import termios
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from vgpud.control.call import Address, Caller
from vgpud.errors import ConfigError, HostError
from vgpud.unix import ancillary
from vgpud.unix.fd import Fd
from vgpud.unix.received_fd import Discard
from vgpud.unix.send_buffer import set_send_buffer
from vgpud.unix.socket_file import SocketFile, bind, remove_stale

MAX_MESSAGE: Final = 64 << 10
"""Bytes. Far more than any call needs, and less than a sender's default buffer allows."""
SEND_BUFFER: Final = 8 << 20
"""Bytes. This one buffer holds all that clients have not read yet."""
SOCKET_MODE: Final = 0o666
"""Every user may send. Credentials decide, so that a caller that is refused gets an error."""

MAX_CLOSING: Final = ancillary.MAX_FDS
"""Descriptors of callers that wait to be closed, after which no more are let in, where the kernel
can do that."""

_INT: Final = struct.Struct("=i")
_SO_PASSRIGHTS: Final = 83  # Linux 6.16, include/uapi/asm-generic/socket.h


@dataclass(frozen=True, slots=True)
class Sender:
    """The sender of a datagram; a caller with an empty address can't be answered.

    `truncated` says that the datagram was longer than MAX_MESSAGE.
    """

    caller: Caller
    truncated: bool


class ControlSocket(socket.socket):
    """An AF_UNIX datagram socket that receives each sender's credentials."""

    def __init__(
        self, family: int = -1, kind: int = -1, proto: int = -1, fileno: int | None = None
    ) -> None:
        super().__init__(family, kind, proto, fileno)
        self._discard = Discard()
        self._lets_in = True  # descriptors

    @classmethod
    def bound(cls, path: Path) -> tuple[ControlSocket, SocketFile]:
        """Create a socket at `path`, which may replace a socket that no process has open.

        Raises ConfigError if another server's socket or a file of another kind is there, which must
        not be replaced, and HostError if the socket can't be created for other reasons.
        """
        sock = cls(socket.AF_UNIX, socket.SOCK_DGRAM)
        try:
            sock._prepare()
            remove_stale(path, sock.type)
            file = bind(sock, path, SOCKET_MODE)
        except OSError as error:
            sock.close()
            advice = "set daemon.runtime_dir to a directory that exists and can be written to"
            raise HostError(f"control socket {path}", error, advice) from error
        except ConfigError:
            sock.close()
            raise
        return sock, file

    @classmethod
    def of(cls, sock: socket.socket) -> ControlSocket:
        """Take over a socket that is bound already; the mode of its file does not change."""
        control = cls(sock.family, sock.type, sock.proto, sock.detach())
        control._prepare()
        return control

    def _prepare(self) -> None:
        self.setblocking(False)
        self.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        set_send_buffer(self, SEND_BUFFER)

    def recvfrom(self, bufsize: int, flags: int = 0) -> tuple[bytes, Sender]:
        """Receive one datagram, or the beginning of one that is longer than MAX_MESSAGE.

        No method takes a descriptor. They are received all the same, and closed in a thread: the
        kernel would close them here, and some files make that wait.
        """
        received = ancillary.receive(
            self,
            min(bufsize, MAX_MESSAGE),
            max_fds=ancillary.MAX_FDS,
            credentials=True,
            flags=flags | socket.MSG_DONTWAIT,
        )
        self._discard.close(received.fds)
        if self._lets_in is not (self._discard.waiting < MAX_CLOSING):
            self._lets_in = not self._lets_in
            with suppress(OSError):
                self.setsockopt(socket.SOL_SOCKET, _SO_PASSRIGHTS, int(self._lets_in))
        who = received.credentials
        caller = Caller(received.address, who.pid, who.uid, who.gid)
        return received.data, Sender(caller, received.truncated)

    def send_to(self, caller: Caller, data: bytes, fd: Fd | None = None) -> None:
        """Send a datagram now. Raises BlockingIOError if there is no room, or OSError.

        A caller whose address is a path has to have its `file`.
        """
        fds = [fd] if fd is not None else []
        ancillary.send(self, [data], fds, flags=socket.MSG_DONTWAIT, address=_address(caller))

    def is_gone(self, caller: Caller) -> bool:
        """Return whether a caller's socket is closed."""
        with socket.socket(self.family, self.type) as probe:
            try:
                probe.connect(_address(caller))
            except OSError as error:
                # A socket that is connected to the control socket refuses others with EPERM.
                return error.errno in {errno.ECONNREFUSED, errno.ENOENT}
        return False

    def unread(self) -> int:
        """Return how many bytes of the send buffer are in clients' queues, with overhead."""
        count = fcntl.ioctl(self, termios.TIOCOUTQ, bytes(_INT.size))
        size: int = _INT.unpack(count)[0]
        return size


def _address(caller: Caller) -> Address:
    """Return the address of a caller's socket that leads to it and to no other; raises OSError."""
    if caller.file is not None:
        return f"/proc/self/fd/{caller.file.fileno()}"
    if not isinstance(caller.address, bytes):  # a path that was not looked up, or no address
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), caller.address)
    return caller.address
