"""The back-end channel: the socket of VHOST_USER_SET_BACKEND_REQ_FD, on which the daemon sends
requests to the front-end.

Neither this channel nor the connection ever waits for the other: a front-end may send SET_MEM_TABLE
on the connection before it answers here.

QEMU 11.1 dies of a request that it reads while its vhost device is stopped. It stops the device and
reads this channel under one lock, and reads nothing here while it stops the device. So a request is
sent in two parts. First its first byte; once that has been received, QEMU waits for the rest and
can't stop the device. If the device is stopped before that, the rest is sent as a request that does
not exist, which QEMU logs, and the request is sent again when the device has been started.

QEMU 11.1 also answers SHMEM_MAP before the mapping is in force, so that what a guest would write
just after that is lost. It does not begin to receive another request before it is.

Source: the vhost-user specification, "Back-end message types"; QEMU, hw/virtio/vhost-user.c,
backend_read, vhost_user_backend_handle_shmem_map.
"""

from __future__ import annotations

import asyncio
import errno
import logging
from collections import deque
from dataclasses import dataclass
from time import perf_counter

from vgpud.errors import HostError, PeerError, PeerGone
from vgpud.unix.fd import Fd
from vgpud.unix.stream_socket import StreamSocket
from vgpud.vhost.wire.back_end_channel import (
    BackEndMessage,
    BackEndRequester,
    ConfigChange,
    first_byte,
    withdrawal,
)

log = logging.getLogger(__name__)

REPLY_TIMEOUT = 30.0
"""Seconds that a front-end may take for a mapping, which it makes in its main loop, between other
work."""

MAX_UNANSWERED = 64
"""Requests that were posted and not answered, at which the channel is closed: the device waits for
the answer to each, and there are more only if they are given up."""

_CHUNK = 4096

_POLLING = 0.0003
"""Seconds for which a request's first byte is polled for in each iteration of the event loop: a
front-end that is idle receives it sooner, and is blocked until it gets the rest."""

_FIRST_INTERVAL, _LONGEST_INTERVAL = 0.001, 0.016
"""Seconds between two polls after that."""


@dataclass(slots=True, eq=False)
class BackEndRequest:
    """A request that was posted.

    `answered` gets the front-end's status, or None if the channel closes before that. `undo`: it
    undoes a request that was given up, and whose answer may come late. `withdrawn`: it was given up
    itself, and the front-end has not got it.
    """

    message: BackEndMessage
    fd: Fd | None
    answered: asyncio.Future[int | None]
    undo: bool = False
    withdrawn: bool = False

    @property
    def refused(self) -> bool:
        """Whether the front-end has answered with an error."""
        return self.answered.done() and bool(self.answered.result())


