"""Sockets that others have, too, and make blocking: nothing that the event loop does waits."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Callable, Coroutine
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from tests.support.clears_nonblock import made_blocking
from vgpud.control.agent_link import SocketLink
from vgpud.control.call import Caller
from vgpud.control.sockets import ControlSocket
from vgpud.unix.activation import Activated
from vgpud.unix.closer import Closer
from vgpud.unix.fd import Fd
from vgpud.unix.listener import Listener
from vgpud.unix.received_fd import ReceivedFd
from vgpud.unix.socket_file import open_socket
from vgpud.unix.socket_place import SocketPlace
from vgpud.unix.stream_socket import StreamSocket

pytestmark = pytest.mark.timeout(30)

ROUNDS = 300
"""Enough for a flag that is cleared between a check and a call."""


def run(test: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(asyncio.wait_for(test(), 20))


async def fill(send: Callable[[], None]) -> None:
    """Send until there is no room."""
    with suppress(BlockingIOError):
        while True:
            send()
            await asyncio.sleep(0)


def test_a_stream_socket() -> None:
    """A connection (`--fd`), a back-end channel, a display socket."""

    async def test() -> None:
        ours, theirs = socket.socketpair()
        number = ours.detach()
        sock = StreamSocket.of(ReceivedFd(number, Closer()))
        async with made_blocking(number):
            for _ in range(ROUNDS):
                receiving = asyncio.create_task(sock.recv(100))
                sending = asyncio.create_task(sock.send(bytes(10_000)))
                await asyncio.sleep(0)
                theirs.send(b"x")
                assert await receiving == (b"x", [])
                while not sending.done():
                    await asyncio.sleep(0)
                    theirs.recv(1 << 20)
                await sending
                theirs.setblocking(False)
                while True:
                    try:
                        theirs.recv(1 << 20)
                    except BlockingIOError:
                        break
                theirs.setblocking(True)
            full = asyncio.create_task(sock.send(bytes(1 << 24)))
            await asyncio.sleep(0.05)
            assert not full.done()
            full.cancel()
        sock.close()
        theirs.close()
        await sock.closed()

    run(test)


@pytest.mark.parametrize("kind", [socket.SOCK_DGRAM, socket.SOCK_SEQPACKET])
def test_the_socket_of_an_agent(kind: socket.SocketKind) -> None:
    async def test() -> None:
        ours, theirs = socket.socketpair(type=kind)
        link = SocketLink(ours)
        answer = b'{"jsonrpc":"2.0","id":1,"result":{}}'
        async with made_blocking(ours.fileno()):
            for _ in range(ROUNDS):
                receiving = asyncio.create_task(link.recv())
                await asyncio.sleep(0)
                theirs.send(answer)
                assert await receiving is not None
            await fill(lambda: link.send(bytes(10_000), None))
            waiting = asyncio.create_task(link.writable())
            await asyncio.sleep(0.01)
            link.close()
            await waiting
        theirs.close()

    run(test)


def test_an_activated_control_socket(short_directory: Path) -> None:
    async def test() -> None:
        made = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        made.bind(str(short_directory / "control"))
        control = ControlSocket.of(made)
        address = str(short_directory / "client")
        with control, socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as client:
            client.bind(address)
            client.connect(str(short_directory / "control"))
            file = open_socket(address, os.geteuid())
            me = Caller(address, os.getpid(), os.geteuid(), os.getegid(), file=file)
            async with made_blocking(control.fileno()):
                for _ in range(ROUNDS):
                    with pytest.raises(BlockingIOError):
                        control.recvfrom(100)
                    await asyncio.sleep(0)
                await fill(lambda: control.send_to(me, bytes(10_000)))

    run(test)


def test_an_activated_listening_socket(short_directory: Path) -> None:
    async def test() -> None:
        path = short_directory / "gpu0.sock"
        made = socket.socket(socket.AF_UNIX)
        made.bind(str(path))
        made.listen()
        activated = Activated([("gpu0", Fd(made.detach()))])
        listener = Listener.open(SocketPlace(path), "gpu0", activated)
        loop = asyncio.get_running_loop()
        async with made_blocking(listener.sock.fileno()):
            for _ in range(ROUNDS // 10):
                accepting = asyncio.create_task(loop.sock_accept(listener.sock))
                await asyncio.sleep(0.005)
                assert not accepting.done()
                with socket.socket(socket.AF_UNIX) as client:
                    client.connect(str(path))
                    (await accepting)[0].close()
        assert os.get_blocking(listener.sock.fileno())
        listener.close()
        activated.close()

    run(test)
