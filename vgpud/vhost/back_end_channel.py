"""The back-end channel: the socket of VHOST_USER_SET_BACKEND_REQ_FD, on which the daemon sends
requests to the front-end.

Neither this channel nor the connection ever waits for the other: a front-end may send SET_MEM_TABLE
on the connection before it answers here. Source: the vhost-user specification, "Back-end message
types".
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
"""Seconds that a front-end may take for a mapping, which it makes in its main loop, between other
work."""

_CHUNK = 4096


@dataclass(slots=True, eq=False)
class BackEndRequest:
    """A request that was posted.

    `answered` gets the front-end's status, or None if the channel closes before that.
    """

    message: BackEndMessage
    fd: Fd | None
    answered: asyncio.Future[int | None]

    @property
    def refused(self) -> bool:
        """Whether the front-end has answered with an error."""
        return self.answered.done() and bool(self.answered.result())


class BackEndChannel:
    """A back-end channel, from the arrival of its socket until either side closes it."""

    def __init__(self, socket: StreamSocket, *, reply_ack: bool) -> None:
        self._socket = socket
        self._channel = BackEndRequester(reply_ack=reply_ack)
        self._outbox: deque[BackEndRequest] = deque()
        self._sent: deque[BackEndRequest] = deque()
        self._queued = asyncio.Event()
        self.open = True

    def post(self, message: BackEndMessage, fd: Fd | None = None) -> BackEndRequest:
        """Queue a request after all others; its descriptor is closed once it was sent."""
        request = BackEndRequest(message, fd, asyncio.get_running_loop().create_future())
        self._outbox.append(request)
        self._queued.set()
        if not self.open:
            self._abandon()
        return request

    async def answer(self, operation: str, request: BackEndRequest) -> None:
        """Wait until the front-end has carried out a request.

        Raises HostError, with `operation` in its text, if it fails, or does not answer in time.
        """
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
        """Notify the front-end that the configuration space has changed."""
        self.post(ConfigChange())

    async def confirm_config_change(self) -> None:
        """Notify the front-end that the configuration space has changed, and wait for its answer.

        Raises HostError if the front-end refuses or does not answer.
        """
        await self.answer("CONFIG_CHANGE_MSG", self.post(ConfigChange()))

    async def run(self) -> None:
        """Send and receive until the front-end closes the socket.

        Raises `PeerError` for a malformed answer.
        """
        try:
            async with asyncio.TaskGroup() as tasks:
                sender = tasks.create_task(self._send())
                await self._receive()
                sender.cancel()
        finally:
            self.close()

    def close(self) -> None:
        """Close the socket; requests without an answer get None."""
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
