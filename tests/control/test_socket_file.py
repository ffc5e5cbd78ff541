"""The control socket's file, and the client's: made, replaced, left alone, removed."""

from __future__ import annotations

import os
import socket
import stat
from pathlib import Path

import pytest

from tests.control.control_stand import CALL, INFO, ask, client, make_server, serving
from vgpud.client import Client
from vgpud.control.rpc import ErrorCode, RpcError
from vgpud.errors import ConfigError, HostError


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "control.sock"


def test_everybody_may_knock(path: Path) -> None:
    with serving(path):
        assert stat.S_IMODE(path.stat().st_mode) == 0o666


def test_a_socket_that_somebody_else_made_is_used_and_left(path: Path, tmp_path: Path) -> None:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    sock.bind(str(path))
    with serving(sock), client(tmp_path / "script", path) as script:
        assert ask(script, CALL % 1)["id"] == 1
    assert path.exists()


def test_the_file_goes_with_the_server(path: Path) -> None:
    with serving(path):
        assert path.exists()
    assert not path.exists()


def test_a_socket_that_a_killed_daemon_left_is_replaced(path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as dead:
        dead.bind(str(path))
    with serving(path), Client(path) as client:
        assert client.call("daemon.info")["pid"] == 42


def test_a_socket_that_lives_is_left_alone(path: Path) -> None:
    with serving(path):
        with pytest.raises(ConfigError, match="in use by another"):
            make_server(path)
        with Client(path) as client:
            assert client.call("daemon.info")["pid"] == 42


def test_a_file_of_another_kind_is_left_alone(path: Path) -> None:
    path.write_text("precious")
    with pytest.raises(ConfigError, match="is no socket"):
        make_server(path)
    assert path.read_text() == "precious"


def test_closing_leaves_a_successors_file(path: Path) -> None:
    server = make_server(path)
    path.unlink()
    with make_server(path):
        server.close()
        assert path.exists()
    server.close()


def test_no_directory(tmp_path: Path) -> None:
    with pytest.raises(HostError, match=r"control\.sock: No such file.*set daemon\.runtime_dir"):
        make_server(tmp_path / "nowhere" / "control.sock")


def test_the_client_raises_what_the_daemon_answered_and_leaves_no_file(path: Path) -> None:
    with serving(path):
        with Client(path) as client:
            assert client.call("daemon.info") == INFO.model_dump(mode="json")
            with pytest.raises(RpcError) as caught:
                client.call("nothing")
            assert caught.value.code == ErrorCode.METHOD_NOT_FOUND
            assert client.call("daemon.info", {})["version"] == "1.2.3"
        assert [*path.parent.iterdir()] == [path]


def test_the_client_says_that_no_daemon_is_there(path: Path) -> None:
    with pytest.raises(HostError, match=r"No such file.*is the daemon running"):
        Client(path)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as dead:
        dead.bind(str(path))
    with pytest.raises(HostError, match="refused"):
        Client(path)


def test_the_client_says_that_the_socket_is_not_for_this_user(path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as server:
        server.bind(str(path))
        path.chmod(0)
        user = os.geteuid()
        if user == 0:
            os.seteuid(65534)
        try:
            with pytest.raises(HostError, match="denied; "):
                Client(path)
        finally:
            os.seteuid(user)


def test_the_client_gives_up_on_a_daemon_that_hangs(path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as hung:
        hung.bind(str(path))
        with Client(path, timeout=0.05) as client, pytest.raises(HostError, match="timed out"):
            client.call("daemon.info")
