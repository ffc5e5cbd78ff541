"""Everything that goes to clients of the control socket, so that none costs another its answers.

Owns what waits to be sent, and an estimate of what each client has not read. Source: unix(7);
net/unix/af_unix.c, unix_dgram_sendmsg.

Why it takes an estimate: only the queue of a client that is not connected has an end of its own
(net.unix.max_dgram_qlen). What one that is connected leaves unread stays in our one send buffer
until it reads or goes, and once that is full nobody gets anything. The kernel tells how much is in
it, not whose. So a client that was sent a lot, while a lot is unread, has to pass a trial: one
datagram, after which the buffer has to come down again. Who fails for long gets no more, and what
it holds is written off until somebody reads.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import socket
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from time import monotonic
from typing import Final, TypeAlias

from vgpud.control.call import Address
from vgpud.control.sockets import ControlSocket
from vgpud.unix.fd import Fd

_log = logging.getLogger(__name__)

PATIENCE: Final = 2.0
"""Seconds that a client may go on without room before what waits for it is dropped."""
RETRY: Final = 0.005
"""Seconds. A full queue of a peer can't be polled for on an unconnected socket, hence this."""
MAX_WAITING: Final = 256
"""Datagrams that wait for one client."""
MAX_WAITING_BYTES: Final = 512 << 10
"""The same in bytes: a dozen long listings."""
MAX_WAITING_BYTES_ALL: Final = 8 << 20
"""Bytes that wait for all clients, so that they can't make the daemon grow."""
SHORT: Final = 1 << 10
"""Bytes of an answer that is not worth another in its place."""
SPARE: Final = 64 << 10
"""Bytes of what may wait for a client that only short ones may take."""
MAX_BUDGET: Final = 256 << 10
"""Bytes of the send buffer that a client may fill before it has to show that it reads."""
SHARE: Final = 16
"""And this part of what is left of the send buffer, where that is less: so it hardly runs out."""

_AT_ONCE: Final = 16  # datagrams for one client, before others have their turn
_OVERHEAD: Final = 768  # bytes of the send buffer that a datagram of one byte takes
_MAX_CLIENTS: Final = 1024  # clients of which an estimate is kept

_SETTLE: Final = 0.001  # seconds before a trial, for all to read what they have just been sent
_TRIAL: Final = 0.003  # seconds: readers that are awake take a hundredth of that
_LOOK: Final = 0.0005  # seconds
_MIN_LOOKS: Final = 3  # in case it is us who were asleep
_NEXT_TRIAL: Final = (
    0.05  # seconds, doubled with each that was not passed: they fill the buffer, too
)
_TRIALS: Final = 3  # until what a client holds is written off, if there is room for so many
_TRIALS_WRITTEN_OFF: Final = 5  # what it counts as then
_MAX_TRIALS: Final = 10  # until it is not tried again, unless somebody reads

_GONE: Final = {errno.ECONNREFUSED, errno.ENOENT, errno.EPERM, errno.EPROTOTYPE, errno.ENOTSOCK}
"""Nobody has that name any more, or somebody who does not want anything from us."""

Lost: TypeAlias = Callable[[Address, bool], None]


@dataclass(slots=True, eq=False)
class _Client:
    address: Address
    unread: int = 0  # bytes of the send buffer that it can have in its queue at most
    waiting: deque[tuple[bytes, Fd | None]] = field(default_factory=deque)
    waiting_bytes: int = 0
    since: float = 0.0  # when something began to wait, or it last had room since then
    failed: int = 0  # trials
    next_trial: float = 0.0
    written_off: int = 0  # bytes; only of one that is stuck


