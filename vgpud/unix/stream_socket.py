"""A connected unix stream socket whose messages carry file descriptors, on the event loop.

asyncio's streams can't receive descriptors. Source: unix(7); recvmsg(2), MSG_DONTWAIT.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Sequence
from typing import Final

from vgpud.errors import PeerError, PeerGone
from vgpud.native.unix_socket import is_unix_stream
from vgpud.unix import ancillary
from vgpud.unix.closer import Closer
from vgpud.unix.fd import Fd
from vgpud.unix.received_fd import ReceivedFd, close_all
from vgpud.unix.send_buffer import all_received, set_send_buffer

MAX_CLOSING: Final = 64
"""How many calls may wait for the closer before more is received: a peer that has sent a file whose
closing never ends can't use up this process's descriptors with what it sends after it."""


class StreamSocket:
    """The owner of a connected socket, whose peer need not be trusted: nothing here waits for it.

    One task at a time may receive; tasks that send wait for each other. `closer` closes the socket
    and the descriptors that are received.
    """

    def __init__(self, sock: socket.socket, closer: Closer | None = None) -> None:
        # This sets Python's own time-out. A peer that passed the socket shares O_NONBLOCK and can
        # change it at any time: hence MSG_DONTWAIT below.
        sock.setblocking(False)
        self._sock = sock
        self._closer = Closer() if closer is None else closer
        self._loop = asyncio.get_running_loop()
        self._writing = asyncio.Lock()
        self._waiters: set[asyncio.Future[None]] = set()

    @classmethod
    def of(cls, fd: ReceivedFd) -> StreamSocket:
        """Take a descriptor that a peer sent.

        Raises `PeerError`, and takes nothing, if it is no unix stream socket.
        """
        try:
            fit = is_unix_stream(fd.fileno())
        except OSError as error:
            raise PeerError(f"a descriptor was sent that is no socket: {error.strerror}") from error
        if not fit:
            raise PeerError("a socket was sent that is no unix stream socket")
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM, 0, fileno=fd.fileno())
        fd.take()
        return cls(sock, fd.closer)

    async def recv(self, limit: int) -> tuple[bytes, list[ReceivedFd]]:
        """Receive at most `limit` bytes with their descriptors; no bytes at the end of the stream.

        A peer that closes its end before it has received everything ends the stream as well. Raises
        `PeerError` if the connection broke, or if the kernel dropped descriptors.
        """
        if self._closer.waiting > MAX_CLOSING:
            await self._closer.finished()
        while True:
            try:
                # For descriptors without room, the kernel closes the files within recvmsg.
                received = ancillary.receive(
                    self._sock, limit, max_fds=ancillary.MAX_FDS, flags=socket.MSG_DONTWAIT
                )
                break
            except BlockingIOError:
                await self._readable()
            except ConnectionResetError:
                return b"", []
            except OSError as error:
                raise PeerError(f"receiving: {error.strerror}") from error
        fds = [ReceivedFd(fd.take(), self._closer) for fd in received.fds]
        if received.fds_lost:
            close_all(fds)
            raise PeerError("descriptors were cut off: this process has too many open files")
        return received.data, fds

    async def send(
        self,
        data: bytes | memoryview,
        fds: Sequence[Fd] = (),
        *,
        behind: bytes | memoryview = b"",
    ) -> None:
        """Send all of `data`, and then all of `behind`; duplicates of `fds` go with the first byte.

        Raises `PeerGone` if the peer has closed its end, and `PeerError` for other errors.
        """
        unsent = [memoryview(data), memoryview(behind)]
        async with self._writing:
            while any(unsent):
                try:
                    sent = ancillary.send(self._sock, unsent, fds, flags=socket.MSG_DONTWAIT)
                except BlockingIOError:
                    await self._writable()
                    continue
                except (BrokenPipeError, ConnectionResetError) as error:
                    raise PeerGone(f"sending: {error.strerror}") from error
                except OSError as error:
                    raise PeerError(f"sending: {error.strerror}") from error
                first = len(unsent[0])
                unsent, fds = [unsent[0][sent:], unsent[1][max(sent - first, 0) :]], ()

    def buffer(self, size: int) -> None:
        """Have the kernel hold `size` bytes that the peer has not received, or all it allows."""
        set_send_buffer(self._sock, size)

    @property
    def all_received(self) -> bool:
        """Whether the peer has received every byte that was sent; also true of a closed socket."""
        return self._sock.fileno() == -1 or all_received(self._sock)

    def close(self) -> None:
        """Close the socket, soon and once; tasks that wait on it get `PeerError`."""
        if self._sock.fileno() == -1:
            return
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_exception(PeerError("the connection was closed by this process"))
        self._loop.remove_reader(self._sock)
        self._loop.remove_writer(self._sock)
        # Descriptors may be in it that nobody has received.
        ReceivedFd(self._sock.detach(), self._closer).close()

    async def closed(self) -> None:
        """Wait until all that was closed is closed, which may take as long as the peer wants."""
        await self._closer.finished()

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
