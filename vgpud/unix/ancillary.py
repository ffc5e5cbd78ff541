"""Messages of unix sockets with descriptors and credentials: the only recvmsg and sendmsg.

Source: unix(7), SCM_RIGHTS and SCM_CREDENTIALS; cmsg(3); recvmsg(2), MSG_CMSG_CLOEXEC, MSG_TRUNC
and MSG_CTRUNC.
"""

from __future__ import annotations

import array
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, TypeAlias

from vgpud.unix.credentials import UCRED_SIZE, UNKNOWN, Credentials
from vgpud.unix.fd import Fd

Address: TypeAlias = str | bytes
"""The address of a unix socket: a path, or the bytes of an abstract name."""

MAX_FDS: Final = 253
"""SCM_MAX_FD: the most descriptors that one message can have."""

_FD_SIZE: Final = array.array("i").itemsize


@dataclass(frozen=True, slots=True)
class ReceivedMessage:
    """The result of one recvmsg; the receiver owns `fds` and closes those that it does not keep.

    `truncated`: the datagram was longer than the buffer. `fds_lost`: the message had more
    descriptors than there was room for, or than this process may have open. `credentials` are
    `UNKNOWN` unless they were requested and the socket has SO_PASSCRED.
    """

    data: bytes
    fds: list[Fd]
    truncated: bool
    fds_lost: bool
    address: Address
    credentials: Credentials

    def close(self) -> None:
        """Close the descriptors that have not been taken from `fds`."""
        while self.fds:
            self.fds.pop().close()


def receive(
    sock: socket.socket, size: int, *, max_fds: int, credentials: bool = False, flags: int = 0
) -> ReceivedMessage:
    """Receive at most `size` bytes, with at most `max_fds` descriptors, which are close-on-exec.

    With `max_fds` 0, the kernel drops descriptors before they get a number in this process. Raises
    OSError.
    """
    room = socket.CMSG_SPACE(max_fds * _FD_SIZE) if max_fds else 0
    if credentials:
        room += socket.CMSG_SPACE(UCRED_SIZE)
    data, ancillary, received, address = sock.recvmsg(size, room, flags | socket.MSG_CMSG_CLOEXEC)
    sender = _credentials(ancillary)
    fds = [
        Fd(fd)
        for level, kind, value in ancillary
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS)
        for fd in array.array("i", value[: len(value) - len(value) % _FD_SIZE])
    ]
    return ReceivedMessage(
        data,
        fds,
        bool(received & socket.MSG_TRUNC),
        bool(received & socket.MSG_CTRUNC),
        address or "",
        sender,
    )


def send(
    sock: socket.socket,
    buffers: Sequence[bytes | memoryview],
    fds: Sequence[Fd] = (),
    *,
    flags: int = 0,
    address: Address | None = None,
) -> int:
    """Send bytes with duplicates of descriptors, and return how many bytes were sent.

    Raises OSError: BrokenPipeError, without a SIGPIPE, if the peer has closed the connection.
    """
    ancillary = []
    if fds:
        rights = array.array("i", [fd.fileno() for fd in fds])
        ancillary.append((socket.SOL_SOCKET, socket.SCM_RIGHTS, rights))
    return sock.sendmsg(buffers, ancillary, flags | socket.MSG_NOSIGNAL, address)


def _credentials(ancillary: Sequence[tuple[int, int, bytes]]) -> Credentials:
    for level, kind, value in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_CREDENTIALS):
            return Credentials.unpack(value)
    return UNKNOWN
