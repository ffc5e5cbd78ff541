"""The sockets of callers: who may be answered where.

The address of a datagram is what its sender has bound its socket to, in the sender's own root and
working directory. Here the same name may lead to another user's socket, which trusts the daemon
more than it trusts the sender. So a path is answered only if the socket's file there belongs to the
sender's user, and is looked up once: the descriptor of that file is what answers are sent to.

A user that has bound its socket as another one, such as root, gives the file to itself with
chown(2). A look-up may wait for the server of a filesystem, or for an automount. So it is made in a
thread, but for the directories next to the control socket. Source: unix(7), SCM_CREDENTIALS;
open(2), O_PATH; proc(5), /proc/PID/fdinfo and /proc/PID/mountinfo.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from dataclasses import replace
from pathlib import Path
from typing import Final

from vgpud.control.call import Caller
from vgpud.control.client_directory import ClientDirectory
from vgpud.unix.fd import Fd
from vgpud.unix.socket_file import is_socket_of, open_socket

_log = logging.getLogger(__name__)

MAX_KNOWN: Final = 256
"""Callers with a socket elsewhere, each of which has a descriptor: as many as can be served."""

_REMOTE: Final = ("9p", "afs", "autofs", "ceph", "cifs", "coda", "fuse", "lustre", "nfs", "smb")
"""The beginnings of the names of filesystems where even sending may wait for a server."""


class CallerSockets:
    """The sockets of callers, in `clients` and elsewhere.

    `known` and `remember` are for the event loop, `look_up` is for any thread.
    """

    def __init__(self, clients: ClientDirectory | None = None) -> None:
        self._clients = clients
        self._known: OrderedDict[Caller, Fd] = OrderedDict()

    @property
    def remembered(self) -> list[Caller]:
        """The callers that are remembered, each with the file of its socket."""
        return [replace(caller, file=file) for caller, file in self._known.items()]

    def forget(self, caller: Caller) -> None:
        """Forget a caller, whose socket is closed."""
        self._known.pop(caller, None)

    def close(self) -> None:
        """Forget all callers."""
        self._known.clear()

    def known(self, caller: Caller) -> Caller | None:
        """Return the caller as it can be answered, or None if a thread has to look that up."""
        path = caller.address
        if not isinstance(path, str) or not path:
            return caller  # it is abstract, or the socket is not bound
        if not path.startswith("/"):
            return unanswerable(caller)  # relative to the caller's working directory
        if self._clients is not None:
            file = self._clients.socket_of(path, caller.uid)
            if file is not None:
                return replace(caller, file=file)
            if self._clients.has(path):
                return unanswerable(caller)
        file = self._known.get(caller)
        if file is None or not is_socket_of(file, caller.uid):
            return None
        self._known.move_to_end(caller)
        return replace(caller, file=file)

    def look_up(self, caller: Caller) -> Caller:
        """Return the caller as it can be answered; may wait for a filesystem."""
        assert isinstance(caller.address, str)
        file = open_socket(caller.address, caller.uid)
        if file is None or _is_remote(file):
            return unanswerable(caller)
        return replace(caller, file=file)

    def remember(self, caller: Caller) -> None:
        """Remember what `look_up` has returned."""
        if caller.file is not None:
            self._known[replace(caller, file=None)] = caller.file
            if len(self._known) > MAX_KNOWN:
                self._known.popitem(last=False)


def unanswerable(caller: Caller) -> Caller:
    """Return the caller without an address, which is not used: it may lead to another's socket."""
    text = "control caller can't be answered: no socket of its user at its address"
    _log.debug("%s pid=%d uid=%d address=%r", text, caller.pid, caller.uid, caller.address)
    return replace(caller, address="", file=None)


def _is_remote(file: Fd) -> bool:
    """Return whether a file is in a filesystem that waits for a server, or it is not known."""
    try:
        about = Path(f"/proc/self/fdinfo/{file.fileno()}").read_text()
        [mount] = [line.split()[1] for line in about.splitlines() if line.startswith("mnt_id:")]
        with Path("/proc/self/mountinfo").open(errors="surrogateescape") as mounts:
            for line in mounts:
                if line.split(" ", 1)[0] == mount:
                    return line.partition(" - ")[2].startswith(_REMOTE)
    except (OSError, ValueError):
        pass
    return True
