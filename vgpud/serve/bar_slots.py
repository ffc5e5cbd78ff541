"""The window's mappings through a front-end: SHMEM_MAP and SHMEM_UNMAP on the back-end channel.

Implements `device.ports.BarSlots`. Owns the channel's socket and the order of what goes over it. It
never waits for the main channel, and that one never waits for it: a front-end may send
SET_MEM_TABLE there before it answers here.
"""

from __future__ import annotations

import asyncio
import errno
from collections import deque
from dataclasses import dataclass

from vgpud.errors import HostError
from vgpud.host.fds import Fd
from vgpud.serve.fd_socket import FdSocket
from vgpud.wire.gpu.protocol import ShmId
from vgpud.wire.vhost_user.backend_channel import (
    BackendChannel,
    BackendMessage,
    ConfigChange,
    ShmemMap,
    ShmemUnmap,
)

PATIENCE = 30.0
"""Seconds that a front-end may take for a mapping: it does so in its main loop, which may be busy
with much else."""

_CHUNK = 4096


@dataclass(slots=True, eq=False)
class _Request:
    message: BackendMessage
    fd: Fd | None
    answered: asyncio.Future[int]


class FrontendSlots:
    """Mappings made by the VMM that is our vhost-user front-end."""

    def __init__(self) -> None:
        self._channel: BackendChannel | None = None
        self._socket: FdSocket | None = None
        self._outbox: deque[_Request] = deque()
        self._sent: deque[_Request] = deque()
        self._queued = asyncio.Event()

    def connect(self, socket: FdSocket, *, reply_ack: bool) -> None:
        """Takes the socket of SET_BACKEND_REQ_FD; a former one is closed."""
        self.close()
        self._socket = socket
        self._channel = BackendChannel(reply_ack=reply_ack)

    async def run(self) -> None:
        """Sends requests and hands out answers until the front-end closes the channel.

        Raises `PeerError` if it says what makes no sense.
        """
        channel, socket = self._channel, self._socket
        assert channel is not None
        assert socket is not None
        try:
            async with asyncio.TaskGroup() as tasks:
                sender = tasks.create_task(self._send(channel, socket))
                await self._receive(channel, socket)
                sender.cancel()
        finally:
            self._fail()

    async def map(self, fd: Fd, fd_offset: int, bar_offset: int, length: int) -> None:
        operation = f"SHMEM_MAP of {length:#x} at {bar_offset:#x}"
        self._check_connected(operation)
        message = ShmemMap(ShmId.HOST_VISIBLE, fd_offset, bar_offset, length, writable=True)
        request = self._post(message, fd.dup())
        try:
            await self._answer(operation, request)
        finally:
            if request.answered.cancelled():
                # Given up in mid-flight; whoever asked may ask anew. The channel's order puts the
                # undoing between.
                self._post(ShmemUnmap(message.shmid, bar_offset, length), None)

    async def unmap(self, bar_offset: int, length: int) -> None:
        operation = f"SHMEM_UNMAP of {length:#x} at {bar_offset:#x}"
        self._check_connected(operation)
        request = self._post(ShmemUnmap(ShmId.HOST_VISIBLE, bar_offset, length), None)
        await self._answer(operation, request)

    def config_changed(self) -> None:
        """Tells the front-end that the configuration space reads differently now."""
        self._post(ConfigChange(), None)

    def close(self) -> None:
        """Closes the channel; whoever waits for an answer gets `HostError`."""
        self._fail()
        if self._socket is not None:
            self._socket.close()
        self._channel = self._socket = None

    def _check_connected(self, operation: str) -> None:
        if self._channel is None:
            raise _refused(
                operation, errno.ENOTCONN, "the front-end has no SHMEM, or no back-end channel"
            )

    @staticmethod
    async def _answer(operation: str, request: _Request) -> None:
        try:
            async with asyncio.timeout(PATIENCE):
                status = await request.answered
        except TimeoutError:
            raise _refused(operation, errno.ETIMEDOUT, f"no answer in {PATIENCE:.0f} s") from None
        if status != 0:
            advice = f"the front-end refused it with status {status}"
            raise _refused(operation, errno.EREMOTEIO, advice)

    def _post(self, message: BackendMessage, fd: Fd | None) -> _Request:
        request = _Request(message, fd, asyncio.get_running_loop().create_future())
        self._outbox.append(request)
        self._queued.set()
        return request

    async def _send(self, channel: BackendChannel, socket: FdSocket) -> None:
        while True:
            await self._queued.wait()
            self._queued.clear()
            while self._outbox:
                request = self._outbox.popleft()
                answers_before = len(channel.waiting)
                data = channel.send(request.message)
                if len(channel.waiting) > answers_before:
                    self._sent.append(request)
                else:
                    request.answered.set_result(0)
                fds = [request.fd.fileno()] if request.fd is not None else []
                try:
                    await socket.send(data, fds)
                finally:
                    if request.fd is not None:
                        request.fd.close()

    async def _receive(self, channel: BackendChannel, socket: FdSocket) -> None:
        while True:
            data, fds = await socket.recv(_CHUNK)
            for fd in fds:  # answers have none
                Fd(fd).close()
            if not data:
                return
            channel.receive_data(data)
            while (reply := channel.next_reply()) is not None:
                answered = self._sent.popleft().answered
                if not answered.done():
                    answered.set_result(reply.status)

    def _fail(self) -> None:
        for request in (*self._sent, *self._outbox):
            if request.fd is not None:
                request.fd.close()
            if not request.answered.done():
                request.answered.set_result(-1)
        self._sent.clear()
        self._outbox.clear()


def _refused(operation: str, number: int, advice: str) -> HostError:
    return HostError(operation, OSError(number, ""), advice)
