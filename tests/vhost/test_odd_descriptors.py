"""Descriptors of every kind in every message that takes one: none stays open, and none waits for
the garbage collector to be closed."""

from __future__ import annotations

import asyncio
import errno
import gc
import os
import select
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest

from tests.support.daemon_thread import DaemonThread
from tests.support.front_end import FrontEnd
from tests.support.until import until, until_async
from tests.vhost.toy_rng import ToyRng
from vgpud.daemon.config import Config
from vgpud.errors import HostError
from vgpud.memory import memfd
from vgpud.memory.addresses import Gpa, Uva
from vgpud.unix.stream_socket import StreamSocket
from vgpud.vhost.back_end_channel import BackEndChannel
from vgpud.vhost.memory_table import MemoryTable
from vgpud.vhost.session import Session
from vgpud.vhost.wire import messages as m
from vgpud.vhost.wire.protocol import ProtocolFeature
from vgpud.vhost.wire.requests import REQUESTS, Request, encode_request

GONE = 60
"""The number of a descriptor that no kind has."""


def _pipe(kept: int) -> int:
    ends = os.pipe()
    os.close(ends[1 - kept])
    return ends[kept]


def _socket(kind: int = socket.SOCK_STREAM, *, open_peer: bool = False) -> int:
    ours, theirs = socket.socketpair(type=kind)
    if open_peer:
        _peers.append(theirs)
    else:
        theirs.close()
    return ours.detach()


def _listener() -> int:
    listener = socket.socket(socket.AF_UNIX)
    listener.bind("")
    listener.listen()
    return listener.detach()


def _epoll() -> int:
    with select.epoll() as poll:
        return os.dup(poll.fileno())


def _eventfd_path() -> int:
    event = os.eventfd(0)
    try:
        return os.open(f"/proc/self/fd/{event}", os.O_PATH)
    finally:
        os.close(event)


_peers: list[socket.socket] = []

KINDS: dict[str, Callable[[], int]] = {
    "path": lambda: os.open("/tmp", os.O_PATH),
    "path of an eventfd": _eventfd_path,
    "file": lambda: os.open(__file__, os.O_RDONLY),
    "unnamed file": lambda: os.open("/tmp", os.O_TMPFILE | os.O_RDWR),
    "directory": lambda: os.open("/", os.O_RDONLY),
    "device": lambda: os.open("/dev/full", os.O_RDWR),
    "pipe to read": lambda: _pipe(0),
    "pipe to write": lambda: _pipe(1),
    "epoll": _epoll,
    "eventfd": lambda: os.eventfd(0),
    "pidfd": lambda: os.pidfd_open(os.getpid()),
    "memory file, empty": lambda: os.memfd_create("empty"),
    "memory file, to read": lambda: os.open("/dev/shm", os.O_TMPFILE | os.O_RDWR),
    "socket": lambda: _socket(open_peer=True),
    "socket, hung up": _socket,
    "datagram socket": lambda: _socket(socket.SOCK_DGRAM, open_peer=True),
    "packet socket": lambda: _socket(socket.SOCK_SEQPACKET),
    "listening socket": _listener,
    "unconnected socket": lambda: socket.socket(socket.AF_UNIX).detach(),
    "internet socket": lambda: socket.socket(socket.AF_INET).detach(),
}

REGION = m.MemRegion(Gpa(0), 1 << 20, Uva(0), 0)
MESSAGES: dict[type[Request], list[tuple[Request, int]]] = {
    m.SetMemTable: [
        (m.SetMemTable((REGION,)), 1),
        (m.SetMemTable((REGION, m.MemRegion(Gpa(1 << 20), 1 << 20, Uva(1 << 20), 0))), 2),
    ],
    m.SetLogBase: [(m.SetLogBase(4096, 0), 1)],
    m.SetLogFd: [(m.SetLogFd(), 1)],
    m.SetVringKick: [(m.SetVringKick(0, True), 1), (m.SetVringKick(7, True), 1)],
    m.SetVringCall: [(m.SetVringCall(0, True), 1), (m.SetVringCall(7, True), 1)],
    m.SetVringErr: [(m.SetVringErr(1, True), 1), (m.SetVringErr(7, True), 1)],
    m.SetBackendReqFd: [(m.SetBackendReqFd(), 1)],
    m.GpuSetSocket: [(m.GpuSetSocket(), 1)],
    # Messages that take none, or fewer.
    m.SetOwner: [(m.SetOwner(), 1), (m.SetVringKick(0, True), 2), (m.SetMemTable((REGION,)), 9)],
}
assert {kind for kind in REQUESTS.values() if kind.max_fds} <= set(MESSAGES)


