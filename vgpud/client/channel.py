"""The channel between a slot agent and a daemon: its interface, and one over a connected socket.

The other channel is the control socket, by `client.Client`. Source: unix(7).
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
"""Descriptors received with a datagram: one is right; more are an error, and closed."""
_MAX_CALL: Final = 64 << 10

Answer: TypeAlias = Callable[[Incoming, list[Fd]], bytes]
"""A function that returns the reply to calls, or no bytes for no reply.

Descriptors that it leaves in the list are closed."""


class Channel(Protocol):
    """A channel to a daemon, such as a `client.Client`."""

    def call(self, method: str, params: dict[str, Json], *, timeout: float | None = None) -> Json:
        """Call a daemon's method and return the result; answer the daemon's calls meanwhile."""

    def notify(self, method: str, params: dict[str, Json]) -> None:
        """Call a method of the daemon as a notification, which is not answered."""

    def serve(self, answer: Answer | None) -> None:
        """Reply to the daemon's calls by `answer`."""

    def serve_one(self) -> bool:
        """Wait for a datagram and handle it; return False when there will be no more."""

    def serve_until_gone(self) -> None:
        """Serve datagrams until `stop`; raises HostError or PeerError if the daemon is gone."""

    def stop(self) -> None:
        """End all waiting, from any thread."""

    def close(self) -> None:
        """Close the channel."""


class ConnectedChannel:
    """A connected SOCK_DGRAM or SOCK_SEQPACKET to a daemon that knows what the agent offers."""

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
        # Never raises for what a daemon sends, nor if the daemon is gone.
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
                # The daemon is gone, or does not read: without an answer it undoes its request.
                return True
        return True

    def stop(self) -> None:
        self._sock.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self._sock.close()
