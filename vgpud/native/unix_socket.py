"""Options of sockets that another process has passed: the facade of unix_socket.c."""

from __future__ import annotations

import os

from vgpud.native._native import lib

_IS_UNIX_STREAM = lib.vgpud_is_unix_stream
_SET_SEND_BUFFER = lib.vgpud_set_send_buffer


def is_unix_stream(fd: int) -> bool:
    """Return whether a socket is a unix stream socket; never waits for it.

    Raises OSError, with ENOTSOCK for a file that is no socket.
    """
    found: int = _IS_UNIX_STREAM(fd)
    if found < 0:
        raise OSError(-found, os.strerror(-found))
    return bool(found)


def set_send_buffer(fd: int, size: int) -> None:
    """Set the size of a socket's send buffer in bytes, which the kernel doubles.

    Without CAP_NET_ADMIN, it is net.core.wmem_max at most. Another process that has the socket can
    make this wait, but no other thread of this process. Raises OSError.
    """
    error: int = _SET_SEND_BUFFER(fd, size)
    if error:
        raise OSError(-error, os.strerror(-error))
