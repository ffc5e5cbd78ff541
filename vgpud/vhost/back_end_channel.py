"""The socket of SET_BACKEND_REQ_FD: our requests to the front-end, and its answers, in order.

Owns one such socket. It never waits for the main channel, and that one never waits for it: a
front-end may send SET_MEM_TABLE there before it answers here.
"""

from __future__ import annotations

import asyncio
import errno
from collections import deque
from dataclasses import dataclass

from vgpud.errors import HostError
from vgpud.unix.fd import Fd
from vgpud.unix.stream_socket import StreamSocket
from vgpud.vhost.wire.back_end_channel import BackEndMessage, BackEndRequester, ConfigChange

REPLY_TIMEOUT = 30.0
"""Seconds that a front-end may take for a mapping: it does so in its main loop, which may be busy
with much else."""

_CHUNK = 4096


@dataclass(slots=True, eq=False)
class BackEndRequest:
    """A request on its way: `answered` gets the front-end's status, or None where none comes."""

    message: BackEndMessage
    fd: Fd | None
    answered: asyncio.Future[int | None]

    @property
    def refused(self) -> bool:
        """Whether the front-end has said that it will not."""
        return self.answered.done() and bool(self.answered.result())


class BackEndChannel:
    """A channel from the arrival of its socket until either side closes it."""

    def __init__(self, socket: StreamSocket, *, reply_ack: bool) -> None:
        self._socket = socket
        self._channel = BackEndRequester(reply_ack=reply_ack)
        self._outbox: deque[BackEndRequest] = deque()
        self._sent: deque[BackEndRequest] = deque()
        self._queued = asyncio.Event()
        self.open = True

    def post(self, message: BackEndMessage, fd: Fd | None = None) -> BackEndRequest:
        """Queues a request behind all others; takes the descriptor that goes with it."""
        request = BackEndRequest(message, fd, asyncio.get_running_loop().create_future())
        self._outbox.append(request)
        self._queued.set()
        if not self.open:
            self._abandon()
        return request

    async def answer(self, operation: str, request: BackEndRequest) -> None:
        """Wait until a request has been done; raise HostError if it has not been. `operation` is
        for people."""
        try:
            async with asyncio.timeout(REPLY_TIMEOUT):
                status = await asyncio.shield(request.answered)
        except TimeoutError:
            waited = f"{REPLY_TIMEOUT:.0f} s"
            advice = f"the front-end did not answer in {waited}: is the VMM stopped, or stuck?"
            raise HostError(operation, OSError(errno.ETIMEDOUT, ""), advice) from None
        if status is None:
            raise HostError(operation, OSError(errno.EPIPE, ""), "the front-end closed the channel")
        if status != 0:
            advice = f"the front-end refused it with status {status}: the VMM's own log may say why"
            raise HostError(operation, OSError(errno.EREMOTEIO, ""), advice)

    def config_changed(self) -> None:
        """Say that the configuration space reads differently now."""
        self.post(ConfigChange())

    async def confirm_config_change(self) -> None:
        """Say so, and wait until the front-end has taken note; raise HostError if it does not."""
        await self.answer("CONFIG_CHANGE_MSG", self.post(ConfigChange()))

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
        self._abandon()

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
                fds = [request.fd] if request.fd is not None else []
                try:
                    await self._socket.send(data, fds)
                finally:
                    _close(request)

    async def _receive(self) -> None:
        while True:
            data, fds = await self._socket.recv(_CHUNK)
            for fd in fds:  # answers have none
                fd.close()
            if not data:
                return
            self._channel.receive_data(data)
            while (reply := self._channel.next_reply()) is not None:
                self._sent.popleft().answered.set_result(reply.status)

    def _abandon(self) -> None:
        for request in (*self._sent, *self._outbox):
            _close(request)
            if not request.answered.done():
                request.answered.set_result(None)
        self._sent.clear()
        self._outbox.clear()


def _close(request: BackEndRequest) -> None:
    if request.fd is not None:
        request.fd.close()
