"""The socket of SET_BACKEND_REQ_FD: our requests to the front-end, and its answers, in order.

Owns one such socket. It never waits for the main channel, and that one never waits for it: a
front-end may send SET_MEM_TABLE there before it answers here.
"""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass

from vgpud.unix.fd import Fd
from vgpud.unix.stream_socket import FdSocket
from vgpud.vhost.wire.back_end_channel import BackendChannel, BackendMessage

_CHUNK = 4096


@dataclass(slots=True, eq=False)
class Request:
    """A request on its way: `answered` gets the front-end's status, or None where none comes."""

    message: BackendMessage
    fd: Fd | None
    answered: asyncio.Future[int | None]

    @property
    def refused(self) -> bool:
        """Whether the front-end has said that it will not."""
        return self.answered.done() and bool(self.answered.result())


class BackEndLink:
    """A channel from its socket's arrival until either side closes it."""

    def __init__(self, socket: FdSocket, *, reply_ack: bool) -> None:
        self._socket = socket
        self._channel = BackendChannel(reply_ack=reply_ack)
        self._outbox: deque[Request] = deque()
        self._sent: deque[Request] = deque()
        self._queued = asyncio.Event()
        self.open = True

    def post(self, message: BackendMessage, fd: Fd | None = None) -> Request:
        """Queues a request behind all others; takes the descriptor that goes with it."""
        request = Request(message, fd, asyncio.get_running_loop().create_future())
        self._outbox.append(request)
        self._queued.set()
        if not self.open:
            self._forsake()
        return request

    async def run(self) -> None:
        """Sends and receives until the front-end closes the socket.

        Raises `PeerError` if it says what makes no sense.
        """
        try:
            async with asyncio.TaskGroup() as tasks:
                sender = tasks.create_task(self._send())
                await self._receive()
                sender.cancel()
        finally:
            self.close()

    def close(self) -> None:
        """Closes the socket; whoever waits for an answer gets None."""
        self.open = False
        self._socket.close()
        self._forsake()

    async def _send(self) -> None:
        while True:
            await self._queued.wait()
            self._queued.clear()
            while self._outbox:
                request = self._outbox.popleft()
                waiting = len(self._channel.waiting)
                data = self._channel.send(request.message)
                if len(self._channel.waiting) > waiting:
                    self._sent.append(request)
                else:
                    request.answered.set_result(0)
                fds = [request.fd.fileno()] if request.fd is not None else []
                try:
                    await self._socket.send(data, fds)
                finally:
                    _close(request)

    async def _receive(self) -> None:
        while True:
            data, fds = await self._socket.recv(_CHUNK)
            for fd in fds:  # answers have none
                Fd(fd).close()
            if not data:
                return
            self._channel.receive_data(data)
            while (reply := self._channel.next_reply()) is not None:
                self._sent.popleft().answered.set_result(reply.status)

    def _forsake(self) -> None:
        for request in (*self._sent, *self._outbox):
            _close(request)
            if not request.answered.done():
                request.answered.set_result(None)
        self._sent.clear()
        self._outbox.clear()


def _close(request: Request) -> None:
    if request.fd is not None:
        request.fd.close()
