"""Sockets that carry descriptors: who owns them, what is lost, and what a cancellation leaves."""

from __future__ import annotations

import asyncio
import fcntl
import os
import resource
import socket
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path

import pytest

from vgpud.errors import PeerError, PeerGone
from vgpud.unix.ancillary import MAX_FDS
from vgpud.unix.closer import Closer
from vgpud.unix.fd import Fd
from vgpud.unix.received_fd import ReceivedFd
from vgpud.unix.stream_socket import StreamSocket

PATIENCE = 5.0
LARGE = 4 << 20  # more than any socket buffer holds

Test = Callable[[StreamSocket, socket.socket], Awaitable[None]]


def run(test: Test) -> None:
    """Runs a test on a connected pair, ours and the peer's plain one, which does not block; once
    more as if the peer had passed ours.
    """

    async def whole(passed: bool) -> None:
        ours, theirs = socket.socketpair()
        theirs.setblocking(False)
        with theirs:
            sock = StreamSocket(ours, passed=passed)
            try:
                async with asyncio.timeout(PATIENCE):
                    await test(sock, theirs)
            finally:
                sock.close()
                await sock.closed()

    for passed in (False, True):
        asyncio.run(whole(passed))


def open_fds() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


async def receive_all(peer: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        more = await asyncio.get_running_loop().sock_recv(peer, size - len(data))
        assert more
        data += more
    return data


def test_bytes_as_they_come_and_the_end() -> None:
    async def test(sock: StreamSocket, peer: socket.socket) -> None:
        peer.send(b"abcdef")
        assert await sock.recv(4) == (b"abcd", [])
        assert await sock.recv(4) == (b"ef", [])
        waiting = asyncio.create_task(sock.recv(4))
        await asyncio.sleep(0.01)
        assert not waiting.done()
        peer.send(b"g")
        assert await waiting == (b"g", [])
        peer.close()
        assert await sock.recv(4) == (b"", [])
        assert await sock.recv(4) == (b"", [])

    run(test)


def test_what_comes_behind_follows_without_a_gap() -> None:
    async def test(sock: StreamSocket, peer: socket.socket) -> None:
        large = os.urandom(LARGE)
        for first, behind in ((b"head", b"tail"), (b"", b"tail"), (b"head", large), (large, large)):
            read, write = os.pipe()
            with Fd(read) as end, Fd(write):
                sending = asyncio.create_task(sock.send(first, [end], behind=behind))
                while True:
                    with suppress(BlockingIOError):
                        data, fds, _, _ = socket.recv_fds(peer, 1, 2)
                        break
                    await asyncio.sleep(0)
                assert len(fds) == 1
                Fd(fds[0]).close()
                data += await receive_all(peer, len(first) + len(behind) - 1)
                await sending
            assert data == first + behind

    run(test)


def test_room_for_what_the_peer_has_yet_to_receive() -> None:
    most = int(Path("/proc/sys/net/core/wmem_max").read_text())

    async def test(sock: StreamSocket, peer: socket.socket) -> None:
        sock.buffer(LARGE)
        with socket.socket(fileno=os.dup(sock._sock.fileno())) as same:
            room = same.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF)
        # Twice of what one says, says socket(7). Without CAP_NET_ADMIN there is a limit.
        assert room in (2 * LARGE, 2 * min(LARGE, most))

    run(test)


def test_descriptors_come_with_their_message_and_close_on_exec() -> None:
    async def test(sock: StreamSocket, peer: socket.socket) -> None:
        read, write = os.pipe()
        socket.send_fds(peer, [b"one"], [read, write])
        socket.send_fds(peer, [b"two"], [read])
        data, fds = await sock.recv(3)
        assert data == b"one"
        with fds[0], fds[1]:
            assert all(fcntl.fcntl(fd, fcntl.F_GETFD) & fcntl.FD_CLOEXEC for fd in fds)
            os.write(fds[1].fileno(), b"through")
            assert os.read(read, 10) == b"through"
        data, fds = await sock.recv(3)
        assert data == b"two"
        with fds[0]:
            assert os.fstat(fds[0].fileno()).st_ino == os.fstat(read).st_ino
        os.close(read)
        os.close(write)

    run(test)


def test_as_many_as_there_is_room_for() -> None:
    async def test(sock: StreamSocket, peer: socket.socket) -> None:
        socket.send_fds(peer, [b"x"], [0] * MAX_FDS)
        data, fds = await sock.recv(10)
        assert data == b"x"
        assert len(fds) == MAX_FDS
        for fd in fds:
            fd.close()

    run(test)


def test_more_than_this_process_may_have_is_an_error_and_none_is_leaked() -> None:
    async def test(sock: StreamSocket, peer: socket.socket) -> None:
        before = open_fds()
        limits = resource.getrlimit(resource.RLIMIT_NOFILE)
        free = os.dup(0)
        os.close(free)
        resource.setrlimit(resource.RLIMIT_NOFILE, (free + 5, limits[1]))
        try:
            socket.send_fds(peer, [b"x"], [0] * MAX_FDS)
            with pytest.raises(PeerError, match="cut off"):
                await sock.recv(10)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        await sock.closed()
        assert open_fds() == before

    run(test)


def test_sent_descriptors_arrive_once_with_the_first_byte() -> None:
    async def test(sock: StreamSocket, peer: socket.socket) -> None:
        read, write = map(Fd, os.pipe())
        message = os.urandom(LARGE)
        sending = asyncio.create_task(sock.send(message, [read, write]))
        await asyncio.sleep(0.01)
        assert not sending.done()  # the peer has to make room
        data, fds, _, _ = socket.recv_fds(peer, 1, 8)
        assert data == message[:1]
        assert len(fds) == 2
        for fd in (*map(Fd, fds), read, write):
            fd.close()
        before = open_fds()
        while len(data) < LARGE:
            await asyncio.sleep(0)
            try:
                more, fds, _, _ = socket.recv_fds(peer, 1 << 20, 8)
            except BlockingIOError:
                continue
            assert fds == []
            data += more
        await sending
        assert data == message
        assert open_fds() == before

    run(test)