class Outbox:
    """`lost` is told of a client that missed something, and whether that is because it is gone."""

    def __init__(self, sock: ControlSocket, lost: Lost) -> None:
        self._sock = sock
        self._lost = lost
        self._size = sock.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF)
        self._clients: dict[Address, _Client] = {}
        self._written_off = 0  # of all that are stuck
        self._waiting_bytes = 0
        self._wanted = asyncio.Event()
        self._trying = False

    def close(self) -> None:
        """Drop what waits."""
        for client in self._clients.values():
            self._drop(client)
        self._clients.clear()

    def send(self, address: Address, data: bytes, fd: Fd | None = None) -> None:
        """Send a datagram when there is room, or never; takes the descriptor."""
        if not self._trying:
            level = self._look()
            client = self._client(address)
            if not client.waiting and self._delivered(client, data, fd, level):
                return
        self._keep(self._client(address), data, fd)

    def has_room(self, address: Address, size: int) -> bool:
        """Whether so many bytes would be kept, and short ones behind them.

        False is for who asks for more than it reads: it can be told so, instead of losing it.
        """
        client = self._clients.get(address)
        if client is None or not client.waiting or size <= SHORT:
            return True
        return client.waiting_bytes + size <= self._room() - SPARE

    def _room(self) -> int:
        # Here too a part of what is left: so there is some for the next who has to wait.
        return min(MAX_WAITING_BYTES, (MAX_WAITING_BYTES_ALL - self._waiting_bytes) // 4)

    def _keep(self, client: _Client, data: bytes, fd: Fd | None) -> None:
        full = client.waiting_bytes + len(data) > self._room()
        if full or len(client.waiting) >= MAX_WAITING:
            if fd is not None:
                fd.close()
            self._give_up(client)
            return
        if not client.waiting:
            client.since = monotonic()
        client.waiting.append((data, fd))
        client.waiting_bytes += len(data)
        self._waiting_bytes += len(data)
        self._wanted.set()

    def send_now(self, address: Address, data: bytes, fd: Fd | None) -> None:
        """Send a datagram at once; keeps the descriptor. Raises BlockingIOError, OSError."""
        level = self._look()
        self._sock.send_to(address, data, fd)
        self._count(self._client(address), data, level)

    def send_spare(self, address: Address, data: bytes) -> None:
        """Send a datagram if there is plenty of room, to somebody who has no claim to any."""
        level = self._look()
        if not self._trying and level - self._written_off < self._budget(level) // 2:
            try:
                self._sock.send_to(address, data)
            except OSError as error:
                _log.debug("control reply lost client=%r error=%s", address, error)

    async def run(self) -> None:
        """Send what has to wait, until cancelled."""
        while True:
            await self._wanted.wait()
            more = self._flush()
            suspect = self._suspected()
            if suspect is not None:
                await self._try(suspect)
            elif more:
                await asyncio.sleep(0)
            elif any(client.waiting for client in self._clients.values()):
                await asyncio.sleep(RETRY)
            else:
                self._wanted.clear()

    def _client(self, address: Address) -> _Client:
        client = self._clients.get(address)
        if client is None:
            if len(self._clients) >= _MAX_CLIENTS:
                self._forget_oldest()
            client = self._clients[address] = _Client(address)
        return client

    def _forget_oldest(self) -> None:
        for client in self._clients.values():
            if not client.waiting and not client.written_off:
                del self._clients[client.address]
                return

    def _look(self) -> int:
        """What is in the send buffer; learns from it what there is to learn about the clients."""
        level = self._sock.unread()
        if level < self._written_off:
            # One of those that were stuck has read, or is gone. Each may show that it was that one.
            self._written_off = 0
            for client in self._clients.values():
                if client.written_off:
                    client.written_off, client.failed, client.next_trial = 0, _TRIALS - 1, 0.0
        if level <= self._written_off:
            for client in [*self._clients.values()]:
                if client.waiting:
                    client.unread = 0
                elif not client.written_off:
                    del self._clients[client.address]
        return level

    def _budget(self, level: int) -> int:
        return max(1, min(MAX_BUDGET, (self._size - level) // SHARE))

    def _suspect(self, client: _Client, data: bytes, level: int) -> bool:
        if client.written_off:
            return True
        client.unread = min(client.unread, level - self._written_off)
        more = client.unread + len(data) + _OVERHEAD
        return client.unread > 0 and more > self._budget(level)

    def _delivered(self, client: _Client, data: bytes, fd: Fd | None, level: int) -> bool:
        """Whether there is no more to do: it was sent, or never can be."""
        if self._suspect(client, data, level):
            return False
        return self._put(client, data, fd, level)

    def _put(self, client: _Client, data: bytes, fd: Fd | None, level: int) -> bool:
        try:
            self._sock.send_to(client.address, data, fd)
        except BlockingIOError:
            return False
        except OSError as error:
            _log.debug("control reply lost client=%r error=%s", client.address, error)
            self._lost(client.address, error.errno in _GONE)
        else:
            self._count(client, data, level)
        if fd is not None:
            fd.close()
        return True

    def _count(self, client: _Client, data: bytes, level: int) -> None:
        # Somebody may have read in between: then the difference says too little.
        client.unread += max(self._sock.unread() - level, len(data) + _OVERHEAD)

    def _flush(self) -> bool:
        """Whether somebody has room for more of what waits."""
        more = False
        now = monotonic()
        for client in [client for client in self._clients.values() if client.waiting]:
            for _ in range(_AT_ONCE):
                if not client.waiting:
                    break
                data, fd = client.waiting[0]
                if not self._delivered(client, data, fd, self._look()):
                    break
                self._pop(client)
                client.since = now
            else:
                more = True
            if client.waiting and now - client.since > PATIENCE:
                self._give_up(client)
        return more

    def _pop(self, client: _Client) -> None:
        data, _ = client.waiting.popleft()
        client.waiting_bytes -= len(data)
        self._waiting_bytes -= len(data)

    def _drop(self, client: _Client) -> None:
        while client.waiting:
            _, fd = client.waiting[0]
            self._pop(client)
            if fd is not None:
                fd.close()

    def _give_up(self, client: _Client) -> None:
        _log.debug("control replies dropped client=%r reason=client-does-not-read", client.address)
        self._drop(client)
        self._lost(client.address, False)

    def _suspected(self) -> _Client | None:
        """The one to try next: who has just begun to wait first, as most of those do read."""
        now = monotonic()
        level = self._look()
        if level > self._size - self._size // 8:
            return None  # what is left is for those who were sent little
        suspects = [
            client
            for client in self._clients.values()
            if client.waiting
            and client.next_trial <= now
            and client.failed < _MAX_TRIALS
            and self._suspect(client, client.waiting[0][0], level)
        ]
        return max(suspects, key=lambda client: client.since, default=None)

    async def _try(self, client: _Client) -> None:
        self._trying = True  # and all others wait, so that only those who read change the level
        try:
            await asyncio.sleep(_SETTLE)
            before = self._look()
            if not client.waiting or not self._put(client, *client.waiting[0], before):
                return
            self._pop(client)
            lowest = self._sock.unread()
            looks, end = 0, monotonic() + _TRIAL
            while lowest > before and (looks < _MIN_LOOKS or monotonic() < end):
                await asyncio.sleep(_LOOK)
                lowest = min(lowest, self._sock.unread())
                looks += 1
        finally:
            self._trying = False
        if lowest <= before:
            self._written_off -= client.written_off
            client.written_off = client.unread = client.failed = 0
            client.since = monotonic()
        else:
            self._fail(client, before, lowest)

    def _fail(self, client: _Client, before: int, lowest: int) -> None:
        client.failed += 1
        more = 0
        if client.written_off:
            more = lowest - before
        elif client.failed >= _TRIALS or lowest > self._size // 4:
            # Should it have been asleep only, there will be less in the buffer than that, or it
            # passes the next.
            more = min(client.unread, lowest - self._written_off)
            client.failed = max(client.failed, _TRIALS_WRITTEN_OFF)
        client.written_off += more
        self._written_off += more
        client.next_trial = monotonic() + _NEXT_TRIAL * 2**client.failed
