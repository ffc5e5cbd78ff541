"""Sockets that a service manager passes: matched, kept or refused."""

from __future__ import annotations

import errno
import os
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.until import until
from vgpud.unix.activation import Activated
from vgpud.unix.fd import Fd
from vgpud.unix.listener import Listener
from vgpud.unix.socket_place import SocketPlace


@pytest.fixture
def directory() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="vgpud-", dir="/tmp") as path:
        yield Path(path)


def passed(path: Path | None, kind: int = socket.SOCK_STREAM, *, listening: bool = True) -> Fd:
    """What the service manager would open at `path`."""
    sock = socket.socket(socket.AF_UNIX, kind)
    if path is not None:
        sock.bind(str(path))
    if kind == socket.SOCK_STREAM and listening:
        sock.listen()
    return Fd(sock.detach())


def address(sock: socket.socket | None) -> str | None:
    """Where a socket is bound, which is then closed."""
    if sock is None:
        return None
    with sock:
        return str(sock.getsockname())


def test_by_path_first_and_by_name_second(directory: Path) -> None:
    here, there = directory / "here", directory / "there"
    activated = Activated([("gpu1", passed(here)), ("elsewhere", passed(there))])
    stream = socket.SOCK_STREAM
    assert address(activated.find(here, "gpu0", stream)) == str(here)
    assert address(activated.find(directory / "x" / ".." / "there", "gpu1", stream)) == str(there)
    assert address(activated.find(directory / "other", "gpu1", stream)) == str(here)
    assert activated.find(directory / "other", "gpu2", stream) is None
    assert activated.find(here, "gpu1", socket.SOCK_DGRAM) is None
    activated.close()
    assert here.exists(), "the file is the service manager's"


def test_by_path_through_a_link(directory: Path) -> None:
    (directory / "run").mkdir()
    (directory / "link").symlink_to("run")
    activated = Activated([("x", passed(directory / "run" / "s"))])
    found = activated.find(directory / "link" / "s", "gpu0", socket.SOCK_STREAM)
    assert address(found) == str(directory / "run" / "s")
    activated.close()


def test_a_name_of_several_sockets_is_no_name(directory: Path) -> None:
    activated = Activated([("gpu0", passed(directory / name)) for name in ("a", "b")])
    assert activated.find(directory / "gpu0.sock", "gpu0", socket.SOCK_STREAM) is None
    activated.close()


def test_the_kind_tells_control_from_device(directory: Path) -> None:
    activated = Activated(
        [
            ("vgpud.socket", passed(directory / "control", socket.SOCK_DGRAM)),
            ("vgpud.socket", passed(directory / "gpu0")),
        ]
    )
    for name, kind in (("control", socket.SOCK_DGRAM), ("gpu0", socket.SOCK_STREAM)):
        assert address(activated.find(directory / name, name, kind)) == str(directory / name)
    activated.close()


@pytest.mark.parametrize("kind", ["connected", "not-listening", "inet", "seqpacket", "pipe"])
def test_what_is_of_no_use_is_closed_and_told(
    directory: Path, caplog: pytest.LogCaptureFixture, kind: str
) -> None:
    match kind:
        case "connected":
            one, other = socket.socketpair()
            other.close()
            fd = Fd(one.detach())
        case "not-listening":
            fd = passed(directory / "s", listening=False)
        case "inet":
            fd = Fd(socket.socket(socket.AF_INET, socket.SOCK_DGRAM).detach())
        case "seqpacket":
            fd = passed(directory / "s", socket.SOCK_SEQPACKET)
        case _:
            read, write = os.pipe()
            os.close(write)
            fd = Fd(read)
    number = fd.fileno()
    Activated([("odd", fd)]).close()
    [line] = caplog.messages
    assert line.startswith(f"activated socket closed name=odd fd={number}: ")
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(number)


def test_what_nobody_wants_is_told_and_kept(
    directory: Path, caplog: pytest.LogCaptureFixture
) -> None:
    one, two = directory / "one", directory / "two"
    activated = Activated([("x", passed(one)), ("y", passed(two))])
    activated.log_unused([(one, "gpu0", socket.SOCK_STREAM)], {"told_by": "the daemon"})
    [line] = caplog.messages
    assert line.startswith(f"activated socket unused name=y type=stream address={two}: ")
    assert vars(caplog.records[0])["told_by"] == "the daemon"
    assert address(activated.find(two, "gpu1", socket.SOCK_STREAM)) == str(two)
    activated.close()


def test_the_environment_of_another_process(directory: Path) -> None:
    fd = passed(directory / "s")
    for pid in ("1", "", "x"):
        variables = {"LISTEN_PID": pid, "LISTEN_FDS": "1", "LISTEN_FDNAMES": "a", "HOME": "/"}
        Activated.from_environment(variables).close()
        assert variables == {"HOME": "/"}
    os.fstat(fd.fileno())
    fd.close()


def test_a_listener_of_our_own_takes_its_file_along(directory: Path) -> None:
    path = directory / "new" / "gpu0.sock"
    listener = Listener.open(SocketPlace(path), "gpu0", Activated())
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))
    listener.close()
    listener.close()
    assert not path.exists()


def test_a_listener_leaves_a_successors_file(directory: Path) -> None:
    path = directory / "gpu0.sock"
    listener = Listener.open(SocketPlace(path), "gpu0", Activated())
    path.unlink()
    successor = Listener.open(SocketPlace(path), "gpu0", Activated())
    listener.close()
    assert path.exists()
    successor.close()


def test_an_activated_listener_can_be_closed_and_opened_again(directory: Path) -> None:
    path = directory / "gpu0.sock"
    activated = Activated([("x", passed(path))])
    for _ in range(2):
        listener = Listener.open(SocketPlace(path), "gpu0", activated)
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(path))
            connection, _ = listener.sock.accept()
            connection.close()
        listener.close()
        assert path.exists()
    activated.close()
    until(lambda: not can_connect(path))  # the last duplicate is closed in a thread


def can_connect(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as client:
        return client.connect_ex(str(path)) != errno.ECONNREFUSED


def test_a_socket_without_a_name_is_no_control_socket(caplog: pytest.LogCaptureFixture) -> None:
    """Nobody could ever call there, and a socket of our own would not be made."""
    activated = Activated([("control", passed(None, socket.SOCK_DGRAM))])
    assert activated.find(Path("/nowhere"), "control", socket.SOCK_DGRAM) is None
    [line] = caplog.messages
    assert line.startswith("activated socket closed name=control ")
