"""A failed start under socket activation: what waits at the sockets is refused, with the reason.

A datagram that nothing reads, or a connection that nothing accepts, makes the service manager start
the daemon again at once, until it gives up. Source: systemd.socket(5), sd_listen_fds(3).
"""

from __future__ import annotations

import logging
import os
import select
import socket
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from typing import Final

from vgpud.control.call import Caller, refused
from vgpud.control.caller_sockets import unanswerable
from vgpud.control.dispatch import as_rpc_error
from vgpud.control.models import ErrorKind
from vgpud.control.rpc import MAX_OBJECTS, RpcError, decode, refusal
from vgpud.control.sockets import MAX_MESSAGE, ControlSocket
from vgpud.daemon.log_limit import UNLIMITED
from vgpud.errors import VgpudError
from vgpud.unix.activation import Activated
from vgpud.unix.credentials import peer_credentials
from vgpud.unix.socket_file import CLIENTS, open_socket

log = logging.getLogger(__name__)

QUIET: Final = 1.0
"""Seconds without a call or a connection after which a daemon that can't start ends. Until then the
next one has the start tried again, so that a client in a loop does not cost a process each time."""

_MAX_REFUSED: Final = 4096
"""Datagrams or connections of one socket that are refused before the next try, since clients may
send without a pause: the longest queue that the kernel has by default, net.core.somaxconn."""
_MAX_TEXT: Final = 8000
"""Characters of the reason, which has to fit into a datagram as JSON, with six bytes for each."""


def run(activated: Activated, start: Callable[[], None], has_listened: Callable[[], bool]) -> None:
    """Call `start`, which serves until the daemon is stopped, and raise what it raises.

    Before that, what waits at the activated sockets is refused. If `start` has failed with a
    VgpudError before the daemon listened, it is called again for each call or connection that comes
    within QUIET seconds.
    """
    logged: list[str] = []
    while True:
        try:
            start()
        except BaseException as error:
            # Also for a bug: what is left waiting would have the daemon started again at once.
            faults = list(_faults(error))
            _refuse(activated, faults)
            if not faults or has_listened() or not _another(activated):
                raise
            words = [line for fault in faults for line in str(fault).splitlines()]
            if words != logged:
                logged = words
                for line in words:
                    log.error("start failed, tried again: %s", line, extra=UNLIMITED)
        else:
            return


def _faults(error: BaseException) -> Iterator[VgpudError]:
    """Yield the errors that have words for the operator; none if there is a bug among them."""
    if isinstance(error, VgpudError):
        yield error
    elif isinstance(error, BaseExceptionGroup):
        matching, rest = error.split(VgpudError)
        if matching is not None and rest is None:
            for each in matching.exceptions:
                yield from _faults(each)


def _another(activated: Activated) -> bool:
    """Wait for another call or connection; return False if none comes in time."""
    poll = select.poll()
    for sock in activated.sockets:
        poll.register(sock, select.POLLIN)
    return bool(activated.sockets and poll.poll(QUIET * 1000))


def _refuse(activated: Activated, faults: list[VgpudError]) -> None:
    for sock in activated.sockets:
        try:
            if sock.type == socket.SOCK_DGRAM:
                with ControlSocket.of(sock.dup()) as control:
                    for _ in range(_MAX_REFUSED):
                        _refuse_call(control, faults)
            else:
                for _ in range(_MAX_REFUSED):
                    _refuse_connection(sock)
        except BlockingIOError:
            continue
        except OSError as error:
            log.warning("not refused socket=%s: %s", sock.getsockname(), error.strerror)


def _refuse_call(control: ControlSocket, faults: list[VgpudError]) -> None:
    """Answer a datagram with the reason; raises BlockingIOError if there is none."""
    message, sender = control.recvfrom(MAX_MESSAGE)
    caller, incoming = _answerable(control, sender.caller), decode(message, MAX_OBJECTS)
    if caller.address and not incoming.answer:
        data = refusal(incoming, _reason(faults, caller))
        with suppress(OSError):  # The client is gone, or does not read.
            control.send_to(caller, data)


def _answerable(control: ControlSocket, caller: Caller) -> Caller:
    """Return the caller with the file of its socket, or without an address.

    Others than root and the daemon's user must not make a look-up wait, as in a filesystem that
    waits for its server: their sockets are next to the control socket, or in `clients`.
    """
    path, own = caller.address, control.getsockname()
    if not isinstance(path, str) or not path:
        return caller
    where, name = os.path.split(path)
    near = os.path.split(own)[0] if isinstance(own, str) else ""
    if near and os.path.split(where)[1] == CLIENTS:
        where = f"{near}/{CLIENTS}"
        path = f"{where}/{name}"
    if not path.startswith("/") or (
        where not in {near, f"{near}/{CLIENTS}"} and caller.uid not in {0, os.geteuid()}
    ):
        return unanswerable(caller)
    file = open_socket(path, caller.uid)
    return unanswerable(caller) if file is None else replace(caller, file=file)


def _reason(faults: list[VgpudError], caller: Caller) -> RpcError:
    """Return the answer to a caller, whom the configuration could not be asked about."""
    if not faults or caller.uid not in {0, os.geteuid()}:
        text = "the daemon could not start; its log has the reason"
        return refused(ErrorKind.HOST, text)
    first = as_rpc_error(faults[0])
    text = "\n".join(map(str, faults))[:_MAX_TEXT]
    message = f"the daemon could not start, and will be started by the next call: {text}"
    return RpcError(first.code, message, first.data)


def _refuse_connection(listener: socket.socket) -> None:
    """Close a connection; raises BlockingIOError if there is none."""
    connection, _ = listener.accept()
    log.warning("front-end refused pid=%d: the start has failed", peer_credentials(connection).pid)
    connection.close()
