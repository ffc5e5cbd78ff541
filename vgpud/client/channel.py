"""Ways to a daemon: what a slot agent needs of one, and a connected socket as one.

The other one is the control socket, as a `client.Client` has it. Source: unix(7).
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import Final, Protocol, TypeAlias

from vgpud.control.rpc import ErrorCode, Failure, Incoming, RpcError, decode, encode
from vgpud.publish import Json
from vgpud.unix import ancillary
from vgpud.unix.fd import Fd

MAX_FDS: Final = 4
"""Descriptors that are received with a datagram: one is right, others are to be seen and closed."""
_MAX_CALL: Final = 64 << 10

Answer: TypeAlias = Callable[[Incoming, list[Fd]], bytes]
"""Returns the reply to calls; no bytes if there is none. Descriptors that it leaves in the list are
closed."""


class Channel(Protocol):
    """A way to a daemon, such as a `client.Client`."""

    def call(self, method: str, params: dict[str, Json], *, timeout: float | None = None) -> Json:
        """Return the result of a daemon's method; calls of the daemon's are answered meanwhile."""

    def notify(self, method: str, params: dict[str, Json]) -> None:
        """Call a daemon's method that is not answered."""

    def serve(self, answer: Answer | None) -> None:
        """Have `answer` reply to the daemon's calls."""

    def serve_one(self) -> bool:
        """Wait for a datagram and handle it; return False when there will be no more."""

    def serve_until_gone(self) -> None:
        """Serve datagrams until `stop`; raises HostError or PeerError if the daemon is gone."""

    def stop(self) -> None:
        """End all waiting, from any thread."""

    def close(self) -> None:
        """Close it."""


class ConnectedChannel:
    """A connected socket (SOCK_DGRAM or SOCK_SEQPACKET) to a daemon that knows what it may ask
    for."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._answer: Answer = lambda incoming, fds: b""

    def call(self, method: str, params: dict[str, Json], *, timeout: float | None = None) -> Json:
        raise ValueError("an agent with a socket of its own is attached from the start")

    def notify(self, method: str, params: dict[str, Json]) -> None:
        self.call(method, params)

    def serve(self, answer: Answer | None) -> None:
        if answer is not None:
            self._answer = answer

    def serve_until_gone(self) -> None:
        while self.serve_one():
            pass

    def serve_one(self) -> bool:
        # Never raises for what a daemon sends, or for one that is gone.
        try:
            received = ancillary.receive(self._sock, _MAX_CALL, max_fds=MAX_FDS)
        except ConnectionResetError:
            return True  # a datagram socket: the other end may be connected again
        try:
            if not received.data:
                return False
            if received.truncated or received.fds_lost:
                cut = RpcError(ErrorCode.INVALID_REQUEST, "the datagram was cut off")
                answer = encode([Failure(None, cut)])
            else:
                answer = self._answer(decode(received.data), received.fds)
        finally:
            received.close()
        if answer:
            try:
                self._sock.send(answer, socket.MSG_NOSIGNAL)
            except OSError:
                # It is gone, or does not read: then it has no answer, and undoes what it asked for.
                return True
        return True

    def stop(self) -> None:
        self._sock.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self._sock.close()
