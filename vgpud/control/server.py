"""The control server: JSON-RPC 2.0, one message a datagram, on an AF_UNIX SOCK_DGRAM socket.

The daemon provides the methods. Source: unix(7); for JSON-RPC see `control.rpc`.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections import Counter
from collections.abc import Callable, Coroutine
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self, TypeAlias

import asyncio_dgram

from vgpud.control.access import AccessList
from vgpud.control.call import Caller, Handlers, refused
from vgpud.control.caller_sockets import CallerSockets
from vgpud.control.client_directory import ClientDirectory
from vgpud.control.dispatch import Dispatcher
from vgpud.control.events import Events
from vgpud.control.grants import AccessGrant
from vgpud.control.lane import Lane
from vgpud.control.methods import Method, OpenRpcDocument
from vgpud.control.models import ErrorKind
from vgpud.control.openrpc import document
from vgpud.control.outbox import Outbox
from vgpud.control.params import Nothing, Params
from vgpud.control.places import Places
from vgpud.control.reception import Reception
from vgpud.control.rpc import MAX_OBJECTS, ErrorCode, Incoming, RpcError, decode, refusal
from vgpud.control.sockets import MAX_MESSAGE, ControlSocket, Sender
from vgpud.control.subscriptions import Subscriptions
from vgpud.errors import stored
from vgpud.unix.fd import Fd
from vgpud.unix.socket_file import SocketFile

_log = logging.getLogger(__name__)

MAX_ANSWERING: Final = 256
"""Datagrams of all clients that are served at once: some calls have to wait."""
MAX_ANSWERING_EACH: Final = 32
"""Datagrams of one client that are served at once."""
PLACES: Final = Places(MAX_ANSWERING, each_user=96, reserved=64)
RENEWING: Final = 60.0
"""Seconds after which the groups of subscribers and agents are looked up again."""
WATCHING: Final = 1.0
"""Seconds after which a client whose call is being served is looked for again."""
CLEANING: Final = 60.0
"""Seconds after which files of killed clients are removed again."""
MAX_READ: Final = 4 << 10
"""Bytes of a message that is decoded at once, which takes a small part of a millisecond. A longer
one waits for its turn, or is not decoded at all if its sender is not allowed."""

ReplySink: TypeAlias = Callable[[Incoming | None], None]


class ControlServer:
    """The server's end of the control socket. It is bound from the start, and served by `run`.

    With a path, it creates the socket. That raises ConfigError if another server's socket or a file
    of another kind is there, which must not be replaced, and HostError if the socket can't be
    created for other reasons. With a socket that is bound already, it takes over the socket and
    leaves its file alone. It opens `clients`, the directory where clients bind their
    sockets, to the users that have a grant.
    """

    def __init__(
        self,
        where: Path | socket.socket,
        handlers: Handlers,
        *,
        access: AccessList,
        events: Events,
        clients: ClientDirectory | None = None,
    ) -> None:
        self._access = access
        self._clients = clients
        self._lane = Lane()
        self._dispatcher = Dispatcher(handlers, self._check, self._lane)
        self._answering: Counter[Caller] = Counter()
        self._users: Counter[int] = Counter()
        self._working: dict[asyncio.Task[None], Caller] = {}
        self._group: asyncio.TaskGroup
        self._sockets = CallerSockets(clients)
        self._reception = Reception(self._sockets, lambda: self._access, self._serve)
        self._sinks: dict[Caller, tuple[str, ReplySink]] = {}
        self._file: SocketFile | None = None
        if isinstance(where, Path):
            self._sock, self._file = ControlSocket.bound(where)
        else:
            self._sock = ControlSocket.of(where)
        self._subscriptions = Subscriptions(events, self._sock)
        self._outbox = Outbox(self._sock, self._subscriptions.drop)
        self.add({"rpc.discover": _discover, **self._subscriptions.handlers()})
        self._open_clients()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    @property
    def access(self) -> AccessList:
        """The grants of callers.

        Setting it ends the subscriptions of clients that may no longer observe anything, and takes
        no more answers from agents that may no longer have the memory of their device.
        """
        return self._access

    @access.setter
    def access(self, access: AccessList) -> None:
        self._access = access
        self._open_clients()
        self._subscriptions.keep(lambda caller: access.grants_any(caller, AccessGrant.OBSERVE))
        for caller, (device, sink) in [*self._sinks.items()]:
            if not access.grants(caller, AccessGrant.MEMORY, device):
                self.replies_from(caller, device, None)
                sink(None)

    async def prepare(self, access: AccessList) -> None:
        """Look up, in a thread, all that have to be known when `access` is set."""
        while unknown := [each for each in self._callers() if not access.knows(each)]:
            await asyncio.to_thread(lambda them: [*map(access.look_up, them)], unknown)

    def _callers(self) -> set[Caller]:
        return {*self._subscriptions.callers, *self._sinks, *self._working.values()}

    @property
    def subscribers(self) -> int:
        """The number of clients that get events."""
        return len(self._subscriptions)

    def close(self) -> None:
        """Close the socket and remove its file, unless the file is another server's by now."""
        if self._sock.fileno() == -1:
            return
        self._outbox.close()
        self._subscriptions.keep(lambda caller: False)
        self._sinks.clear()
        self._sockets.close()
        self._sock.close()
        if self._file is not None:
            self._file.remove()

    def _open_clients(self) -> None:
        if self._clients is not None:
            self._clients.open_to(self._access.users, self._access.groups)

    def add(self, handlers: Handlers) -> None:
        """Add handlers. Raises ValueError for a method that METHODS lacks."""
        self._dispatcher.add(handlers)

    def send(self, caller: Caller, data: bytes, fd: Fd | None = None) -> None:
        """Send a datagram at once; the caller keeps the descriptor.

        Raises BlockingIOError if the client has no room now, and OSError if it is gone.
        """
        self._outbox.send_now(caller, data, fd)

    def replies_from(self, caller: Caller, device: str, sink: ReplySink | None) -> None:
        """Pass answers from this client to `sink`.

        With None instead of a sink, they are ignored again. Answers of other processes, and of
        clients without a sink, are ignored. The sink is called with None, for the last time, when
        the client has lost the grant of the device's memory.
        """
        if sink is None:
            self._sinks.pop(caller, None)
        else:
            self._sinks[caller] = device, sink

    async def run(self) -> None:
        """Serve calls until cancelled."""
        # asyncio_dgram's queue has no limit. It needs none: the loop puts one datagram at a time
        # there, and nothing here waits between two recv.
        stream = await asyncio_dgram.from_socket(self._sock.dup())
        try:
            async with asyncio.TaskGroup() as group:
                self._group = group
                group.create_task(self._outbox.run())
                group.create_task(self._renew_grants())
                group.create_task(self._subscriptions.run(self._outbox))
                group.create_task(self._watch_clients())
                if self._clients is not None:
                    group.create_task(_clean(self._clients))
                while True:
                    try:
                        message, sender = await stream.recv()
                    except OSError as error:
                        _log.warning("control socket receive failed error=%s", error)
                        continue
                    assert isinstance(sender, Sender)
                    self._reception.receive(message, sender)
                    del sender  # its file is open until nothing refers to it, as this frame would
        finally:
            stream.close()

    def _serve(self, message: bytes, known: Caller, truncated: bool) -> None:
        # Without the file of its socket, so that nothing but the caller itself keeps that.
        name = replace(known, file=None)
        caller = replace(
            known,
            observes=lambda device: self._access.grants(name, AccessGrant.OBSERVE, device),
        )
        if not self._access.allows(caller):
            self._refuse(message, caller)
            return
        if truncated:
            text = f"a message is at most {MAX_MESSAGE} bytes"
            self._fail(None, caller, RpcError(ErrorCode.INVALID_REQUEST, text))
            return
        if len(message) > MAX_READ:
            self._begin(self._answer_long(message, caller), None, caller)
            return
        incoming = self._lane.count(partial(decode, message, MAX_OBJECTS))
        if incoming.answer:
            self._deliver(incoming, caller)
        else:
            self._begin(self._answer(incoming, caller), incoming, caller)

    def _begin(
        self, answer: Coroutine[Any, Any, None], incoming: Incoming | None, caller: Caller
    ) -> None:
        """Have a message answered, of which `incoming` is known so far, unless too many are."""
        if self._answering[caller] >= MAX_ANSWERING_EACH or not PLACES.has_room(
            caller.uid, self._users
        ):
            answer.close()
            error = refused(ErrorKind.BUSY, "too many calls are waiting for their answers")
            self._fail(incoming, caller, error)
            return
        try:
            task = self._group.create_task(answer)
        except RuntimeError:  # the server is ending
            answer.close()
            return
        self._answering[caller] += 1
        self._users[caller.uid] += 1
        self._working[task] = caller
        task.add_done_callback(self._answered)

    def _answered(self, task: asyncio.Task[None]) -> None:
        caller = self._working.pop(task)
        if task.cancelled():
            try:
                task.exception()
            except asyncio.CancelledError as error:
                stored(error)  # its traceback would keep the caller's socket
        self._answering[caller] -= 1
        self._users[caller.uid] -= 1
        if not self._answering[caller]:
            del self._answering[caller]
        if not self._users[caller.uid]:
            del self._users[caller.uid]

    async def _renew_grants(self) -> None:
        """Look up again, once in a while, those who get events or are agents."""
        while True:
            await asyncio.sleep(RENEWING)
            access = self._access
            await self.prepare(access)
            if access is self._access:
                self.access = access

    async def _watch_clients(self) -> None:
        """Cancel the calls of clients that are gone, and forget these."""
        while True:
            before = set(self._working)
            await asyncio.sleep(WATCHING)
            for task in before & self._working.keys():  # most calls don't take that long
                if self._sock.is_gone(self._working[task]):
                    task.cancel()
            await self._forget_gone()

    async def _forget_gone(self) -> None:
        for caller in self._sockets.remembered:
            if self._sock.is_gone(caller):
                self._sockets.forget(caller)
            await asyncio.sleep(0)

    def _check(self, method: Method, params: Params, caller: Caller) -> None:
        self._access.check(caller, method, getattr(params, "device", None))

    def _refuse(self, message: bytes, caller: Caller) -> None:
        text = "control caller refused pid=%d uid=%d gid=%d"
        _log.warning(text, caller.pid, caller.uid, caller.gid)
        incoming = decode(message, MAX_OBJECTS) if len(message) <= MAX_READ else None
        if caller.address and (incoming is None or not incoming.answer):
            data = refusal(incoming, self._access.refusal(caller))
            if data:
                self._outbox.send_spare(caller, data)

    def _fail(self, incoming: Incoming | None, caller: Caller, error: RpcError) -> None:
        data = refusal(incoming, error)
        if caller.address and data:
            self._outbox.send(caller, data)

    def _deliver(self, answer: Incoming, caller: Caller) -> None:
        _, sink = self._sinks.get(caller, (None, None))
        if sink is None:
            return
        try:
            sink(answer)
        except Exception:
            _log.exception("answer not handled client=%r", caller)

    async def _answer_long(self, message: bytes, caller: Caller) -> None:
        """Decode a message when it is its sender's turn, and serve it."""
        incoming = await self._lane.run(caller.uid, _decoded(message))
        if incoming.answer:
            self._deliver(incoming, caller)
        else:
            await self._answer(incoming, caller)

    async def _answer(self, incoming: Incoming, caller: Caller) -> None:
        outgoing = await self._dispatcher.answer(incoming, caller)
        if outgoing is None:
            return
        # A sender without a socket of its own has no address, so it can't be answered.
        if caller.address and self._outbox.has_room(caller, len(outgoing.data)):
            self._outbox.send(caller, outgoing.data, outgoing.fd)
            return
        if outgoing.fd is not None:
            outgoing.fd.close()
        text = "too many answers are not read yet: read them, or ask for less at once"
        self._fail(incoming, caller, refused(ErrorKind.BUSY, text))


async def _decoded(message: bytes) -> Incoming:
    return decode(message, MAX_OBJECTS)


async def _clean(clients: ClientDirectory) -> None:
    while True:
        await asyncio.sleep(CLEANING)
        await asyncio.to_thread(clients.clean)


async def _discover(params: Nothing, caller: Caller) -> OpenRpcDocument:
    return await asyncio.to_thread(document)  # made at the first call only, which takes long
