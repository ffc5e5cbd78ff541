"""A connected unix stream socket whose messages carry file descriptors, on the event loop.

asyncio's streams can't receive descriptors. A socket that a peer has passed is read by a thread of
its own (`unix.receiving_thread`). Source: unix(7); recvmsg(2), MSG_DONTWAIT.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import Final

from vgpud.errors import HostError, PeerError, PeerGone
from vgpud.native.unix_socket import is_unix_stream
from vgpud.unix import ancillary
from vgpud.unix.ancillary import ReceivedMessage
from vgpud.unix.closer import Closer
from vgpud.unix.fd import Fd
from vgpud.unix.received_fd import ReceivedFd, close_all, close_socket
from vgpud.unix.receiving_thread import Arrived, ReceivingThread
from vgpud.unix.send_buffer import all_received, set_send_buffer

MAX_CLOSING: Final = 64
"""How many calls may wait for the closer before more is received: a peer that has sent a file whose
closing never ends can't use up this process's descriptors with what it sends after it."""


class StreamSocket:
    """The owner of a connected socket, whose peer need not be trusted: nothing here waits for it.

    One task at a time may receive; tasks that send wait for each other. `closer` closes the socket
    and the descriptors that are received. `passed`: the peer has passed the socket, and so can hold
    its locks; it takes a thread. Raises HostError if there is none.
    """

    def __init__(
        self, sock: socket.socket, closer: Closer | None = None, *, passed: bool = False
    ) -> None:
        # This sets Python's own time-out. A peer that passed the socket shares O_NONBLOCK and can
        # change it at any time: hence MSG_DONTWAIT below.
        sock.setblocking(False)
        self._sock = sock
        self._closer = Closer() if closer is None else closer
        self._loop = asyncio.get_running_loop()
        self._writing = asyncio.Lock()
        self._waiters: set[asyncio.Future[None]] = set()
        self._arrived: Arrived | None = None  # from the thread
        self._arrival = asyncio.Event()
        self._thread = ReceivingThread(sock, self._deliver) if passed else None

    @classmethod
    def of(cls, fd: ReceivedFd) -> StreamSocket:
        """Take a descriptor that a peer sent.

        Raises `PeerError`, and takes nothing, if it is no unix stream socket; HostError.
        """
        try:
            fit = is_unix_stream(fd.fileno())
        except OSError as error:
            raise PeerError(f"a descriptor was sent that is no socket: {error.strerror}") from error
        if not fit:
            raise PeerError("a socket was sent that is no unix stream socket")
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM, 0, fileno=fd.fileno())
        fd.take()
        try:
            return cls(sock, fd.closer, passed=True)
        except HostError:
            close_socket(sock, fd.closer)
            raise

    async def recv(self, limit: int) -> tuple[bytes, list[ReceivedFd]]:
        """Receive at most `limit` bytes with their descriptors; no bytes at the end of the stream.

        A peer that closes its end before it has received everything ends the stream as well. Raises
        `PeerError` if the connection broke, or if the kernel dropped descriptors.
        """
        if self._closer.waiting > MAX_CLOSING:
            await self._closer.finished()
        try:
            if self._thread is None:
                received = await self._receive(limit)
            else:
                received = await self._take(limit, self._thread)
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
        """Have the kernel hold `size` bytes that the peer has not received, or all it allows; soon,
        if the peer has passed the socket."""
        if self._thread is None:
            set_send_buffer(self._sock, size)
        else:  # the peer can hold the lock of a socket's options, too
            self._closer.run(partial(_set_send_buffer, self._sock, size))

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
        self._arrival.set()
        self._loop.remove_reader(self._sock)
        self._loop.remove_writer(self._sock)
        if self._thread is not None:
            self._thread.stop()
            self._closer.run(self._thread.join)
        if isinstance(self._arrived, ReceivedMessage):
            self._close_received(self._arrived)
        self._arrived = None
        # Descriptors may be in it that nobody has received.
        ReceivedFd(self._sock.detach(), self._closer).close()

    async def closed(self) -> None:
        """Wait until all that was closed is closed, which may take as long as the peer wants."""
        await self._closer.finished()

    async def _receive(self, limit: int) -> ReceivedMessage:
        while True:
            try:
                # For descriptors without room, the kernel closes the files within recvmsg.
                return ancillary.receive(
                    self._sock, limit, max_fds=ancillary.MAX_FDS, flags=socket.MSG_DONTWAIT
                )
            except BlockingIOError:
                await self._readable()

    async def _take(self, limit: int, thread: ReceivingThread) -> ReceivedMessage:
        """Take at most `limit` bytes of what has come from the thread."""
        await self._arrival.wait()
        arrived = self._arrived
        if arrived is None:
            raise PeerError("the connection was closed by this process")
        if isinstance(arrived, OSError):
            raise OSError(arrived.errno, arrived.strerror)  # a new one, as this one is kept
        if len(arrived.data) > limit:
            self._arrived = replace(arrived, data=arrived.data[limit:], fds=[], fds_lost=False)
            return replace(arrived, data=arrived.data[:limit])
        if arrived.data:  # the end stays where it is
            self._arrived = None
            self._arrival.clear()
            thread.receive()
        return arrived

    def _deliver(self, arrived: Arrived) -> None:
        if self._sock.fileno() != -1:
            self._arrived = arrived
            self._arrival.set()
        elif isinstance(arrived, ReceivedMessage):
            self._close_received(arrived)

    def _close_received(self, message: ReceivedMessage) -> None:
        close_all(ReceivedFd(fd.take(), self._closer) for fd in message.fds)
        message.fds.clear()

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


def _set_send_buffer(sock: socket.socket, size: int) -> None:
    with suppress(OSError):  # it is closed already
        set_send_buffer(sock, size)


def _wake(ready: asyncio.Future[None]) -> None:
    if not ready.done():
        ready.set_result(None)
