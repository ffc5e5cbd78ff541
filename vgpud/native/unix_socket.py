"""What kind of socket a descriptor of another process is: the facade of unix_socket.c."""

from __future__ import annotations

import os

from vgpud.native._native import lib

_IS_UNIX_STREAM = lib.vgpud_is_unix_stream


def is_unix_stream(fd: int) -> bool:
    """Return whether a socket is a unix stream socket; never waits for it.

    Raises OSError, with ENOTSOCK for a file that is no socket.
    """
    found: int = _IS_UNIX_STREAM(fd)
    if found < 0:
        raise OSError(-found, os.strerror(-found))
    return bool(found)
