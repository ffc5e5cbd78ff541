"""A connected unix stream socket whose messages carry file descriptors, on the event loop.

asyncio has no recvmsg, hence this. Owns the socket; whoever receives descriptors owns them from
then on. Source: unix(7), SCM_RIGHTS; recvmsg(2), MSG_CMSG_CLOEXEC and MSG_CTRUNC.
"""

from __future__ import annotations

import array
import asyncio
import os
import socket
from collections.abc import Callable, Sequence

from vgpud.errors import PeerError
from vgpud.unix.fd import Fd

MAX_FDS = 32
"""Room for descriptors in one recvmsg. The largest message has 8 (SET_MEM_TABLE); the kernel drops
what does not fit."""

SO_SNDBUFFORCE = 32
"""Of asm-generic/socket.h; Python has no name for it."""

_FD_SIZE = array.array("i").itemsize


class FdSocket:
    """One reader and one writer at a time; several writers take turns through a lock of their
    own."""

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self._sock = sock
        self._loop = asyncio.get_running_loop()
        self._writing = asyncio.Lock()
        self._waiters: set[asyncio.Future[None]] = set()

    @classmethod
    def of(cls, fd: Fd) -> FdSocket:
        """Takes a descriptor that a peer sent; raises `PeerError` if it is no unix stream
        socket."""
        try:
            sock = socket.socket(fileno=fd.fileno())
        except OSError as error:
            raise PeerError(f"not a socket was sent as one: {error.strerror}") from error
        fd.take()
        if (sock.family, sock.type) != (socket.AF_UNIX, socket.SOCK_STREAM):
            sock.close()
            raise PeerError("a socket was sent that is no unix stream socket")
        return cls(sock)

    async def recv(self, limit: int) -> tuple[bytes, list[int]]:
        """Receives at most `limit` bytes with their descriptors; no bytes at the end of the stream.

        Raises `PeerError` where the connection broke, or where descriptors got lost on the way.
        """
        while True:
            try:
                data, ancillary, flags, _ = self._sock.recvmsg(
                    limit, socket.CMSG_SPACE(MAX_FDS * _FD_SIZE), socket.MSG_CMSG_CLOEXEC
                )
                break
            except BlockingIOError:
                await self._readable()
            except OSError as error:
                raise PeerError(f"receiving: {error.strerror}") from error
        fds = _descriptors(ancillary)
        if flags & socket.MSG_CTRUNC:
            for fd in fds:
                os.close(fd)
            raise PeerError(
                "descriptors were cut off: too many in one message, or too many open files"
            )
        return data, fds

    async def send(
        self,
        data: bytes | memoryview,
        fds: Sequence[int] = (),
        *,
        behind: bytes | memoryview = b"",
    ) -> None:
        """Sends all of `data`, and then of what comes behind it; the descriptors go with the first
        byte. Raises `PeerError` if the peer is gone."""
        rest = [memoryview(data), memoryview(behind)]
        ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        async with self._writing:
            while any(rest):
                try:
                    sent = self._sock.sendmsg(rest, ancillary, socket.MSG_NOSIGNAL)
                except BlockingIOError:
                    await self._writable()
                    continue
                except OSError as error:
                    raise PeerError(f"sending: {error.strerror}") from error
                first = len(rest[0])
                rest, ancillary = [rest[0][sent:], rest[1][max(sent - first, 0) :]], []

    def buffer(self, size: int) -> None:
        """Has the kernel keep up to `size` bytes that the peer has yet to receive, or as many as it
        lets us."""
        try:
            self._sock.setsockopt(socket.SOL_SOCKET, SO_SNDBUFFORCE, size)
        except PermissionError:  # only CAP_NET_ADMIN gets past net.core.wmem_max
            self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, size)

    def close(self) -> None:
        """Closes the socket, once; whoever waits on it gets `PeerError`."""
        if self._sock.fileno() == -1:
            return
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_exception(PeerError("the connection was closed on our side"))
        self._loop.remove_reader(self._sock)
        self._loop.remove_writer(self._sock)
        self._sock.close()

    async def _readable(self) -> None:
        await self._ready(self._loop.add_reader, self._loop.remove_reader)

    async def _writable(self) -> None:
        await self._ready(self._loop.add_writer, self._loop.remove_writer)

    async def _ready(self, add: Callable[..., None], remove: Callable[..., object]) -> None:
        if self._sock.fileno() == -1:
            raise PeerError("the connection is closed")
        ready = self._loop.create_future()
        self._waiters.add(ready)
        add(self._sock, _wake, ready)
        try:
            await ready
        finally:
            self._waiters.discard(ready)
            if self._sock.fileno() != -1:
                remove(self._sock)


def _wake(ready: asyncio.Future[None]) -> None:
    if not ready.done():
        ready.set_result(None)


def _descriptors(ancillary: Sequence[tuple[int, int, bytes]]) -> list[int]:
    fds = array.array("i")
    for level, kind, data in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            fds.frombytes(data[: len(data) - len(data) % _FD_SIZE])
    return list(fds)
