"""The directory for clients' sockets: who may make files in it, and what is removed from it."""

from __future__ import annotations

import os
import socket
import stat
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.control.control_stand import CALL, client
from tests.support.daemon_thread import DaemonThread
from vgpud.client import Client
from vgpud.control.client_directory import ClientDirectory
from vgpud.daemon.config import Config

AS_ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="takes root, to be somebody else")
NOBODY, OTHER = 65534, 4711


def can_make(path: Path, uid: int, gid: int = OTHER) -> bool:
    """Whether a process of another user can fill this directory."""
    file = path / f"file-{uid}-{gid}"
    done = subprocess.run(
        ["/bin/sh", "-c", f"echo x > {file}"],
        user=uid,
        group=gid,
        extra_groups=[],
        capture_output=True,
        check=False,
    )
    return done.returncode == 0


@pytest.fixture
def path(short_directory: Path) -> Iterator[Path]:
    short_directory.chmod(0o755)
    with tempfile.TemporaryDirectory(dir=short_directory) as name:
        Path(name).chmod(0o755)
        yield Path(name) / "clients"


@AS_ROOT
def test_only_those_with_a_grant_may_make_files(path: Path) -> None:
    with ClientDirectory(path) as directory:
        assert not can_make(path, NOBODY)
        directory.open_to({NOBODY}, {77})
        assert can_make(path, NOBODY)
        assert can_make(path, OTHER, 77)
        assert not can_make(path, OTHER)
        directory.open_to(set(), set())
        assert not can_make(path, NOBODY)
        assert not can_make(path, OTHER, 77)


@AS_ROOT
def test_a_directory_for_everybody_is_closed(path: Path) -> None:
    """As a former version made it."""
    path.mkdir()
    path.chmod(0o1733)
    with ClientDirectory(path) as directory:
        directory.open_to(set(), set())
        assert not can_make(path, NOBODY)


@AS_ROOT
def test_a_daemon_opens_it_to_those_whom_its_configuration_names(path: Path) -> None:
    text = f'[daemon]\nruntime_dir = "{path.parent}"\nobserve_users = ["{NOBODY}"]\n'
    text += f'[[device]]\nname = "gpu0"\nwindow = "1MiB"\nallow_groups = ["{OTHER}"]\n'
    with DaemonThread(Config.from_toml(text)) as running:
        assert can_make(path, NOBODY, 1)
        assert can_make(path, 1, OTHER)
        assert not can_make(path, 1, 1)
        control = running.daemon._control
        assert control is not None
        with Client(path.parent / "control.sock") as client:
            assert client._sock.getsockname().startswith(f"{path}/")
            assert client.call("daemon.info")["pid"] == os.getpid()


def test_another_users_directory_is_not_used(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path.mkdir()
    monkeypatch.setattr(os, "geteuid", lambda: OTHER)
    with pytest.raises(PermissionError, match="belongs to uid"):
        ClientDirectory(path)


def test_a_link_is_not_followed(path: Path, tmp_path: Path) -> None:
    path.symlink_to(tmp_path)
    mode = tmp_path.stat().st_mode
    with pytest.raises(OSError, match=r"Not a directory|symbolic"):
        ClientDirectory(path)
    assert tmp_path.stat().st_mode == mode


def test_a_directory_of_something_else_is_left_alone(path: Path) -> None:
    path.mkdir(0o755)
    (path / "customers.csv").write_text("precious")
    with pytest.raises(OSError, match="files of something else"):
        ClientDirectory(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o755
    assert (path / "customers.csv").read_text() == "precious"


def test_what_is_left_over_is_removed(path: Path) -> None:
    with ClientDirectory(path) as directory, client(path / "lives"):
        client(path / "dead").close()
        (path / "junk").write_bytes(bytes(1 << 20))
        (path / "empty").mkdir()
        directory.clean()
        assert [entry.name for entry in path.iterdir()] == ["lives"]


def test_it_goes_with_the_daemon_unless_a_client_is_left(path: Path) -> None:
    with ClientDirectory(path) as directory:
        with client(path / "lives"):
            directory.remove()
            assert path.exists()
        directory.clean()
        directory.remove()
        assert not path.exists()


def test_a_client_is_found_under_another_path(path: Path) -> None:
    """As in a container that has the daemon's directory elsewhere."""
    own = os.geteuid()
    with ClientDirectory(path) as directory, client(path / "me"), client(path.parent / "near"):
        for name in ("/srv/vgpud/clients/me", str(path / "me"), str(path.parent / "near")):
            file = directory.socket_of(name, own)
            assert file is not None
            there = Path(name.replace("/srv/vgpud/clients", str(path)))
            assert os.path.samestat(os.fstat(file.fileno()), there.stat())
            # Else a user could have answers sent to another's client.
            assert directory.socket_of(name, own + 1) is None
        for name in ("/srv/clients/other", "/srv/me", "me", "/srv/clients/..", "clients"):
            assert directory.socket_of(name, own) is None


def test_a_client_with_another_path_is_answered(path: Path) -> None:
    config = Config.from_toml(
        f'[daemon]\nruntime_dir = "{path.parent}"\n[[device]]\nname = "gpu0"\nwindow = "1MiB"\n'
    )
    elsewhere = path.parent / "elsewhere"
    with DaemonThread(config), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        elsewhere.symlink_to(path.parent)
        sock.settimeout(5)
        sock.bind(str(elsewhere / "clients" / "me"))
        elsewhere.unlink()  # the daemon can't see that path
        sock.sendto(CALL % 1, str(path.parent / "control.sock"))
        assert b'"pid"' in sock.recv(1 << 16)