@pytest.fixture
def path(short_directory: Path) -> Iterator[Path]:
    config = f'[daemon]\nruntime_dir = "{short_directory}"\n[[device]]\nname = "gpu0"\n'
    with DaemonThread(Config.from_toml(config)):
        yield short_directory / "gpu0.sock"


def open_files() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


def at_most(count: int) -> Callable[[], bool]:
    return lambda: open_files() <= count


def attack(path: Path, message: Request, count: int, odd: int, *, started: bool) -> None:
    """Send a descriptor, so many times over, before or while the device runs."""
    with ExitStack() as stack, suppress(OSError, AssertionError):
        fe = stack.enter_context(FrontEnd.connect(path).handshake(start=started))
        if not started:
            fe.set_mem_table()
        fe.send(message, [odd] * count)
        fe.send(m.GetFeatures())
        if started:
            fe.drivers[0].submit(bytes(24), 24)
        fe.sock.shutdown(socket.SHUT_WR)
        while fe.sock.recv(4096):
            pass


@pytest.mark.parametrize("started", [False, True])
@pytest.mark.parametrize("kind", MESSAGES, ids=lambda kind: kind.__name__)
def test_none_stays_open(path: Path, kind: type[Request], started: bool) -> None:
    attack(path, m.SetOwner(), 0, GONE, started=started)  # what is made once
    gc.collect()
    gc.disable()
    try:
        before = open_files()
        for name, make in KINDS.items():
            for message, count in MESSAGES[kind]:
                odd = make()
                attack(path, message, count, odd, started=started)
                os.close(odd)
                while _peers:
                    _peers.pop().close()
                until(lambda: open_files() <= before, 5, f"{name} in {message} stays open")
    finally:
        gc.enable()


class Refusing(ToyRng):
    """A device that fails when it gets a channel."""

    def set_back_end_channel(self, channel: BackEndChannel) -> None:
        raise HostError("a channel", OSError(errno.EIO, ""))

    def set_memory(self, memory: MemoryTable) -> None:
        raise HostError("memory", OSError(errno.EIO, ""))


@pytest.mark.parametrize("message", [m.SetBackendReqFd(), m.SetMemTable((REGION,))])
def test_a_device_that_fails_leaves_nothing_open(message: Request) -> None:
    """The session goes on after an error of the host's, without what it could not use."""

    async def serve(ours: socket.socket, theirs: socket.socket) -> None:
        serving = asyncio.create_task(Session(StreamSocket(ours), Refusing()).run())
        theirs.setblocking(False)
        loop = asyncio.get_running_loop()

        async def ask(message: Request, fds: list[int]) -> None:
            socket.send_fds(theirs, [encode_request(message), encode_request(m.GetFeatures())], fds)
            assert await loop.sock_recv(theirs, 4096)

        await ask(m.SetProtocolFeatures(ProtocolFeature.BACKEND_REQ), [])
        for _ in range(2):  # the memory of the first table stays; a second one takes its place
            with memfd.create("odd", REGION.memory_size) as file:
                peer, channel = socket.socketpair()
                with peer, channel:
                    before = open_files()
                    kept = isinstance(message, m.SetMemTable)
                    await ask(message, [file.fileno() if kept else channel.fileno()])
                    await until_async(at_most(before + kept), 5)
        theirs.close()
        await serving

    gc.collect()
    gc.disable()
    before = open_files()
    try:
        ours, theirs = socket.socketpair()
        asyncio.run(serve(ours, theirs))
        until(lambda: open_files() <= before, 5)
    finally:
        gc.enable()
