"""Attacks by callers of the control socket, with a grant and without one."""

from __future__ import annotations

import os
import socket
import struct
import threading
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Final

from tests.attacks.stand import Attack, Stand, until
from tests.hostile.siege import MADE
from vgpud.client import Client
from vgpud.gpu.wire import commands as c
from vgpud.gpu.wire.header import Rect

NOBODY: Final = 65534
CALL: Final = b'{"jsonrpc":"2.0","method":"daemon.info","id":1}'
SUBSCRIBE: Final = b'{"jsonrpc":"2.0","method":"events.subscribe","params":{"kinds":["*"]},"id":1}'


def _path(stand: Stand) -> Path:
    return stand.siege.socket("a").with_name("control.sock")


def _at_once(number: int, do: Callable[[], None]) -> None:
    threads = [threading.Thread(target=do) for _ in range(number)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def screenshots(stand: Stand, seconds: float) -> None:
    """Take screenshots of a large scanout, several at a time."""
    with stand.guest() as ring:
        assert ring.run(c.ResourceCreate2D, 1, 2, 8192, 8192) == MADE
        ring.run(c.SetScanout, Rect(0, 0, 8192, 8192), 0, 1)
        control = _path(stand)

        def take() -> None:
            for _ in until(seconds):
                with suppress(Exception), Client(control) as client:
                    _, fd = client.call_with_fd("device.screenshot", {"device": "a", "scanout": 0})
                    if fd is not None:
                        fd.close()

        _at_once(3, take)


def calls(stand: Stand, seconds: float) -> None:
    """Call the control API without a pause."""
    control = _path(stand)
    with Client(control) as client:
        for _ in until(seconds):
            client.call("device.list")


def calls_that_are_refused(stand: Stand, seconds: float) -> None:
    """Call as a user without any grant, and look at how much is logged."""
    logged = len(stand.siege.daemon.log)
    child = os.fork()
    if child == 0:
        os.setgid(NOBODY)
        os.setuid(NOBODY)
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock, suppress(OSError):
            sock.bind(b"\0vgpud-attack-%d" % os.getpid())
            sock.settimeout(5)
            for _ in until(seconds):
                sock.sendto(CALL, str(_path(stand)))
        os._exit(0)
    os.waitpid(child, 0)
    lines = stand.siege.daemon.log[logged:].count("\n")
    assert lines < 50 + 20 * seconds, f"{lines} lines"


def deaf_clients(stand: Stand, seconds: float) -> None:
    """Subscribe to all events, and call, from clients that never read; then cause events."""
    with ExitStack() as clients:
        deaf = []
        for number in range(20):
            sock = clients.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM))
            sock.bind(b"\0vgpud-deaf-%d-%d" % (os.getpid(), number))
            sock.connect(str(_path(stand)))
            sock.settimeout(1)
            sock.send(SUBSCRIBE)
            deaf.append(sock)
        for _ in until(seconds):
            with suppress(TimeoutError):
                for sock in deaf:
                    sock.send(CALL)
            with stand.front_end():
                pass


def descriptors_that_linger(stand: Stand, seconds: float) -> None:
    """Send TCP sockets whose last close waits, with a call."""
    linger = struct.pack("ii", 1, 5)
    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock,
    ):
        sock.connect(str(_path(stand)))
        sock.settimeout(1)
        for _ in until(seconds):
            client = socket.create_connection(server.getsockname())
            deaf, _ = server.accept()
            client.setblocking(False)
            with deaf:
                with suppress(BlockingIOError):
                    while True:
                        client.send(bytes(1 << 16))
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
                with suppress(OSError):
                    socket.send_fds(sock, [CALL], [client.fileno()])
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 0, 0))
                client.close()


def large_messages(stand: Stand, seconds: float) -> None:
    """Send messages of 64 KiB that are hard to decode: deep, of many small values, or not JSON."""
    messages = (
        b"[" * 60_000,
        b"[" + b"1," * 30_000 + b"1]",
        b'{"a":' * 10_000,
        b"[" + b"{}," * 20_000 + b"{}]",
        b"\xff" * 60_000,
    )
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(b"\0vgpud-large-%d" % os.getpid())
        sock.connect(str(_path(stand)))
        sock.settimeout(1)
        for number in until(seconds):
            with suppress(TimeoutError):
                sock.send(messages[number % len(messages)])
            sock.setblocking(False)
            with suppress(BlockingIOError):
                sock.recv(1 << 20)
            sock.settimeout(1)


CONTROL_ATTACKS: Final = (
    Attack("size", "screenshots of 8192 x 8192", screenshots),
    Attack("control", "calls without a pause", calls),
    Attack("control", "calls that are refused", calls_that_are_refused),
    Attack("control", "clients that never read", deaf_clients),
    Attack("control", "descriptors that linger", descriptors_that_linger),
    Attack("control", "large messages", large_messages),
)
