"""A client of the control socket, on a blocking socket.

It receives three kinds of messages: answers, events, and the daemon's calls to a slot agent
(`client.slot_agent`). Source: unix(7), and `control.rpc`.
"""

from __future__ import annotations

import errno
import secrets
import select
import socket
import threading
import time
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Final, Self, TypeAlias

from vgpud.client.channel import MAX_FDS, Answer
from vgpud.client.own_socket import OwnSocket
from vgpud.client.unanswered import (
    GRACE,
    LONGER,
    PING,
    TIMEOUT,
    LateError,
    failed,
    may_be_refused_unread,
    slow,
    unanswered,
)
from vgpud.control.rpc import (
    Call,
    ErrorCode,
    Failure,
    Incoming,
    Result,
    RpcError,
    decode,
    encode,
    encode_call,
)
from vgpud.errors import HostError, PeerError
from vgpud.publish import Json
from vgpud.unix import ancillary
from vgpud.unix.fd import Fd

MAX_MESSAGE: Final = 1 << 20
"""Bytes. More than the largest datagram with the kernel's default buffers."""
MAX_EVENTS: Final = 4096
"""Events kept while a call waits; then the oldest are dropped, which sequence numbers show."""
HEARTBEAT: Final = 2.0
"""Seconds without a datagram after which a waiting client checks that the daemon is alive: a
datagram socket does not report that by itself."""

_Params: TypeAlias = dict[str, Json] | list[Json]
_Result: TypeAlias = tuple[Json, list[Fd]]
_Received: TypeAlias = tuple[Result | Failure, list[Fd]]


