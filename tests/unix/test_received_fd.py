"""Descriptors that others have sent: what they are is found without asking them, and none can make
the event loop wait when it is closed."""

from __future__ import annotations

import asyncio
import os
import select
import socket
import threading
import time
from collections.abc import Callable, Coroutine
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.support.silent_files import lingering_socket, silent_filesystem
from vgpud.memory import memfd
from vgpud.unix.ancillary import MAX_FDS
from vgpud.unix.closer import Closer, Release
from vgpud.unix.fd import Fd
from vgpud.unix.file_kind import FileKind, file_kind
from vgpud.unix.received_fd import ReceivedFd, close_all
from vgpud.unix.stream_socket import MAX_CLOSING, StreamSocket

AT_ONCE = 1.0
"""Seconds; what waits for a peer here takes thirty."""


def _path() -> int:
    with memfd.create("named", 4096) as fd:
        return os.open(f"/proc/self/fd/{fd.fileno()}", os.O_PATH)


def _epoll() -> int:
    with select.epoll() as poll:
        return os.dup(poll.fileno())


KINDS: dict[str, tuple[Callable[[], int], FileKind]] = {
    "eventfd": (lambda: os.eventfd(0), FileKind.EVENTFD),
    "memfd": (lambda: os.memfd_create("x"), FileKind.MEMORY),
    "tmpfs": (lambda: os.open("/dev/shm", os.O_TMPFILE | os.O_RDWR), FileKind.MEMORY),
    "path of a memfd": (_path, FileKind.OTHER),
    "directory on tmpfs": (lambda: os.open("/dev/shm", os.O_RDONLY), FileKind.OTHER),
    "file": (lambda: os.open(__file__, os.O_RDONLY), FileKind.OTHER),
    "path": (lambda: os.open("/", os.O_PATH), FileKind.OTHER),
    "device": (lambda: os.open("/dev/zero", os.O_RDWR), FileKind.OTHER),
    "socket": (lambda: socket.socket().detach(), FileKind.OTHER),
    "epoll": (_epoll, FileKind.OTHER),
    "pidfd": (lambda: os.pidfd_open(os.getpid()), FileKind.OTHER),
}


@pytest.mark.parametrize("name", KINDS)
def test_kinds(name: str) -> None:
    make, kind = KINDS[name]
    with Fd(make()) as fd:
        assert file_kind(fd) is kind


def test_huge_pages_are_memory() -> None:
    try:
        number = os.memfd_create("huge", os.MFD_HUGETLB)
    except OSError as error:
        pytest.skip(f"no huge pages in this kernel: {error}")
    with Fd(number) as fd:
        assert file_kind(fd) is FileKind.MEMORY


def test_a_file_with_the_name_of_a_dma_buf_is_none(tmp_path: Path) -> None:
    path = tmp_path / "dmabuf:x"
    path.touch()
    with Fd(os.open(path, os.O_RDONLY)) as fd:
        assert file_kind(fd) is FileKind.OTHER


def is_open(number: int) -> bool:
    return Path(f"/proc/self/fd/{number}").is_symlink()


@pytest.mark.parametrize("name", KINDS)
def test_all_are_closed_once(name: str) -> None:
    async def test(closer: Closer) -> None:
        number = KINDS[name][0]()
        fd = ReceivedFd(number, closer)
        fd.close()
        assert fd.closed
        await closer.finished()
        assert not is_open(number)
        fd.close()
        again = ReceivedFd(os.dup(0), closer)
        again.take()
        again.close()

    run(test)


def run(test: Callable[[Closer], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(test(Closer()))


def test_a_filesystem_that_does_not_answer() -> None:
    with silent_filesystem() as files:
        number = os.open(files.path, os.O_RDWR)
        files.silence()

        async def test(closer: Closer) -> None:
            begin = time.monotonic()
            fd = ReceivedFd(number, closer)
            assert fd.kind is FileKind.OTHER
            fd.close()
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.2):
                    await closer.finished()
            assert time.monotonic() - begin < AT_ONCE
            files.end()
            await closer.finished()
            assert not is_open(number)

        run(test)


class CountingCloser(Closer):
    """A closer that counts how often it is called."""

    calls = 0

    def run(self, release: Release) -> None:
        self.calls += 1
        super().run(release)


def test_all_of_a_message_are_closed_by_one_call() -> None:
    async def whole() -> None:
        closer, other = CountingCloser(), CountingCloser()
        fds = [ReceivedFd(os.dup(0), closer) for _ in range(MAX_FDS)]
        numbers = [fd.fileno() for fd in fds]
        kept = fds[1].take()
        fds.append(ReceivedFd(os.dup(0), other))
        close_all(fds)
        assert all(fd.closed for fd in fds)
        await closer.finished()
        await other.finished()
        assert [number for number in numbers if is_open(number)] == [kept]
        os.close(kept)
        close_all(fds)
        assert (closer.calls, other.calls) == (1, 1)

    asyncio.run(whole())


def test_nothing_is_received_while_too_much_is_not_closed() -> None:
    async def test(closer: Closer) -> None:
        held = threading.Event()
        closer.run(held.wait)
        ours, theirs = socket.socketpair()
        sock = StreamSocket(ours, closer)
        with theirs:
            for _ in range(MAX_CLOSING + 1):
                socket.send_fds(theirs, [b"x"], [0])
            socket.send_fds(theirs, [b"y"], [0])
            for _ in range(MAX_CLOSING + 1):
                data, fds = await sock.recv(1)
                assert data == b"x"
                close_all(fds)
            receiving = asyncio.create_task(sock.recv(1))
            await asyncio.sleep(0.05)
            assert not receiving.done()
            held.set()
            async with asyncio.timeout(AT_ONCE):
                data, fds = await receiving
            assert data == b"y"
            close_all(fds)
        sock.close()
        await sock.closed()

    run(test)


def test_sockets_whose_peer_does_not_read() -> None:
    """Closed themselves, or with the socket in which they have been sent."""

    async def test(closer: Closer) -> None:
        with lingering_socket(2) as first, lingering_socket(2) as second:
            begin = time.monotonic()
            ReceivedFd(first, closer).close()
            ours, theirs = socket.socketpair()
            with theirs:
                socket.send_fds(theirs, [b"x"], [second])
            os.close(second)
            sock = StreamSocket(ours, closer)
            sock.close()
            assert time.monotonic() - begin < AT_ONCE
            await sock.closed()
            assert time.monotonic() - begin > AT_ONCE

    run(test)


def test_a_closer_can_be_used_again() -> None:
    async def test(closer: Closer) -> None:
        await closer.finished()
        for _ in range(3):
            done: list[int] = []
            for number in range(5):
                closer.run(partial(done.append, number))
            await closer.finished()
            assert done == list(range(5))

    run(test)
