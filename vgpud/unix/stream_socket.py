"""A connected unix stream socket whose messages carry file descriptors, on the event loop.

asyncio's streams can't receive descriptors. Source: unix(7); recvmsg(2), MSG_DONTWAIT.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Sequence

from vgpud.errors import PeerError
from vgpud.unix import ancillary
from vgpud.unix.fd import Fd
from vgpud.unix.send_buffer import set_send_buffer

MAX_FDS = 32
"""Room for descriptors in one recvmsg. The largest message has 8 (SET_MEM_TABLE); the kernel drops
what does not fit."""


class StreamSocket:
    """The owner of a connected socket.

    One task at a time may receive; tasks that send wait for each other.
    """

    def __init__(self, sock: socket.socket) -> None:
        # This sets Python's own time-out. A peer that passed the socket shares O_NONBLOCK and can
        # change it at any time: hence MSG_DONTWAIT below.
        sock.setblocking(False)
        self._sock = sock
        self._loop = asyncio.get_running_loop()
        self._writing = asyncio.Lock()
        self._waiters: set[asyncio.Future[None]] = set()

    @classmethod
    def of(cls, fd: Fd) -> StreamSocket:
        """Take a descriptor that a peer sent. Raises `PeerError` if it is no unix stream socket."""
        try:
            sock = socket.socket(fileno=fd.fileno())
        except OSError as error:
            raise PeerError(f"a descriptor was sent that is no socket: {error.strerror}") from error
        fd.take()
        if (sock.family, sock.type) != (socket.AF_UNIX, socket.SOCK_STREAM):
            sock.close()
            raise PeerError("a socket was sent that is no unix stream socket")
        return cls(sock)

    async def recv(self, limit: int) -> tuple[bytes, list[Fd]]:
        """Receive at most `limit` bytes with their descriptors; no bytes at the end of the stream.

        Raises `PeerError` if the connection broke, or if the kernel dropped descriptors.
        """
        while True:
            try:
                received = ancillary.receive(
                    self._sock, limit, max_fds=MAX_FDS, flags=socket.MSG_DONTWAIT
                )
                break
            except BlockingIOError:
                await self._readable()
            except OSError as error:
                raise PeerError(f"receiving: {error.strerror}") from error
        if received.fds_lost:
            received.close()
            raise PeerError(
                "descriptors were cut off: too many in one message, or too many open files"
            )
        return received.data, received.fds

    async def send(
        self,
        data: bytes | memoryview,
        fds: Sequence[Fd] = (),
        *,
        behind: bytes | memoryview = b"",
    ) -> None:
        """Send all of `data`, and then all of `behind`; duplicates of `fds` go with the first byte.

        Raises `PeerError` if the peer is gone.
        """
        unsent = [memoryview(data), memoryview(behind)]
        async with self._writing:
            while any(unsent):
                try:
                    sent = ancillary.send(self._sock, unsent, fds, flags=socket.MSG_DONTWAIT)
                except BlockingIOError:
                    await self._writable()
                    continue
                except OSError as error:
                    raise PeerError(f"sending: {error.strerror}") from error
                first = len(unsent[0])
                unsent, fds = [unsent[0][sent:], unsent[1][max(sent - first, 0) :]], ()

    def buffer(self, size: int) -> None:
        """Have the kernel hold `size` bytes that the peer has not received, or all it allows."""
        set_send_buffer(self._sock, size)

    def close(self) -> None:
        """Close the socket, once; tasks that wait on it get `PeerError`."""
        if self._sock.fileno() == -1:
            return
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_exception(PeerError("the connection was closed by this process"))
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
