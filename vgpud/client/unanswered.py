"""Calls to the daemon that fail or are not answered: how long to wait, and the cause in words."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Final

from vgpud.client.own_socket import OwnSocket
from vgpud.control.rpc import MAX_OBJECTS
from vgpud.errors import HostError
from vgpud.unix.socket_file import CLIENTS

TIMEOUT: Final = 5.0
"""Seconds that a method may take."""
LONGER: Final = {
    "agent.attach": 30.0,
    "blob.export": 60.0,
    "config.reload": 60.0,
    "device.screenshot": 60.0,
}
"""Seconds that these methods may take, which work for longer or wait for others."""
GRACE: Final = 0.5
"""Seconds that a client waits longer than the daemon may work, which then says what happened."""
PING: Final = 1.0
"""Seconds in which a daemon that does answer will have answered `daemon.info`."""

_DENIED: Final = "this user may not use it: ask for permission to the directory, or use sudo"
_ADVICE: Final = {
    errno.EACCES: _DENIED,
    errno.EPERM: _DENIED,
    errno.EPROTOTYPE: "it is no control socket; a device's socket is for VMMs",
}


_SHORT: Final = 4 << 10
"""Bytes of a call that a daemon reads, whoever sends it."""


def may_be_refused_unread(call: bytes) -> bool:
    """Return whether a daemon may refuse a call as a whole, with null in place of its id."""
    return len(call) > _SHORT or call.count(b"{") > MAX_OBJECTS


class LateError(Exception):
    """No answer has come in time."""


def failed(path: Path, error: OSError, advice: str = "") -> HostError:
    """Return the error for a daemon's socket at `path` that can't be used."""
    advice = advice or _ADVICE.get(error.errno or 0, "is the daemon running there?")
    return HostError(f"control socket {path}", error, advice)


def slow(path: Path, method: str) -> HostError:
    """Return the error for a method that takes long, while the daemon answers other calls."""
    why = f"the daemon answers other calls, but not yet {method}: give it more time"
    return failed(path, TimeoutError("timed out"), why)


def unanswered(path: Path, sock: OwnSocket) -> HostError:
    """Return the error for a daemon that answers no call of this socket."""
    clients = path.parent / CLIENTS
    if sock.unread():
        why = (
            "a process has the socket open, but does not read from it: it was stopped, hangs, or is"
            " just being started; its log may say more"
        )
    elif sock.file is None:
        why = (
            f"the daemon has read the call, but can't answer uid {os.geteuid()}, which may make no"
            f" socket in {clients}: the daemon opens that to users whom allow_users, allow_groups"
            " and the like name in its config"
        )
    else:
        why = (
            f"the daemon has read the call, but its answer does not arrive at {sock.getsockname()}:"
            f" it sees other files, as in a container; give both the same directory {clients}"
        )
    return failed(path, TimeoutError("timed out"), why)
