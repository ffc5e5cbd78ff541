"""The control server: JSON-RPC 2.0, one message a datagram, on an AF_UNIX SOCK_DGRAM socket.

The daemon provides the methods. Source: unix(7); for JSON-RPC see `control.rpc`.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Final, Self, TypeAlias

import asyncio_dgram

from vgpud.control.access import AccessList
from vgpud.control.call import Address, Caller, Handlers, refused
from vgpud.control.client_directory import ClientDirectory
from vgpud.control.dispatch import Dispatcher
from vgpud.control.events import Events
from vgpud.control.grants import AccessGrant
from vgpud.control.methods import Method, OpenRpcDocument
from vgpud.control.models import ErrorKind
from vgpud.control.openrpc import document
from vgpud.control.outbox import Outbox
from vgpud.control.params import Nothing, Params
from vgpud.control.rpc import ErrorCode, Incoming, RpcError, decode, refusal
from vgpud.control.sockets import MAX_MESSAGE, ControlSocket, Sender
from vgpud.control.subscriptions import Subscriptions
from vgpud.unix.fd import Fd
from vgpud.unix.socket_file import SocketFile

_log = logging.getLogger(__name__)

MAX_ANSWERING: Final = 256
"""Datagrams of all clients that are served at once: some calls have to wait."""
MAX_ANSWERING_EACH: Final = 32
"""Datagrams of one client that are served at once."""
MAX_UNKNOWN: Final = 64
"""Users whose groups are being looked up. Calls of more are lost."""
WATCHING: Final = 1.0
"""Seconds after which a client whose call is being served is looked for again."""
CLEANING: Final = 60.0
"""Seconds after which files of killed clients are removed again."""
MAX_READ: Final = 4 << 10
"""Bytes of a message that is decoded for its id although its sender is not allowed."""

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
        self._dispatcher = Dispatcher(handlers, self._check)
        self._answering: Counter[Address] = Counter()
        self._working: dict[asyncio.Task[None], Address] = {}
        self._unknown: dict[tuple[int, int], list[tuple[bytes, Sender]]] = {}
        self._looking_up = asyncio.Lock()
        self._sinks: dict[Address, tuple[Caller, str, ReplySink]] = {}
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
        for caller, device, sink in [*self._sinks.values()]:
            if not access.grants(caller, AccessGrant.MEMORY, device):
                self.replies_from(caller, device, None)
                sink(None)

    @property
    def subscribers(self) -> int:
        """The number of clients that get events."""
        return len(self._subscriptions)

    def close(self) -> None:
        """Close the socket and remove its file, unless the file is another server's by now."""
        if self._sock.fileno() == -1:
            return
        self._outbox.close()
        self._sock.close()
        if self._file is not None:
            self._file.remove()

    def _open_clients(self) -> None:
        if self._clients is not None:
            self._clients.open_to(self._access.users, self._access.groups)

    def add(self, handlers: Handlers) -> None:
        """Add handlers. Raises ValueError for a method that METHODS lacks."""
        self._dispatcher.add(handlers)

    def send(self, address: Address, data: bytes, fd: Fd | None = None) -> None:
        """Send a datagram at once; the caller keeps the descriptor.

        Raises BlockingIOError if the client has no room now, and OSError if it is gone.
        """
        self._outbox.send_now(address, data, fd)

    def replies_from(self, caller: Caller, device: str, sink: ReplySink | None) -> None:
        """Pass answers from this client's address, user and process to `sink`.

        With None instead of a sink, they are ignored again. Answers of other processes, and of
        clients without a sink, are ignored. The sink is called with None, for the last time, when
        the client has lost the grant of the device's memory.
        """
        if sink is None:
            owner, *_ = self._sinks.get(caller.address, (None,))
            if owner == caller:  # else another client has that address by now
                del self._sinks[caller.address]
        else:
            self._sinks[caller.address] = caller, device, sink

    async def run(self) -> None:
        """Serve calls until cancelled."""
        # asyncio_dgram's queue has no limit. It needs none: the loop puts one datagram at a time
        # there, and nothing here waits between two recv.
        stream = await asyncio_dgram.from_socket(self._sock.dup())
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._outbox.run())
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
                    self._receive(message, sender, group)
        finally:
            stream.close()

    def _receive(self, message: bytes, sender: Sender, group: asyncio.TaskGroup) -> None:
        known = self._clients.seen_here(sender.caller) if self._clients else sender.caller
        caller = replace(
            known,
            observes=lambda device: self._access.grants(known, AccessGrant.OBSERVE, device),
        )
        if not self._access.knows(caller):
            self._look_up(message, sender, group)
            return
        if not self._access.allows(caller):
            self._refuse(message, caller)
            return
        if sender.truncated:
            text = f"a message is at most {MAX_MESSAGE} bytes"
            self._fail(None, caller, RpcError(ErrorCode.INVALID_REQUEST, text))
            return
        incoming = decode(message)
        if incoming.answer:
            self._deliver(incoming, caller)
        elif (
            self._answering[caller.address] >= MAX_ANSWERING_EACH
            or self._answering.total() >= MAX_ANSWERING
        ):
            error = refused(ErrorKind.BUSY, "too many calls are waiting for their answers")
            self._fail(incoming, caller, error)
        else:
            self._answering[caller.address] += 1
            task = group.create_task(self._answer(incoming, caller))
            self._working[task] = caller.address
            task.add_done_callback(self._working.pop)

    def _look_up(self, message: bytes, sender: Sender, group: asyncio.TaskGroup) -> None:
        """Keep a message until it is known who sent it: that may take seconds, with LDAP."""
        key = sender.caller.uid, sender.caller.gid
        waiting = self._unknown.get(key)
        if waiting is None:
            if len(self._unknown) >= MAX_UNKNOWN:
                _log.warning("control call lost, too many unknown users uid=%d", key[0])
                return
            waiting = self._unknown[key] = []
            group.create_task(self._introduce(sender.caller, waiting, group))
        if len(waiting) < MAX_ANSWERING_EACH:
            waiting.append((message, sender))

    async def _introduce(
        self, caller: Caller, waiting: list[tuple[bytes, Sender]], group: asyncio.TaskGroup
    ) -> None:
        async with self._looking_up:  # one thread, since others are for devices
            await asyncio.to_thread(self._access.look_up, caller)
        del self._unknown[caller.uid, caller.gid]
        for message, sender in waiting:
            self._receive(message, sender, group)

    async def _watch_clients(self) -> None:
        """Cancel the calls of clients that are gone."""
        while True:
            before = set(self._working)
            await asyncio.sleep(WATCHING)
            for task in before & self._working.keys():  # most calls don't take that long
                if self._sock.is_gone(self._working[task]):
                    task.cancel()

    def _check(self, method: Method, params: Params, caller: Caller) -> None:
        self._access.check(caller, method, getattr(params, "device", None))

    def _refuse(self, message: bytes, caller: Caller) -> None:
        text = "control caller refused pid=%d uid=%d gid=%d"
        _log.warning(text, caller.pid, caller.uid, caller.gid)
        incoming = decode(message) if len(message) <= MAX_READ else None
        if caller.address and (incoming is None or not incoming.answer):
            data = refusal(incoming, self._access.refusal(caller))
            if data:
                self._outbox.send_spare(caller.address, data)

    def _fail(self, incoming: Incoming | None, caller: Caller, error: RpcError) -> None:
        data = refusal(incoming, error)
        if caller.address and data:
            self._outbox.send(caller.address, data)

    def _deliver(self, answer: Incoming, caller: Caller) -> None:
        owner, _, sink = self._sinks.get(caller.address, (None, None, None))
        if sink is None or owner != caller:
            return
        try:
            sink(answer)
        except Exception:
            _log.exception("answer not handled client=%r", caller)

    async def _answer(self, incoming: Incoming, caller: Caller) -> None:
        try:
            outgoing = await self._dispatcher.answer(incoming, caller)
        finally:
            self._answering[caller.address] -= 1
            if not self._answering[caller.address]:
                del self._answering[caller.address]
        if outgoing is None:
            return
        # A sender whose socket is not bound has no address, so it can't be answered.
        if caller.address and self._outbox.has_room(caller.address, len(outgoing.data)):
            self._outbox.send(caller.address, outgoing.data, outgoing.fd)
            return
        if outgoing.fd is not None:
            outgoing.fd.close()
        text = "too many answers are not read yet: read them, or ask for less at once"
        self._fail(incoming, caller, refused(ErrorKind.BUSY, text))


async def _clean(clients: ClientDirectory) -> None:
    while True:
        await asyncio.sleep(CLEANING)
        await asyncio.to_thread(clients.clean)


def _discover(params: Nothing, caller: Caller) -> OpenRpcDocument:
    return document()
