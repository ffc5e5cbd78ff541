"""The control socket itself: what callers send beside their datagrams."""

from __future__ import annotations

import socket
import struct
import time
from contextlib import suppress
from pathlib import Path

import pytest

from tests.support.until import until
from vgpud.control import sockets
from vgpud.control.sockets import ControlSocket
from vgpud.unix import received_fd
from vgpud.unix.file_kind import FileKind

LINGER_S = 6


def lingering() -> tuple[socket.socket, socket.socket]:
    """A TCP socket whose last close waits for its peer, which reads nothing, and that peer."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        client = socket.create_connection(server.getsockname())
        deaf, _ = server.accept()
    client.setblocking(False)
    with suppress(BlockingIOError):
        while True:
            client.send(bytes(1 << 16))
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, LINGER_S))
    return client, deaf


def open_files() -> int:
    """How many descriptors this process has."""
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


def test_a_descriptor_whose_closing_waits_does_not_delay_the_loop(tmp_path: Path) -> None:
    control, _ = ControlSocket.bound(tmp_path / "control.sock")
    client, deaf = lingering()
    with control, deaf, socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as caller:
        caller.connect(str(tmp_path / "control.sock"))
        socket.send_fds(caller, [b"{}"], [client.fileno()])
        client.close()  # so the last one is the message's
        began = time.monotonic()
        assert control.recvfrom(100)[0] == b"{}"
        assert time.monotonic() - began < LINGER_S / 2


def test_the_descriptors_of_a_message_are_not_looked_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each look takes tens of microseconds, and a message has up to 253 descriptors."""

    def look(fd: object) -> FileKind:
        raise AssertionError("looked at")

    monkeypatch.setattr(received_fd, "file_kind", look)
    control, _ = ControlSocket.bound(tmp_path / "control.sock")
    with control, socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as caller:
        caller.connect(str(tmp_path / "control.sock"))
        before = open_files()
        socket.send_fds(caller, [b"{}"], [caller.fileno()] * 253)
        assert control.recvfrom(100)[0] == b"{}"
        until(lambda: open_files() == before)
        assert control._discard.waiting == 0


def test_no_more_descriptors_are_let_in_while_many_wait_to_be_closed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sockets, "MAX_CLOSING", 2)
    control, _ = ControlSocket.bound(tmp_path / "control.sock")
    with control, socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as caller:
        caller.connect(str(tmp_path / "control.sock"))
        before = open_files()
        client, deaf = lingering()
        with deaf:
            socket.send_fds(caller, [b"1"], [client.fileno()])
            client.close()
            control.recvfrom(100)
            assert control._discard.waiting == 1  # it hangs in that
            socket.send_fds(caller, [b"2"], [caller.fileno()] * 4)
            assert control.recvfrom(100)[0] == b"2"
            try:
                socket.send_fds(caller, [b"3"], [caller.fileno()])
            except PermissionError:
                refused = True
            else:  # Linux before 6.16
                assert control.recvfrom(100)[0] == b"3"
                refused = False
            caller.send(b"4")
            assert control.recvfrom(100)[0] == b"4"
        until(lambda: open_files() == before)
        caller.send(b"5")
        control.recvfrom(100)
        if refused:
            socket.send_fds(caller, [b"6"], [caller.fileno()])
            assert control.recvfrom(100)[0] == b"6"
