"""A front-end that holds a lock of a file that it shares with the daemon: a thread of its own waits
for memory that never comes, in the middle of a system call.
"""

from __future__ import annotations

import ctypes
import os
import select
import socket
import struct
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.hostile.siege import Bystander, Siege, front_end
from tests.support.silent_files import SilentPage, silent_page
from vgpud.vhost.wire import messages as m

LONGEST_WAIT = 0.5
MOMENT = 0.2
"""Seconds until a system call waits for the page, or the daemon for a lock."""


@contextmanager
def held_locks(siege: Siege) -> Iterator[SilentPage]:
    """See other devices served as long as the page is silent."""
    with silent_page() as page, Bystander(siege.socket("b")) as bystander:
        yield page
        time.sleep(MOMENT)
        siege.assert_serving("poor")
        assert bystander.worst < LONGEST_WAIT


@pytest.mark.parametrize("how", ["replaced", "left"])
def test_an_eventfd_in_an_epoll(siege: Siege, how: str) -> None:
    """Closing a file takes the lock of each epoll instance that it is registered in."""
    with held_locks(siege) as page, front_end(siege) as ring, select.epoll() as poll:
        eventfd = os.eventfd(1)
        poll.register(eventfd, select.EPOLLIN)
        ring.fe.tell(m.SetVringErr(0, True), [eventfd])
        os.close(eventfd)
        page.call("epoll_wait", poll.fileno(), page.address, 1, -1)
        time.sleep(MOMENT)
        if how == "replaced":
            other = os.eventfd(0)
            ring.fe.tell(m.SetVringErr(0, True), [other])
            os.close(other)
            assert ring.fe.ask(m.GetFeatures())
        else:
            ring.fe.sock.shutdown(socket.SHUT_RDWR)


@pytest.mark.parametrize("message", [m.GpuSetSocket(), m.SetBackendReqFd()], ids=repr)
def test_a_tcp_socket(siege: Siege, message: m.GpuSetSocket | m.SetBackendReqFd) -> None:
    """Its name can't be asked for while a thread receives from it."""
    with (
        held_locks(siege) as page,
        socket.create_server(("127.0.0.1", 0)) as listener,
        socket.create_connection(listener.getsockname()) as sock,
        front_end(siege) as ring,
    ):
        peer, _ = listener.accept()
        with peer:
            page.call("recv", sock.fileno(), page.address, 64, 0)
            time.sleep(MOMENT)
            peer.send(bytes(64))
            time.sleep(MOMENT)
            ring.fe.send(message, [sock.fileno()])
            assert ring.fe.sock.recv(1) == b""
    assert "no unix stream socket" in "".join(siege.warnings)


SO_ATTACH_FILTER = 26


@pytest.mark.parametrize("lock", ["of a receiver", "of an option"])
@pytest.mark.parametrize("message", [m.GpuSetSocket(), m.SetBackendReqFd()], ids=repr)
def test_the_socket_of_a_channel(
    siege: Siege, message: m.GpuSetSocket | m.SetBackendReqFd, lock: str
) -> None:
    """The sender keeps a duplicate of the end that it has passed."""
    ours, theirs = socket.socketpair()
    with held_locks(siege) as page, ours, theirs, front_end(siege) as ring:
        if lock == "of an option":
            program = ctypes.create_string_buffer(struct.pack("=H6xQ", 1, page.address))
            option = (socket.SOL_SOCKET, SO_ATTACH_FILTER, ctypes.addressof(program), 16)
            page.call("setsockopt", theirs.fileno(), *option)
            time.sleep(MOMENT)
        ring.fe.tell(message, [theirs.fileno()])
        if lock == "of a receiver":
            time.sleep(MOMENT)  # what is sent to a new display
            for _ in range(4):  # the daemon is woken first
                theirs.setblocking(True)
                page.call("recv", theirs.fileno(), page.address, 64, 0)
            time.sleep(MOMENT)
            ours.send(bytes(8))
        time.sleep(MOMENT)
        assert ring.fe.ask(m.GetFeatures())