class Client:
    """A connection to a daemon, for any number of threads. Raises HostError if there is no daemon.

    `timeout` is how many seconds a method may take before the daemon gives it up, by default 5 for
    most and more for some. A daemon's calls to a slot agent, and events, are handled while any
    thread waits for a datagram.
    """

    def __init__(self, path: Path | str, *, timeout: float | None = None) -> None:
        self._path = Path(path).absolute()
        self._timeout = timeout
        self._calls = secrets.randbits(48)  # what others might make the daemon send fits no call
        self._waiting: dict[int, _Received | None] = {}
        self._long: set[int] = set()  # calls that a daemon may refuse without reading their id
        self._events: deque[Json] = deque(maxlen=MAX_EVENTS)
        self._answer: Answer | None = None
        self._reading = False
        self._stopped = False
        self._condition = threading.Condition()
        self._daemon_pid = 0  # by the credentials of its last datagram
        self._sock = self._connect()
        if self._sock.file is None:
            try:
                self._be_reachable()
            except BaseException:
                self.close()
                raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def fileno(self) -> int:
        """Return the descriptor to poll: call `serve_one` when it is readable."""
        return self._sock.fileno()

    def close(self) -> None:
        """Close the socket and remove its file; no other thread may use it any more."""
        self._sock.close()

    def call(
        self, method: str, params: _Params | None = None, *, timeout: float | None = None
    ) -> Json:
        """Call a method and return its result, which the caller has to validate.

        Raises RpcError if the daemon answers with an error, such as that the method was given up
        after `timeout` seconds, PeerError if its answer is not valid, and HostError if it does not
        answer. Descriptors of the answer are closed.
        """
        value, fds = self._ask(method, params, timeout)
        _close(fds)
        return value

    def call_with_fd(
        self, method: str, params: _Params | None = None, *, timeout: float | None = None
    ) -> tuple[Json, Fd]:
        """Call a method and return its result and a descriptor, which the caller closes.

        Raises as `call`, and PeerError if the answer has no descriptor or more than one.
        """
        value, fds = self._ask(method, params, timeout)
        if len(fds) != 1:
            text = f"{method}: {len(fds)} descriptors came with the answer, not one"
            _close(fds)
            raise PeerError(text)
        return value, fds[0]

    def notify(self, method: str, params: dict[str, Json]) -> None:
        """Call a method as a notification, which is not answered. Raises HostError as `call`."""
        call = encode_call(Call(method, params, notification=True))
        try:
            self._send(call, self._deadline())
        except LateError:
            raise unanswered(self._path, self._sock) from None

    def pages(self, method: str, params: dict[str, Json] | None = None) -> Iterator[Json]:
        """Yield all items of a listing, fetched page by page. Raises as `call`."""
        offset = 0
        while True:
            page = self.call(method, {**(params or {}), "offset": offset})
            match page:
                case {"items": list(items), "total": int(total)}:
                    yield from items
                    offset += len(items)
                    if not items or offset >= total:
                        return
                case _:
                    raise PeerError(f"{method}: the answer is no page of a listing")

    def events(self, kinds: Sequence[str] = ("*",), device: str | None = None) -> Generator[Json]:
        """Subscribe to events and return an iterator over them.

        `kinds` are shell-style patterns; each event is the fields of `control.models.Event`. The
        iterator waits without limit; it raises HostError if the daemon is gone. Close it to end the
        subscription. Raises as `call`.
        """
        params: dict[str, Json] = {"kinds": list(kinds), "device": device}
        self.call("events.subscribe", params)
        return self._events_from(params)

    def serve(self, answer: Answer | None) -> None:
        """Reply to the daemon's calls by `answer`; None replies with METHOD_NOT_FOUND."""
        self._answer = answer

    def serve_one(self, timeout: float | None = None) -> bool:
        """Wait for a datagram and handle it; return False once `stop` was called.

        Raises TimeoutError if none comes, and PeerError for one that is not valid.
        """
        if not self._step(None, None if timeout is None else time.monotonic() + timeout):
            raise TimeoutError
        return not self._stopped

    def serve_until_gone(self) -> None:
        """Serve until `stop`; raises HostError once the daemon is gone or was restarted."""
        pid = self._daemon()
        while not self._stopped:
            try:
                self.serve_one(HEARTBEAT)
            except TimeoutError:
                if self._daemon() != pid:
                    error = ConnectionResetError(errno.ECONNRESET, "")
                    raise failed(self._path, error, "the daemon was restarted") from None

    def stop(self) -> None:
        """Make all waits return, from any thread; afterwards the client can only be closed."""
        self._stopped = True
        self._sock.shutdown(socket.SHUT_RD)

    def _daemon(self) -> tuple[int, Json]:
        """Return what tells the daemon's process from others: its pid here, and its pid there."""
        try:
            info = self.call("daemon.info")
        except RpcError:  # this user has no grant for it, which is an answer all the same
            info = {"pid": None}
        match info:
            case {"pid": pid}:
                return self._daemon_pid, pid
        raise PeerError("daemon.info: the answer has no pid")

    def _connect(self) -> OwnSocket:
        try:
            return OwnSocket(self._path)
        except OSError as error:
            raise failed(self._path, error) from error

    def _be_reachable(self) -> None:
        """Return once the daemon has answered to an abstract name, or a file could be made.

        A service does not see abstract names; if it was started by this client's call, it opens the
        directory for clients now. Raises HostError.
        """
        deadline = self._deadline()
        while not self._answers(min(self._seconds(None), PING / 4)):
            if time.monotonic() > deadline:
                raise unanswered(self._path, self._sock)
            self._sock.close()
            self._sock = self._connect()
            if self._sock.file is not None:
                return

    def _answers(self, patience: float) -> bool:
        """Return whether the daemon answers a call; an error is an answer."""
        try:
            with suppress(RpcError):
                _close(self._call("daemon.info", None, patience, 0.0)[1])
        except LateError:
            return False
        return True

    def _events_from(self, params: dict[str, Json]) -> Generator[Json]:
        try:
            while True:
                while self._events:
                    yield self._events.popleft()
                if not self._step(None, time.monotonic() + HEARTBEAT):
                    # This also renews a subscription that the daemon dropped for not reading.
                    self.call("events.subscribe", params)
                elif self._stopped:
                    return
        finally:
            if self._sock.fileno() != -1:
                with suppress(HostError):  # a daemon that is gone has no subscription
                    self.notify("events.unsubscribe", {})

    def _ask(self, method: str, params: _Params | None, timeout: float | None) -> _Result:
        try:
            return self._call(method, params, timeout)
        except LateError:
            if self._answers(PING):
                raise slow(self._path, method) from None
            raise unanswered(self._path, self._sock) from None

    def _call(
        self, method: str, params: _Params | None, timeout: float | None, grace: float = GRACE
    ) -> _Result:
        seconds = self._seconds(timeout, method)
        deadline = time.monotonic() + seconds + grace
        with self._condition:
            self._calls += 1
            number = self._calls
            self._waiting[number] = None
        received: _Received | None = None
        try:
            data = encode_call(Call(method, params or {}, number, timeout=seconds))
            self._long |= {number} if may_be_refused_unread(data) else set()
            self._send(data, deadline)
            while (received := self._waiting[number]) is None:
                if not self._step(number, deadline):
                    raise LateError
                if self._stopped and self._waiting[number] is None:
                    raise failed(self._path, ConnectionAbortedError(errno.ECONNABORTED, ""))
        finally:
            with self._condition:
                self._long.discard(number)
                late = self._waiting.pop(number)
                if received is None and late is not None:
                    _close(late[1])
        reply, fds = received
        if isinstance(reply, Failure):
            _close(fds)
            raise reply.error
        return reply.value, fds

    def _seconds(self, timeout: float | None, method: str = "") -> float:
        if timeout is None:
            timeout = self._timeout
        return LONGER.get(method, TIMEOUT) if timeout is None else timeout

    def _deadline(self) -> float:
        return time.monotonic() + self._seconds(None)

    def _send(self, data: bytes, deadline: float) -> None:
        while True:
            try:
                self._sock.send(data, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
            except BlockingIOError:
                if not self._ready(select.POLLOUT, deadline):
                    raise LateError from None
            except OSError as error:
                raise failed(self._path, error) from error
            else:
                return

    def _step(self, number: int | None, deadline: float | None) -> bool:
        """Read one datagram, or wait while another thread does; return False on a time-out.

        Returns at once if the answer to call `number` has arrived meanwhile.
        """
        with self._condition:
            if number is not None and self._waiting[number] is not None:
                return True
            if self._reading:
                return self._condition.wait(
                    None if deadline is None else deadline - time.monotonic()
                )
            self._reading = True
        try:
            return self._read(deadline)
        finally:
            with self._condition:
                self._reading = False
                self._condition.notify_all()

    def _read(self, deadline: float | None) -> bool:
        while True:
            try:
                received = ancillary.receive(
                    self._sock,
                    MAX_MESSAGE,
                    max_fds=MAX_FDS,
                    credentials=True,
                    flags=socket.MSG_DONTWAIT,
                )
                self._daemon_pid = received.credentials.pid
                break
            except BlockingIOError:
                if self._stopped:  # a datagram socket that was shut down has no data
                    return True
                if not self._ready(select.POLLIN, deadline):
                    return False
            except OSError as error:
                raise failed(self._path, error) from error
        try:
            if received.truncated or received.fds_lost:
                raise PeerError("the daemon's datagram is too large, or has too many descriptors")
            if received.data:
                self._dispatch(decode(received.data), received.fds)
        finally:
            received.close()  # the descriptors that were not taken
        return True

    def _dispatch(self, incoming: Incoming, fds: list[Fd]) -> None:
        match incoming.calls:
            case (Call(method="event", params=params, notification=True),):
                self._events.append(params)
            case (Call() as call,):
                reply = self._reply(call, incoming, fds)
                if reply:
                    with suppress(LateError):  # then the daemon undoes what it has asked for
                        self._send(reply, self._deadline())
            case _:
                self._take(incoming.expect_reply(), fds)

    def _reply(self, call: Call, incoming: Incoming, fds: list[Fd]) -> bytes:
        if self._answer is not None:
            return self._answer(incoming, fds)
        error = RpcError(ErrorCode.METHOD_NOT_FOUND, f"a client has no method {call.method}")
        return b"" if call.notification else encode([Failure(call.id, error)])

    def _take(self, reply: Result | Failure, fds: list[Fd]) -> None:
        with self._condition:
            number = reply.id
            if number is None and len(self._long) == 1:  # of a call that was too long to be read
                [number] = self._long
            # An answer to any other number is of a call that timed out.
            if isinstance(number, int) and self._waiting.get(number, reply) is None:
                self._waiting[number] = reply, fds[:]
                fds.clear()

    def _ready(self, event: int, deadline: float | None) -> bool:
        poller = select.poll()
        poller.register(self._sock, event)
        left = None if deadline is None else max(1000 * (deadline - time.monotonic()), 0)
        return bool(poller.poll(left))


def _close(fds: list[Fd]) -> None:
    while fds:
        fds.pop().close()
