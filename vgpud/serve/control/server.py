"""The control socket: JSON-RPC 2.0, one message a datagram, on an AF_UNIX SOCK_DGRAM socket.

Owns the socket, its file, and the models of what goes through it; the daemon provides the methods.
Must not import `uapi`. Source: unix(7), and the JSON-RPC 2.0 specification by way of `wire.rpc`.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import socket
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Final, Self, TypeAlias

import asyncio_dgram
from pydantic import BaseModel, ConfigDict

from vgpud.errors import ConfigError, HostError, VgpudError
from vgpud.serve.unix_socket import remove_stale
from vgpud.wire.rpc import Call, ErrorCode, Failure, Result, RpcError, decode, encode

_log = logging.getLogger(__name__)

MAX_MESSAGE: Final = 64 << 10
"""Bytes. Far more than any call needs, and less than a sender's default buffer lets through."""
MAX_BATCH: Final = 64
"""Calls. Keeps the answer to a batch below what one datagram can hold."""
REPLY_PATIENCE: Final = 1.0
"""Seconds. How long a client whose queue is full may take to read before it loses a reply.

Only the queue of a client that is not connected has an end of its own. What one that is connected
leaves unread counts against our send buffer instead: after some 270 replies everyone's get lost
until it reads or goes. AF_UNIX offers no way around that; only our own user can do it.
"""
REPLY_RETRY: Final = 0.01
"""Seconds. A full queue of a peer can't be polled for on an unconnected socket, hence this."""
MAX_LATE_REPLIES: Final = 64
"""Replies kept for clients that do not read, so that they can't make the daemon grow."""

Address: TypeAlias = str | bytes
Method: TypeAlias = Callable[[], BaseModel]
"""A method without parameters: none of today's takes any."""


_TOO_LARGE: Final = encode(
    [Failure(None, RpcError(ErrorCode.VGPUD, "the reply does not fit into a datagram"))]
)


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class DeviceInfo(_Model):
    """A device, as `daemon.info` lists it."""

    name: str
    socket: str | None
    connected: bool


class DaemonInfo(_Model):
    """What `daemon.info` answers; `uptime_s` is in seconds."""

    version: str
    pid: int
    uptime_s: float
    devices: tuple[DeviceInfo, ...]


class ControlServer:
    """The server's end of the control socket, bound from the start; answers while `run` runs.

    Raises ConfigError if something is at `path` that must not be replaced, another server's socket
    or a file of another kind, and HostError if there can be no socket for other reasons.
    """

    def __init__(self, path: Path, methods: Mapping[str, Method]) -> None:
        self._path = path
        self._methods = methods
        self._late_replies = 0
        self._sock = _bind(path)
        self._inode = path.stat().st_ino

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
        """Close the socket and remove its file, unless that is another server's by now."""
        if self._sock.fileno() == -1:
            return
        self._sock.close()
        try:
            if self._path.stat().st_ino == self._inode:
                self._path.unlink()
        except OSError as error:
            _log.debug("control socket not removed path=%s error=%s", self._path, error)

    async def run(self) -> None:
        """Answer until cancelled."""
        stream = await asyncio_dgram.from_socket(self._sock.dup())
        try:
            async with asyncio.TaskGroup() as late:
                while True:
                    message, sender = await stream.recv()
                    reply = self._answer(message)
                    # A sender that is bound to no address can't be answered: it has no name.
                    if reply and isinstance(sender, str | bytes) and not self._send(reply, sender):
                        self._send_late(late, reply, sender)
        finally:
            stream.close()

    def _answer(self, message: bytes) -> bytes:
        if len(message) > MAX_MESSAGE:
            text = f"a message is at most {MAX_MESSAGE} bytes"
            return encode([Failure(None, RpcError(ErrorCode.INVALID_REQUEST, text))])
        incoming = decode(message)
        if len(incoming.calls) > MAX_BATCH:
            text = f"a batch is at most {MAX_BATCH} calls"
            return encode([Failure(None, RpcError(ErrorCode.INVALID_REQUEST, text))])
        replies = [
            call if isinstance(call, Failure) else self._call(call) for call in incoming.calls
        ]
        return encode(filter(None, replies), batch=incoming.batch)

    def _call(self, call: Call) -> Result | Failure | None:
        reply: Result | Failure
        try:
            reply = Result(call.id, self._result(call).model_dump(mode="json"))
        except RpcError as error:
            reply = Failure(call.id, error)
        except VgpudError as error:
            data = {"kind": type(error).__name__}
            reply = Failure(call.id, RpcError(ErrorCode.VGPUD, str(error), data))
        return None if call.notification else reply

    def _result(self, call: Call) -> BaseModel:
        if call.method not in self._methods:
            raise RpcError(ErrorCode.METHOD_NOT_FOUND, f"no method {call.method!r}")
        if call.params:
            raise RpcError(ErrorCode.INVALID_PARAMS, f"{call.method} takes no parameters")
        return self._methods[call.method]()

    def _send(self, reply: bytes, client: Address) -> bool:
        """Whether there is no more to do: it was sent, or never can be."""
        # Not through the stream: that would queue it, and wait for all clients on behalf of one.
        try:
            self._sock.sendto(reply, socket.MSG_DONTWAIT, client)
        except BlockingIOError:
            return False
        except OSError as error:
            if error.errno == errno.EMSGSIZE:
                return self._send(_TOO_LARGE, client)
            _log.debug("control reply lost client=%r error=%s", client, error)
        return True

    def _send_late(self, group: asyncio.TaskGroup, reply: bytes, client: Address) -> None:
        if self._late_replies < MAX_LATE_REPLIES:
            self._late_replies += 1
            group.create_task(self._retry(reply, client))
        else:
            _log.debug("control reply dropped client=%r reason=too-many-waiting", client)

    async def _retry(self, reply: bytes, client: Address) -> None:
        try:
            for _ in range(round(REPLY_PATIENCE / REPLY_RETRY)):
                await asyncio.sleep(REPLY_RETRY)
                if self._send(reply, client):
                    return
            _log.debug("control reply dropped client=%r reason=client-does-not-read", client)
        finally:
            self._late_replies -= 1


def _bind(path: Path) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    try:
        sock.setblocking(False)
        os.fchmod(sock.fileno(), 0o600)  # On an unbound socket: what bind makes the file with.
        remove_stale(path, sock.type)
        sock.bind(os.fspath(path))
    except OSError as error:
        sock.close()
        advice = "set daemon.runtime_dir to a directory that exists and can be written to"
        raise HostError(f"control socket {path}", error, advice) from error
    except ConfigError:
        sock.close()
        raise
    return sock
