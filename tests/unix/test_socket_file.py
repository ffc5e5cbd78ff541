"""The file of a socket in a directory that another user may change meanwhile."""

from __future__ import annotations

import os
import socket
import stat
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from vgpud.client.own_socket import OwnSocket
from vgpud.control.sockets import ControlSocket
from vgpud.errors import ConfigError
from vgpud.unix import listener
from vgpud.unix.socket_file import bind, remove_stale
from vgpud.unix.socket_place import SocketPlace


def mode(path: Path) -> int:
    return stat.S_IMODE(path.lstat().st_mode)


@contextmanager
def umask(value: int) -> Iterator[None]:
    former = os.umask(value)
    try:
        yield
    finally:
        assert os.umask(former) == value, "binding has left the umask as it was"


@contextmanager
def another_thread() -> Iterator[None]:
    ended = threading.Event()
    thread = threading.Thread(target=ended.wait)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


@pytest.mark.parametrize("wanted", [0o600, 0o660, 0o666])
@pytest.mark.parametrize("value", [0, 0o022, 0o777])
def test_the_mode_is_that_which_was_asked_for(tmp_path: Path, wanted: int, value: int) -> None:
    path = tmp_path / "s"
    for context in (another_thread(), umask(value)):  # one thread, or two
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock, context, umask(value):
            file = bind(sock, path, wanted)
            assert mode(path) == wanted
            file.remove()
            assert not path.exists()


def test_other_threads_keep_their_umask(tmp_path: Path) -> None:
    """Or a file that one of them creates meanwhile could be written by everybody."""
    binding, created = threading.Event(), threading.Event()

    def create() -> None:
        assert binding.wait(5)
        os.close(os.open(tmp_path / "theirs", os.O_CREAT | os.O_WRONLY, 0o666))
        created.set()

    class Slow(socket.socket):
        def bind(self, address: Any) -> None:
            binding.set()
            assert created.wait(5)
            super().bind(address)

    thread = threading.Thread(target=create)
    with Slow(socket.AF_UNIX, socket.SOCK_DGRAM) as sock, umask(0o077):
        thread.start()
        file = bind(sock, tmp_path / "s", 0o666)
        thread.join()
        assert mode(tmp_path / "s") == 0o666
        assert mode(tmp_path / "theirs") == 0o600
        file.remove()


@pytest.fixture
def victim(tmp_path: Path) -> Path:
    path = tmp_path / "victim"
    path.write_text("precious")
    path.chmod(0o600)
    return path


def swap(path: Path, victim: Path) -> None:
    """What the owner of a directory can do at any time."""
    path.unlink()
    path.symlink_to(victim)


class Swapped(socket.socket):
    """A socket whose file is replaced by a link as soon as it is bound."""

    victim: Path

    def bind(self, address: Any) -> None:
        super().bind(address)
        swap(Path(address), self.victim)


def test_what_replaces_the_file_keeps_its_mode(
    tmp_path: Path, victim: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Swapped, "victim", victim, raising=False)
    for kind, wanted in ((socket.SOCK_DGRAM, 0o666), (socket.SOCK_STREAM, 0o660)):
        with Swapped(socket.AF_UNIX, kind) as sock:
            bind(sock, tmp_path / "s", wanted)._directory.close()
        (tmp_path / "s").unlink()
        assert mode(victim) == 0o600
    with monkeypatch.context() as patch:
        patch.setattr("vgpud.unix.listener.socket.socket", Swapped)
        listening, file = listener.listen(SocketPlace(tmp_path / "s"))
        listening.close()
        file._directory.close()
    (tmp_path / "s").unlink()
    assert mode(victim) == 0o600


@pytest.mark.parametrize("kind", [OwnSocket, ControlSocket])
def test_neither_end_of_the_control_socket_changes_another_file(
    tmp_path: Path, victim: Path, monkeypatch: pytest.MonkeyPatch, kind: type[socket.socket]
) -> None:
    def bind_and_swap(self: socket.socket, address: Any) -> None:
        socket.socket.bind(self, address)
        swap(Path(address), victim)

    monkeypatch.setattr(kind, "bind", bind_and_swap, raising=False)
    if kind is ControlSocket:
        control, file = ControlSocket.bound(tmp_path / "control.sock")
        control.close()
        file._directory.close()
    else:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as daemon:
            daemon.bind(str(tmp_path / "control.sock"))
            OwnSocket(tmp_path / "control.sock").close()
    assert mode(victim) == 0o600
    assert victim.read_text() == "precious"


def test_the_file_is_removed_where_it_was_made(tmp_path: Path) -> None:
    """Though another directory has that path by now."""
    (tmp_path / "d").mkdir()
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        file = bind(sock, tmp_path / "d" / "s", 0o600)
    (tmp_path / "d").rename(tmp_path / "former")
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "s").write_text("precious")
    file.remove()
    file.remove()
    assert (tmp_path / "d" / "s").read_text() == "precious"
    assert not (tmp_path / "former" / "s").exists()


def test_a_file_that_another_process_has_made_stays(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        file = bind(sock, tmp_path / "s", 0o600)
        (tmp_path / "s").rename(tmp_path / "kept")  # so that the inode is not used again
        (tmp_path / "s").write_text("of another")
        file.remove()
    assert (tmp_path / "s").read_text() == "of another"


def test_a_link_is_no_stale_socket(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        sock.bind(str(tmp_path / "dead"))
    (tmp_path / "link").symlink_to(tmp_path / "dead")
    with pytest.raises(ConfigError, match="is no socket"):
        remove_stale(tmp_path / "link", socket.SOCK_STREAM)
    remove_stale(tmp_path / "dead", socket.SOCK_STREAM)
    assert not (tmp_path / "dead").exists()


def test_an_error_leaves_no_descriptor(tmp_path: Path) -> None:
    (tmp_path / "s").write_text("")
    before = len([*Path("/proc/self/fd").iterdir()])
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    with sock, pytest.raises(OSError, match="in use"):
        bind(sock, tmp_path / "s", 0o600)
    with pytest.raises(FileNotFoundError):
        remove_stale(tmp_path / "nowhere" / "s", socket.SOCK_STREAM)
    assert len([*Path("/proc/self/fd").iterdir()]) == before
