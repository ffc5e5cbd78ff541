"""The queues of datagrams to clients of the control socket, with limits for each client.

A client that does not read costs no other client its answers. The outbox keeps the datagrams that
wait to be sent, and an estimate of what each client, a `Caller`, has not read. Source: unix(7);
net/unix/af_unix.c, unix_dgram_sendmsg.

The reason for the estimate: only a client whose socket is not connected has a limited queue
(net.unix.max_dgram_qlen). What a connected client leaves unread stays in the daemon's one send
buffer until the client reads or closes its socket, and once that buffer is full no client gets
anything. The kernel says how much is in the buffer, but not for whom. So a client that was sent
much, while much is unread, has to pass a trial: the outbox sends it one datagram, after which the
buffer's level has to fall again. A client that fails often enough is sent no more, and what it
holds is written off until the level shows that one such client has read.
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

from vgpud.control.call import Caller
from vgpud.control.sockets import ControlSocket
from vgpud.pace import Pace
from vgpud.unix.fd import Fd

_log = logging.getLogger(__name__)

PATIENCE: Final = 2.0
"""Seconds that a client may stay without room before what waits for it is dropped."""
RETRY: Final = 0.005
"""Seconds between tries: an unconnected socket can't wait for room in a peer's full queue."""
MAX_WAITING: Final = 256
"""Datagrams that wait for one client."""
MAX_WAITING_BYTES: Final = 512 << 10
"""Bytes that wait for one client: a dozen long listings."""
MAX_WAITING_BYTES_ALL: Final = 8 << 20
"""Bytes that wait for all clients, which limits the daemon's memory."""
SHORT: Final = 1 << 10
"""Bytes of a short answer: one that is no longer than an error in its place."""
SPARE: Final = 64 << 10
"""Bytes of a client's waiting datagrams that are reserved for short answers."""
MAX_BUDGET: Final = 256 << 10
"""Bytes of the send buffer that a client may fill before it has to show that it reads."""
SHARE: Final = 16
"""A client's budget is also at most this fraction of what is free in the send buffer, so that the
buffer hardly ever runs full."""

_AT_ONCE: Final = 16  # datagrams for one client before other clients are served
_OVERHEAD: Final = 768  # bytes of the send buffer that a datagram of one byte takes
_MAX_CLIENTS: Final = 1024  # clients of which an estimate is kept

_SETTLE: Final = 0.001  # seconds before a trial, for all to read what they have just been sent
_TRIAL: Final = 0.003  # seconds: readers that are awake take a hundredth of that
_POLL: Final = 0.0005  # seconds
_MIN_POLLS: Final = 3  # in case this process was not scheduled meanwhile
_NEXT_TRIAL: Final = 0.05  # seconds, doubled with each failed trial: trials fill the buffer, too
_TRIALS: Final = 3  # failed ones after which what a client holds is written off, if room remains
_TRIALS_WRITTEN_OFF: Final = 5  # the number that it gets then
_MAX_TRIALS: Final = 10  # after which there are no more, unless the level falls

_GONE: Final = {errno.ECONNREFUSED, errno.ENOENT, errno.EPERM, errno.EPROTOTYPE, errno.ENOTSOCK}
"""The errors if no socket has that address any more, or one that takes no datagrams of this one."""

Lost: TypeAlias = Callable[[Caller, bool], None]


@dataclass(slots=True, eq=False)
class _Client:
    name: Caller  # without the file of its socket: an estimate holds no descriptor
    caller: Caller
    unread: int = 0  # bytes of the send buffer that it can have in its queue at most
    waiting: deque[tuple[bytes, Fd | None]] = field(default_factory=deque)
    waiting_bytes: int = 0
    since: float = 0.0  # when a datagram began to wait, or when there was last room since then
    failed: int = 0  # trials
    next_trial: float = 0.0
    written_off: int = 0  # bytes; only of a stuck client


