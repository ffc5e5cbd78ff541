"""The one sendmsg and recvmsg: what comes with a message, and what is lost on the way."""

from __future__ import annotations

import os
import re
import resource
import socket
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from vgpud.unix import ancillary
from vgpud.unix.credentials import UNKNOWN, Credentials, peer_credentials
from vgpud.unix.fd import Fd

Pair = tuple[socket.socket, socket.socket]


@pytest.fixture(params=["SOCK_STREAM", "SOCK_DGRAM", "SOCK_SEQPACKET"])
def pair(request: pytest.FixtureRequest) -> Iterator[Pair]:
    ours, theirs = socket.socketpair(socket.AF_UNIX, getattr(socket, request.param))
    with ours, theirs:
        yield ours, theirs


@pytest.fixture
def pipe() -> Iterator[list[Fd]]:
    ends = [Fd(fd) for fd in os.pipe()]
    yield ends
    for end in ends:
        end.close()


def open_fds() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


def test_descriptors_both_ways(pair: Pair, pipe: list[Fd]) -> None:
    before = open_fds()
    assert ancillary.send(pair[0], [b"ab", memoryview(b"cd")], pipe) == 4
    received = ancillary.receive(pair[1], 10, max_fds=2)
    assert (received.data, received.truncated, received.fds_lost) == (b"abcd", False, False)
    assert received.credentials == UNKNOWN
    assert [os.fstat(fd.fileno()).st_ino for fd in received.fds] == [
        os.fstat(fd.fileno()).st_ino for fd in pipe
    ]
    assert not any(os.get_inheritable(fd.fileno()) for fd in received.fds)
    received.close()
    assert received.fds == []
    assert open_fds() == before
    assert not any(fd.closed for fd in pipe)


def test_nothing_but_bytes(pair: Pair) -> None:
    ancillary.send(pair[0], [b"abcd"])
    received = ancillary.receive(pair[1], 2, max_fds=1)
    assert (received.data, received.fds, received.fds_lost) == (b"ab", [], False)
    assert received.truncated == (pair[0].type != socket.SOCK_STREAM)


@pytest.mark.parametrize("room", [0, 1])
def test_more_descriptors_than_there_is_room_for(pair: Pair, pipe: list[Fd], room: int) -> None:
    before = open_fds()
    ancillary.send(pair[0], [b"x"], [*pipe, *pipe])
    received = ancillary.receive(pair[1], 10, max_fds=room)
    assert received.fds_lost
    # CMSG_SPACE rounds up to eight bytes: room for one is room for two.
    assert len(received.fds) == 2 * room
    received.close()
    assert open_fds() == before


def test_more_descriptors_than_this_process_may_have(pair: Pair, pipe: list[Fd]) -> None:
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    ancillary.send(pair[0], [b"x"], pipe)
    free = os.dup(0)
    os.close(free)
    resource.setrlimit(resource.RLIMIT_NOFILE, (free + 1, limits[1]))
    try:
        received = ancillary.receive(pair[1], 10, max_fds=2)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert (received.data, len(received.fds), received.fds_lost) == (b"x", 1, True)
    received.close()


def test_credentials(pair: Pair, pipe: list[Fd]) -> None:
    ours = Credentials(os.getpid(), os.geteuid(), os.getegid())
    assert peer_credentials(pair[0]) == ours
    pair[1].setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
    ancillary.send(pair[0], [b"x"])
    received = ancillary.receive(pair[1], 10, max_fds=0, credentials=True)
    assert (received.credentials, received.fds_lost) == (ours, False)
    ancillary.send(pair[0], [b"x"], pipe)
    before = open_fds()
    received = ancillary.receive(pair[1], 10, max_fds=0, credentials=True)
    assert (received.credentials, received.fds, received.fds_lost) == (ours, [], True)
    assert open_fds() == before


def test_where_a_datagram_goes_and_comes_from(tmp_path: Path) -> None:
    path = str(tmp_path / "socket")
    with socket.socket(type=socket.SOCK_DGRAM, family=socket.AF_UNIX) as server:
        server.bind(path)
        with socket.socket(type=socket.SOCK_DGRAM, family=socket.AF_UNIX) as client:
            ancillary.send(client, [b"x"], address=path)
            assert ancillary.receive(server, 1, max_fds=0).address == ""
            client.bind(path + "2")
            ancillary.send(client, [b"x"], address=path)
            assert ancillary.receive(server, 1, max_fds=0).address == path + "2"


def test_a_socket_that_blocks_is_asked_not_to(pair: Pair) -> None:
    with pytest.raises(BlockingIOError):
        ancillary.receive(pair[0], 1, max_fds=0, flags=socket.MSG_DONTWAIT)
    with suppress(BlockingIOError):
        while True:
            ancillary.send(pair[0], [bytes(1000)], flags=socket.MSG_DONTWAIT)
    with pytest.raises(BlockingIOError):
        ancillary.send(pair[0], [bytes(1000)], flags=socket.MSG_DONTWAIT)


def test_a_peer_that_is_gone(pair: Pair) -> None:
    pair[1].close()
    with pytest.raises((BrokenPipeError, ConnectionError)):
        ancillary.send(pair[0], [b"x"])


def test_no_other_module_receives_or_sends_descriptors() -> None:
    """A second place would forget MSG_CMSG_CLOEXEC, MSG_CTRUNC or an owner some day."""
    package = Path(ancillary.__file__).parents[1]
    calls = re.compile(r"\.(recvmsg|recvmsg_into|sendmsg|recv_fds|send_fds)\(")
    found = [path for path in package.rglob("*.py") if calls.search(path.read_text())]
    assert found == [Path(ancillary.__file__)]