class BackEndChannel:
    """A back-end channel, from the arrival of its socket until either side closes it.

    The device calls `hold` when the front-end stops its queues, and `resume` when it has started
    them. Meanwhile nothing is sent.
    """

    def __init__(self, socket: StreamSocket, *, reply_ack: bool) -> None:
        self._socket = socket
        self._channel = BackEndRequester(reply_ack=reply_ack)
        self._outbox: deque[BackEndRequest] = deque()
        self._sent: deque[BackEndRequest] = deque()
        self._begun: BackEndRequest | None = None  # of which only the first byte was sent
        self._taken_back = False  # its rest must not be sent
        self._config_held = False  # the configuration space has changed while held
        self._queued = asyncio.Event()
        self.open = True
        self.held = False

    def post(
        self, message: BackEndMessage, fd: Fd | None = None, *, undo: bool = False
    ) -> BackEndRequest:
        """Queue a request after all others; its descriptor is closed once it was sent."""
        request = BackEndRequest(message, fd, asyncio.get_running_loop().create_future(), undo)
        self._outbox.append(request)
        self._queued.set()
        if self.open and len(self._outbox) + len(self._sent) > MAX_UNANSWERED:
            log.warning("back-end channel closed: %d requests were not answered", MAX_UNANSWERED)
            self.close()
        if not self.open:
            self._abandon()
        return request

    async def answer(self, operation: str, request: BackEndRequest) -> None:
        """Wait until the front-end has carried out a request.

        Raises HostError, with `operation` in its text, if it fails, or does not answer in time. A
        request that the caller gives up, or that takes too long, is withdrawn if the front-end has
        not begun to receive it.
        """
        try:
            async with asyncio.timeout(REPLY_TIMEOUT):
                status = await asyncio.shield(request.answered)
        except TimeoutError:
            self._withdraw(request)
            waited = f"{REPLY_TIMEOUT:.0f} s"
            advice = f"the front-end did not answer in {waited}: is the VMM stopped, or stuck?"
            raise HostError(operation, OSError(errno.ETIMEDOUT, ""), advice) from None
        except asyncio.CancelledError:
            self._withdraw(request)
            raise
        if status is None:
            raise HostError(operation, OSError(errno.EPIPE, ""), "the front-end closed the channel")
        if status != 0:
            advice = f"the front-end refused it with status {status}: the VMM's own log may say why"
            raise HostError(operation, OSError(errno.EREMOTEIO, ""), advice)

    def config_changed(self) -> None:
        """Notify the front-end that the configuration space has changed; while the channel is held,
        as soon as it is not."""
        if self.held:
            self._config_held = True
        else:
            self.post(ConfigChange())

    async def confirm_config_change(self) -> None:
        """Notify the front-end that the configuration space has changed, and wait for its answer.

        Does not wait while the channel is held. Raises HostError if the front-end refuses or does
        not answer.
        """
        if self.held:
            self._config_held = True
        else:
            await self.answer("CONFIG_CHANGE_MSG", self.post(ConfigChange()))

    async def caught_up(self) -> None:
        """Wait until the front-end has done what it has answered, as it receives something else.

        That is a CONFIG_CHANGE_MSG, of which a driver only looks at the configuration. Does not
        wait while the channel is held. Raises HostError if the front-end takes too long.
        """
        if self.held:
            return
        request = self.post(ConfigChange())
        try:
            await self.answer("CONFIG_CHANGE_MSG", request)
        except HostError:
            if not request.refused:  # that it was looked at is enough
                raise

    def hold(self) -> None:
        """Send nothing more until `resume`, also not what has been posted."""
        self.held = True
        if self._begun is not None and not self._socket.all_received:
            self._taken_back = True
        for request in [each for each in self._outbox if isinstance(each.message, ConfigChange)]:
            if self._remove(request):  # nobody waits for it any more: the driver may never run
                self._config_held = True
                request.answered.set_result(0)

    def resume(self) -> None:
        """Send again, first what has been held."""
        self.held = False
        if self._config_held:
            self._config_held = False
            self.post(ConfigChange())
        self._queued.set()

    def drop(self) -> None:
        """Drop what is held, because the driver has been reset: it reads the configuration when it
        starts, and the front-end has removed its mappings, but perhaps not one that is late."""
        self._config_held = False
        for request in [*self._outbox]:
            if not request.undo and self._remove(request):
                request.answered.set_result(None)

    async def run(self) -> None:
        """Send and receive until the front-end closes the socket.

        Raises `PeerError` for a malformed answer.
        """
        try:
            async with asyncio.TaskGroup() as tasks:
                sender = tasks.create_task(self._send())
                await self._receive()
                sender.cancel()
        except* PeerGone:
            pass  # The front-end has closed the socket, while something was being sent.
        except* PeerError:
            if self.open:  # not closed by `post`
                raise
        finally:
            self.close()

    def close(self) -> None:
        """Close the socket; requests without an answer get None."""
        self.open = False
        self._socket.close()
        self._abandon()

    def _withdraw(self, request: BackEndRequest) -> None:
        request.withdrawn = request in self._outbox and self._remove(request)

    def _remove(self, request: BackEndRequest) -> bool:
        """Remove a request from the outbox; return False if the front-end is receiving it."""
        if request is self._begun and not self._taken_back:
            if self._socket.all_received:
                return False
            self._taken_back = True
        self._outbox.remove(request)
        if request is not self._begun:
            _close(request)
        return True

    async def _send(self) -> None:
        while True:
            while self.held or not self._outbox:
                self._queued.clear()
                await self._queued.wait()
            request = self._begun = self._outbox[0]
            self._taken_back = False
            try:
                await self._send_in_two_parts(request)
            finally:
                self._begun = None
                if request not in self._outbox:
                    _close(request)

    async def _send_in_two_parts(self, request: BackEndRequest) -> None:
        fds = [request.fd] if request.fd is not None else []
        await self._socket.send(first_byte(request.message), fds)
        await self._first_byte_received()
        if not self.open:
            return
        if self._taken_back:
            await self._socket.send(withdrawal(request.message))
            return
        self._outbox.popleft()
        unanswered = self._channel.unanswered
        data = self._channel.send(request.message)
        if self._channel.unanswered > unanswered:
            self._sent.append(request)
        else:
            request.answered.set_result(0)
        await self._socket.send(data[1:])

    async def _first_byte_received(self) -> None:
        """Wait until the front-end has received it, or the request is taken back."""
        begun, interval = perf_counter(), _FIRST_INTERVAL
        while not (self._taken_back or self._socket.all_received):
            if perf_counter() - begun < _POLLING:
                await asyncio.sleep(0)
            else:
                await asyncio.sleep(interval)
                interval = min(2 * interval, _LONGEST_INTERVAL)

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