def test_writers_take_turns() -> None:
    async def test(sock: StreamSocket, peer: socket.socket) -> None:
        messages = [bytes([number]) * (LARGE // 4) for number in range(4)]
        sending = [asyncio.create_task(sock.send(message)) for message in messages]
        assert await receive_all(peer, LARGE) == b"".join(messages)
        await asyncio.gather(*sending)

    run(test)


def test_reading_and_writing_at_the_same_time() -> None:
    async def test(sock: StreamSocket, peer: socket.socket) -> None:
        reading = asyncio.create_task(sock.recv(10))
        sending = asyncio.create_task(sock.send(memoryview(bytes(LARGE))))
        await asyncio.sleep(0.01)
        peer.send(b"answer")
        assert await reading == (b"answer", [])
        assert not sending.done()
        await receive_all(peer, LARGE)
        await sending

    run(test)


def test_nothing_to_send_is_sent_at_once() -> None:
    async def test(sock: StreamSocket, peer: socket.socket) -> None:
        await sock.send(b"")
        with pytest.raises(BlockingIOError):
            peer.recv(1)

    run(test)


def test_a_peer_that_is_gone() -> None:
    async def test(sock: StreamSocket, peer: socket.socket) -> None:
        sending = asyncio.create_task(sock.send(bytes(LARGE)))
        await asyncio.sleep(0.01)
        peer.close()
        with pytest.raises(PeerError, match="sending: "):
            await sending
        with pytest.raises(PeerGone, match="sending: Broken pipe"):
            await sock.send(b"x")

    run(test)


def test_a_peer_that_leaves_without_reading() -> None:
    async def test(sock: StreamSocket, peer: socket.socket) -> None:
        await sock.send(b"unread")
        peer.close()
        assert await sock.recv(1) == (b"", []), "the end, as if it had read"

    run(test)


@pytest.mark.parametrize("operation", ["recv", "send"])
def test_what_is_cancelled_can_be_done_again(operation: str) -> None:
    async def test(sock: StreamSocket, peer: socket.socket) -> None:
        waiting: asyncio.Task[object]
        if operation == "recv":
            waiting = asyncio.create_task(sock.recv(4))
        else:
            waiting = asyncio.create_task(sock.send(bytes(LARGE)))
        await asyncio.sleep(0.01)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        if operation == "recv":
            peer.send(b"late")
            assert await sock.recv(4) == (b"late", [])
        else:
            sent = len(peer.recv(LARGE))
            assert 0 < sent < LARGE
            await sock.send(b"late")  # neither lock nor watcher was left behind

    run(test)


def test_bytes_that_come_as_the_reader_is_cancelled_are_not_lost() -> None:
    async def test(sock: StreamSocket, peer: socket.socket) -> None:
        waiting = asyncio.create_task(sock.recv(4))
        await asyncio.sleep(0.01)
        peer.send(b"abcd")
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        assert await sock.recv(4) == (b"abcd", [])

    run(test)


def test_close_twice_and_with_a_cancelled_task_that_has_not_run_yet() -> None:
    """A socket is replaced while its reader is told to end: the reader ends by cancellation."""

    async def test(sock: StreamSocket, peer: socket.socket) -> None:
        waiting = asyncio.create_task(sock.recv(4))
        await asyncio.sleep(0.01)
        waiting.cancel()
        sock.close()
        sock.close()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        await sock.closed()
        assert peer.recv(1) == b""

    run(test)


def test_a_descriptor_that_is_a_unix_stream_socket() -> None:
    async def test(_: StreamSocket, peer: socket.socket) -> None:
        ours, theirs = socket.socketpair()
        fd = ReceivedFd(ours.detach(), Closer())
        sock = StreamSocket.of(fd)
        assert fd.closed
        with theirs:
            await sock.send(b"hello")  # it need not have been non-blocking
            assert theirs.recv(5) == b"hello"
        sock.close()

    run(test)


@pytest.mark.parametrize("kind", ["file", "pipe", "datagram", "seqpacket", "inet"])
def test_a_descriptor_that_is_not(kind: str) -> None:
    async def test(_: StreamSocket, __: socket.socket) -> None:
        before = open_fds()
        made: list[int] = []
        match kind:
            case "file":
                made = [os.memfd_create("file", os.MFD_CLOEXEC)]
            case "pipe":
                made = list(os.pipe())
            case "datagram" | "seqpacket":
                socket_type = getattr(
                    socket, {"datagram": "SOCK_DGRAM", "seqpacket": "SOCK_SEQPACKET"}[kind]
                )
                made = [end.detach() for end in socket.socketpair(type=socket_type)]
            case "inet":
                made = [socket.socket(socket.AF_INET).detach()]
        closer = Closer()
        first, *rest = (ReceivedFd(fd, closer) for fd in made)
        with first:
            with pytest.raises(PeerError, match="socket"):
                StreamSocket.of(first)
            assert not first.closed
        for fd in rest:
            fd.close()
        await closer.finished()
        assert open_fds() == before

    run(test)


def test_a_socket_that_is_not_connected() -> None:
    async def test(_: StreamSocket, __: socket.socket) -> None:
        sock = StreamSocket.of(ReceivedFd(socket.socket(socket.AF_UNIX).detach(), Closer()))
        with pytest.raises(PeerError):
            await sock.recv(1)
        with pytest.raises(PeerError):
            await sock.send(b"x")
        sock.close()

    run(test)
