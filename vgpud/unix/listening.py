"""Listening unix sockets in the filesystem: made with the right mode, in place of dead ones
only."""

from __future__ import annotations

import errno
import os
import socket
import stat
from pathlib import Path

from vgpud.errors import ConfigError, HostError

BACKLOG = 16
"""Front-ends that may wait for a device. One at a time is served, as vhost-user has it."""

SOCKET_MODE = 0o660


def listen(path: Path) -> socket.socket:
    """Opens a listening unix stream socket at `path`; a dead one in its place is replaced.

    Raises `ConfigError` for a path that can't be one, or that somebody else listens on, and
    `HostError` for the rest.
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


def remove_stale(path: Path, kind: int) -> None:
    """Removes a socket that nobody serves any more; raises `ConfigError` if somebody does, or it is
    no socket."""
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise ConfigError(f"{path} exists and is no socket; remove it or choose another path")
    with socket.socket(socket.AF_UNIX, kind) as probe:
        probe.setblocking(False)
        number = probe.connect_ex(os.fspath(path))
    if number != errno.ECONNREFUSED:
        raise ConfigError(f"{path} is in use by another process; stop it or choose another path")
    path.unlink()
