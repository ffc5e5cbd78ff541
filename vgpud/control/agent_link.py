"""Transports to a VMM's slot agent: a socket that was connected for it, or the control socket.

Both carry the messages of `control.agent_calls`. Source: unix(7); pidfd_open(2).
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import socket
from collections import deque
from collections.abc import Callable
from dataclasses import replace
from typing import Final, Protocol

from vgpud.control.call import Caller
from vgpud.control.rpc import Incoming, decode
from vgpud.unix import ancillary
from vgpud.unix.closer import Closer
from vgpud.unix.fd import Fd
from vgpud.unix.received_fd import Discard, ReceivedFd

_log = logging.getLogger(__name__)

MAX_REPLY: Final = 64 << 10
"""Bytes. An answer is about fifty."""
MAX_UNREAD: Final = 1 << 20
"""Bytes of answers that are kept until they are read. Answers beyond it are dropped: only an agent
that sends more than it was asked for can get there."""
RETRY: Final = 0.01
"""Seconds between tries: an unconnected socket can't wait for room in a peer's full queue."""


class AgentLink(Protocol):
    """A transport of datagrams to an agent and of its answers."""

    def send(self, data: bytes, fd: Fd | None) -> None:
        """Send a datagram now. Raises BlockingIOError if there is no room, or OSError."""

    async def recv(self) -> Incoming | None:
        """Return the next answer, or None once the agent is gone or the link is closed."""

    async def writable(self) -> None:
        """Wait until there may be room again."""

    def close(self) -> None:
        """Close the link and wake what waits for it. A second call does nothing."""


class SocketLink:
    """A link over a connected AF_UNIX socket, SOCK_DGRAM or SOCK_SEQPACKET, which it owns."""

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self._sock = sock
        self._discard = Discard()
        self._closer = Closer()
        self._waiting: set[asyncio.Future[None]] = set()

    def send(self, data: bytes, fd: Fd | None) -> None:
        fds = [fd] if fd is not None else []
        ancillary.send(self._sock, [data], fds, flags=socket.MSG_DONTWAIT)

    async def recv(self) -> Incoming | None:
        loop = asyncio.get_running_loop()
        while self._sock.fileno() != -1:
            try:
                received = ancillary.receive(
                    self._sock, MAX_REPLY, max_fds=ancillary.MAX_FDS, flags=socket.MSG_DONTWAIT
                )
            except BlockingIOError:
                await self._ready(loop.add_reader, loop.remove_reader)
            else:
                self._discard.close(received.fds)  # no answer has any
                return decode(received.data) if received.data else None
        return None

    async def writable(self) -> None:
        loop = asyncio.get_running_loop()
        await self._ready(loop.add_writer, loop.remove_writer)

    def close(self) -> None:
        waiting, number = list(self._waiting), self._sock.fileno()
        for ready in waiting:
            ready.get_loop().remove_reader(number)
            ready.get_loop().remove_writer(number)
            _wake(ready)
        if number != -1:  # descriptors may be in it that have not been received
            ReceivedFd(self._sock.detach(), self._closer).close()

    async def _ready(self, add: Callable[..., object], remove: Callable[[int], object]) -> None:
        number = self._sock.fileno()
        ready = asyncio.get_running_loop().create_future()
        self._waiting.add(ready)
        add(number, _wake, ready)
        try:
            await ready
        finally:
            self._waiting.remove(ready)
            if self._sock.fileno() != -1:
                remove(number)


class ControlPort(Protocol):
    """The part of the control server that a `ControlLink` uses."""

    def send(self, caller: Caller, data: bytes, fd: Fd | None) -> None:
        """Send a datagram now. Raises BlockingIOError if there is no room, or OSError."""

    def replies_from(
        self, caller: Caller, device: str, sink: Callable[[Incoming | None], None] | None
    ) -> None:
        """Pass the caller's answers to `sink`, or ignore them again if it is None.

        The sink is called with None, for the last time, when the caller has lost the grant of the
        device's memory.
        """


class ControlLink:
    """A link to a client of the control socket, the agent of `device`.

    `gone` is called once, with the reason, when the client has lost the grant of the device's
    memory or its process has ended. A process in another PID namespace can't be watched.
    """

    def __init__(
        self, port: ControlPort, caller: Caller, device: str, gone: Callable[[str], None]
    ) -> None:
        self.caller = caller
        self._device = device
        self._port = port
        self._gone = gone
        self._answers: deque[Incoming] = deque()
        self._size = 0
        self._waiting: asyncio.Future[None] | None = None
        self._closed = False
        self._process = _watch(caller.pid)
        if self._process is not None:
            asyncio.get_running_loop().add_reader(self._process.fileno(), self._ended)
        port.replies_from(caller, device, self._take)

    def send(self, data: bytes, fd: Fd | None) -> None:
        if self._closed:
            raise ConnectionResetError(errno.ECONNRESET, os.strerror(errno.ECONNRESET))
        self._port.send(self.caller, data, fd)

    async def recv(self) -> Incoming | None:
        while not self._closed:
            if self._answers:
                answer = self._answers.popleft()
                self._size -= answer.size
                return answer
            self._waiting = asyncio.get_running_loop().create_future()
            try:
                await self._waiting
            finally:
                self._waiting = None
        return None

    async def writable(self) -> None:
        if not self._closed:
            await asyncio.sleep(RETRY)

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        self._port.replies_from(self.caller, self._device, None)
        self._answers.clear()
        self.caller = replace(self.caller, file=None)
        if self._process is not None:
            asyncio.get_running_loop().remove_reader(self._process.fileno())
            self._process.close()
        self._wake_reader()

    def _take(self, answer: Incoming | None) -> None:
        if answer is None:
            self._end("it may no longer take the device's memory")
        elif self._size + answer.size <= MAX_UNREAD:
            self._answers.append(answer)
            self._size += answer.size
            self._wake_reader()

    def _ended(self) -> None:
        self._end("its process has ended")

    def _end(self, reason: str) -> None:
        self.close()
        self._gone(reason)

    def _wake_reader(self) -> None:
        if self._waiting is not None:
            _wake(self._waiting)


def _watch(pid: int) -> Fd | None:
    if pid <= 0:
        return None
    try:
        return Fd(os.pidfd_open(pid))  # the kernel makes it close-on-exec
    except OSError as error:
        _log.debug("agent not watched pid=%d: %s", pid, error.strerror)
        return None


def _wake(ready: asyncio.Future[None]) -> None:
    if not ready.done():
        ready.set_result(None)
