"""A client of the control socket, on a plain blocking socket.

Owns its socket and that socket's file, which it makes beside the daemon's: what both can reach.
Must not import asyncio or anything of the daemon's. Source: unix(7), and `wire.rpc`.
"""

from __future__ import annotations

import errno
import os
import secrets
import socket
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from vgpud.errors import HostError
from vgpud.wire.rpc import Call, Failure, Json, decode_reply, encode_call

MAX_REPLY: Final = 1 << 20
"""Bytes. More than a datagram can be with the kernel's default buffers."""

_DENIED: Final = "it answers to the daemon's own user: call it as that one"
_ADVICE: Final = {errno.EACCES: _DENIED, errno.EPERM: _DENIED}


class Client:
    """One caller; not for use by several threads at once. Raises HostError if no daemon answers."""

    def __init__(self, path: Path, *, timeout: float = 5.0) -> None:
        self._path = path
        self._own_path = path.with_name(f".{os.getpid()}-{secrets.token_hex(4)}")
        self._calls = 0
        self._sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._sock.settimeout(timeout)
        try:
            # Connected first: then nobody else can get a datagram into it, whoever may open it.
            self._sock.connect(os.fspath(path))
            # The daemon's user may be another than ours; the directory keeps others away.
            os.fchmod(self._sock.fileno(), 0o666)
            self._sock.bind(os.fspath(self._own_path))
        except OSError as error:
            self._sock.close()
            raise self._host_error(error) from error

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the socket and remove its file."""
        self._sock.close()
        self._own_path.unlink(missing_ok=True)

    def call(self, method: str, params: dict[str, Json] | list[Json] | None = None) -> Json:
        """The result of a method, to be validated by the caller.

        Raises RpcError if the daemon answers with an error, PeerError if with anything else but an
        answer, and HostError if it does not answer in time.
        """
        self._calls += 1
        try:
            self._sock.send(encode_call(Call(method, params or {}, self._calls)))
            while True:
                reply = decode_reply(self._sock.recv(MAX_REPLY))
                if reply.id in (self._calls, None):
                    break  # Another id is of a call that was given up.
        except OSError as error:
            raise self._host_error(error) from error
        if isinstance(reply, Failure):
            raise reply.error
        return reply.value

    def _host_error(self, error: OSError) -> HostError:
        advice = _ADVICE.get(error.errno or 0, "is the daemon running there?")
        return HostError(f"control socket {self._path}", error, advice)
