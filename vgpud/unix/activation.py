"""Socket activation: the sockets that the service manager opened before it started the daemon.

Sockets that no device uses stay open, for a device that a reload adds. Their files belong to the
service manager. Source: sd_listen_fds(3), systemd.socket(5).
"""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Iterable, Mapping, MutableMapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from vgpud.unix.fd import Fd

log = logging.getLogger(__name__)

FIRST_FD: Final = 3
"""SD_LISTEN_FDS_START."""
CONTROL: Final = "control"
"""FileDescriptorName= of the control socket."""

_KINDS: Final = {socket.SOCK_STREAM: "stream", socket.SOCK_DGRAM: "datagram"}


@dataclass(frozen=True, slots=True)
class _Passed:
    """A socket with the name that its unit gives it, FileDescriptorName=."""

    name: str
    sock: socket.socket

    @property
    def address(self) -> str:
        """The address that the socket is bound to, for a log line."""
        return str(self.sock.getsockname()).replace("\0", "@")

    def bound_to(self, path: Path) -> bool:
        """Return whether the socket is bound to this file, by this path or another."""
        bound = self.sock.getsockname()
        if not isinstance(bound, str) or not bound.startswith("/"):
            return False
        if os.path.normpath(bound) == os.path.normpath(path):
            return True
        with suppress(OSError):
            return Path(bound).samefile(path)
        return False


class Activated:
    """The sockets that were passed, without those that can't be used; a context manager."""

    def __init__(self, passed: Iterable[tuple[str, Fd]] = ()) -> None:
        """Take the descriptors; log and close those that are no usable sockets.

        A usable socket is a unix socket with a name, and listening if it is a stream socket.
        """
        self._passed: list[_Passed] = []
        for name, fd in passed:
            if (sock := _opened(name, fd)) is not None:
                self._passed.append(_Passed(name, sock))

    @classmethod
    def from_environment(cls, environment: MutableMapping[str, str]) -> Activated:
        """Return the sockets that were passed to this process.

        The variables are removed, since they are not for child processes.
        """
        pid = environment.pop("LISTEN_PID", "")
        count = environment.pop("LISTEN_FDS", "")
        names = environment.pop("LISTEN_FDNAMES", "").split(":")
        if pid != str(os.getpid()) or not count.isdecimal():
            return cls()
        found = []
        for index in range(int(count)):
            number = FIRST_FD + index
            try:
                os.set_inheritable(number, False)
            except OSError as error:
                log.warning("activated socket missing fd=%d: %s", number, error.strerror)
                break
            found.append((names[index] if index < len(names) else "unknown", Fd(number)))
        return cls(found)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def find(self, path: Path, name: str, kind: socket.SocketKind) -> socket.socket | None:
        """Return a duplicate of the socket that is bound to `path`, or else has this `name`.

        Returns None if no such socket of this kind was passed. The socket itself stays open:
        connections that are not accepted yet wait in its queue, and a device that a reload adds
        again finds it.
        """
        of_kind = [passed for passed in self._passed if passed.sock.type == kind]
        at_path = [passed for passed in of_kind if passed.bound_to(path)]
        named = [passed for passed in of_kind if passed.name == name]
        if at_path:
            return at_path[0].sock.dup()
        # All sockets of a unit have the same name, unless it has only one.
        return named[0].sock.dup() if len(named) == 1 else None

    def log_unused(
        self,
        wanted: Iterable[tuple[Path, str, socket.SocketKind]],
        extra: Mapping[str, object] | None = None,
    ) -> None:
        """Log the sockets that none of `wanted` finds, with `extra`; they stay open."""
        used = []
        for path, name, kind in wanted:
            if (found := self.find(path, name, kind)) is not None:
                with found:
                    used.append(found.getsockname())
        for passed in self._passed:
            if passed.sock.getsockname() not in used:
                log.warning(
                    "activated socket unused name=%s type=%s address=%s: the configuration has no"
                    " socket at that address, and no device of that name; kept for a reload",
                    passed.name,
                    _KINDS[passed.sock.type],
                    passed.address,
                    extra=extra,
                )

    @property
    def sockets(self) -> list[socket.socket]:
        """All usable sockets, which stay this object's."""
        return [passed.sock for passed in self._passed]

    def close(self) -> None:
        """Close all sockets; their files stay."""
        for passed in self._passed:
            passed.sock.close()
        self._passed.clear()


def _opened(name: str, fd: Fd) -> socket.socket | None:
    number = fd.fileno()
    try:
        sock = socket.socket(fileno=number)
    except (OSError, ValueError) as error:
        fd.close()
        log.warning("activated socket closed name=%s fd=%d: not a socket: %s", name, number, error)
        return None
    fd.take()
    listening = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
    fit = sock.type == socket.SOCK_DGRAM or (sock.type == socket.SOCK_STREAM and listening)
    # A socket without a name can't be connected to.
    if sock.family == socket.AF_UNIX and fit and sock.getsockname():
        sock.setblocking(False)
        return sock
    sock.close()
    log.warning(
        "activated socket closed name=%s fd=%d: it must be a unix socket with a name,"
        " ListenDatagram= for the control socket, ListenStream= for a device, and not Accept=yes",
        name,
        number,
    )
    return None