class Outbox:
    """A queue of datagrams for each client of a socket.

    `lost` is called with a client that missed a datagram, and whether that is because it is gone.
    """

    def __init__(self, sock: ControlSocket, lost: Lost) -> None:
        self._sock = sock
        self._lost = lost
        self._size = sock.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF)
        self._clients: dict[Caller, _Client] = {}
        self._written_off = 0  # of all stuck clients
        self._waiting_bytes = 0
        self._wanted = asyncio.Event()
        self._trying = False

    def close(self) -> None:
        """Drop all waiting datagrams."""
        for client in self._clients.values():
            self._drop(client)
        self._clients.clear()

    def send(self, caller: Caller, data: bytes, fd: Fd | None = None) -> None:
        """Send a datagram when there is room, or drop it; takes the descriptor."""
        if not self._trying:
            level = self._level()
            client = self._client(caller)
            if not client.waiting and self._delivered(client, data, fd, level):
                client.caller = client.name
                return
        client = self._client(caller)
        self._keep(client, data, fd)
        if not client.waiting:
            client.caller = client.name

    def has_room(self, caller: Caller, size: int) -> bool:
        """Return whether `size` bytes would be kept, with room for short answers after them.

        If not, the client calls for more than it reads, and the caller can send a short error
        instead of the answer.
        """
        client = self._clients.get(caller)
        if client is None or not client.waiting or size <= SHORT:
            return True
        return client.waiting_bytes + size <= self._room() - SPARE

    def _room(self) -> int:
        # A fraction of what is free, so that some is left for the next client that has to wait.
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

    def send_now(self, caller: Caller, data: bytes, fd: Fd | None) -> None:
        """Send a datagram at once, or raise BlockingIOError or OSError; does not take the fd."""
        level = self._level()
        self._sock.send_to(caller, data, fd)
        client = self._client(caller)
        self._count(client, data, level)
        if not client.waiting:
            client.caller = client.name

    def send_spare(self, caller: Caller, data: bytes) -> None:
        """Send a datagram to a caller that is not allowed, if there is plenty of room."""
        level = self._level()
        if not self._trying and level - self._written_off < self._budget(level) // 2:
            try:
                self._sock.send_to(caller, data)
            except OSError as error:
                _log.debug("control reply lost client=%r error=%s", caller, error)

    async def run(self) -> None:
        """Send waiting datagrams, until cancelled."""
        while True:
            await self._wanted.wait()
            more = await self._flush()
            suspect = self._suspected()
            if suspect is not None:
                await self._try(suspect)
            elif more:
                await asyncio.sleep(0)
            elif any(client.waiting for client in self._clients.values()):
                await asyncio.sleep(RETRY)
            else:
                self._wanted.clear()

    def _client(self, caller: Caller) -> _Client:
        client = self._clients.get(caller)
        if client is None:
            if len(self._clients) >= _MAX_CLIENTS:
                self._forget_oldest()
            name = Caller(caller.address, caller.pid, caller.uid, caller.gid)
            client = self._clients[name] = _Client(name, caller)
        elif not client.waiting:
            client.caller = caller
        return client

    def _forget_oldest(self) -> None:
        for client in self._clients.values():
            if not client.waiting and not client.written_off:
                del self._clients[client.name]
                return

    def _level(self) -> int:
        """Return how many bytes are in the send buffer, and update the estimates by it."""
        level = self._sock.unread()
        if level < self._written_off:
            # A stuck client has read, or is gone. Which one, their next trials show.
            self._written_off = 0
            for client in self._clients.values():
                if client.written_off:
                    client.written_off, client.failed, client.next_trial = 0, _TRIALS - 1, 0.0
        if level <= self._written_off:
            for client in [*self._clients.values()]:
                if client.waiting:
                    client.unread = 0
                elif not client.written_off:
                    del self._clients[client.name]
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
        """Return whether the datagram is done with: it was sent, or never can be."""
        if self._suspect(client, data, level):
            return False
        return self._put(client, data, fd, level)

    def _put(self, client: _Client, data: bytes, fd: Fd | None, level: int) -> bool:
        try:
            self._sock.send_to(client.caller, data, fd)
        except BlockingIOError:
            return False
        except OSError as error:
            _log.debug("control reply lost client=%r error=%s", client.caller, error)
            self._lost(client.caller, error.errno in _GONE)
        else:
            self._count(client, data, level)
        if fd is not None:
            fd.close()
        return True

    def _count(self, client: _Client, data: bytes, level: int) -> None:
        # If a client has read in between, the difference is too small.
        client.unread += max(self._sock.unread() - level, len(data) + _OVERHEAD)

    async def _flush(self) -> bool:
        """Send what there is room for; return whether there may be room for more."""
        more, pace = False, Pace()
        for client in [client for client in self._clients.values() if client.waiting]:
            await pace.step()  # meanwhile a client may get more, or be dropped
            now = monotonic()
            for _ in range(_AT_ONCE):
                if not client.waiting:
                    break
                data, fd = client.waiting[0]
                if not self._delivered(client, data, fd, self._level()):
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
        if not client.waiting:
            client.caller = client.name

    def _drop(self, client: _Client) -> None:
        while client.waiting:
            _, fd = client.waiting[0]
            self._pop(client)
            if fd is not None:
                fd.close()

    def _give_up(self, client: _Client) -> None:
        _log.debug("control replies dropped client=%r reason=client-does-not-read", client.caller)
        self._drop(client)
        self._lost(client.caller, False)

    def _suspected(self) -> _Client | None:
        """Return the client for the next trial: the one that began to wait last, or None.

        Most clients that have just begun to wait do read.
        """
        now = monotonic()
        level = self._level()
        if level > self._size - self._size // 8:
            return None  # what is free is for clients that were sent little
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
        self._trying = True  # all other datagrams wait, so that only reading changes the level
        try:
            await asyncio.sleep(_SETTLE)
            before = self._level()
            if not client.waiting or not self._put(client, *client.waiting[0], before):
                return
            self._pop(client)
            lowest = self._sock.unread()
            polls, end = 0, monotonic() + _TRIAL
            while lowest > before and (polls < _MIN_POLLS or monotonic() < end):
                await asyncio.sleep(_POLL)
                lowest = min(lowest, self._sock.unread())
                polls += 1
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
            # If the client was only not scheduled, the level will fall below what is written off,
            # or it passes the next trial.
            more = min(client.unread, lowest - self._written_off)
            client.failed = max(client.failed, _TRIALS_WRITTEN_OFF)
        client.written_off += more
        self._written_off += more
        client.next_trial = monotonic() + _NEXT_TRIAL * 2**client.failed
