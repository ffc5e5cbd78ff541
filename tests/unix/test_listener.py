"""The files of sockets that this process binds: their mode from the start, and their group."""

from __future__ import annotations

import ctypes
import errno
import grp
import os
import socket
import stat
import struct
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from vgpud.control.sockets import ControlSocket
from vgpud.errors import ConfigError
from vgpud.unix.activation import Activated
from vgpud.unix.fd import Fd
from vgpud.unix.listener import Listener
from vgpud.unix.socket_file import SocketFile, bind
from vgpud.unix.socket_place import SocketPlace

IN_ATTRIB, IN_CREATE, IN_NONBLOCK = 0x4, 0x100, 0o4000
EVENT = struct.Struct("=iIII")
OTHER = "daemon"
"""A group that is on every system, and this process's on none."""


@pytest.fixture
def directory() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="vgpud-", dir="/tmp") as path:
        yield Path(path)


@pytest.fixture(params=[0o000, 0o022, 0o077], ids="umask {:o}".format)
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    """The umask of the process, which the mode of a socket does not depend on."""
    former = os.umask(request.param)
    yield request.param
    assert os.umask(former) == request.param, "it is what it was"


def changes(directory: Path, act: Callable[[], None]) -> list[int]:
    """What `act` does to the files of a directory: IN_CREATE, and IN_ATTRIB for mode or group."""
    libc = ctypes.CDLL(None, use_errno=True)
    number = libc.inotify_init1(IN_NONBLOCK)
    with os.fdopen(number, "rb", buffering=0) as events:
        assert libc.inotify_add_watch(number, bytes(directory), IN_ATTRIB | IN_CREATE) > 0
        act()
        data = events.read(4096) or b""
    found = []
    while data:
        _, mask, _, length = EVENT.unpack_from(data)
        found.append(mask)
        data = data[EVENT.size + length :]
    return found


def opened(place: SocketPlace) -> os.stat_result:
    """What the file of a device's socket is like while it listens."""
    listener = Listener.open(place, "gpu0", Activated())
    try:
        return place.path.stat()
    finally:
        listener.close()


@pytest.mark.parametrize("mode", [0o600, 0o660, 0o666])
@pytest.mark.usefixtures("umask")
def test_a_device_s_socket_has_its_mode_from_the_start(directory: Path, mode: int) -> None:
    def act() -> None:
        found = opened(SocketPlace(directory / "s", mode))
        assert (stat.S_IMODE(found.st_mode), found.st_gid) == (mode, os.getegid())

    assert changes(directory, act) == [IN_CREATE]


@pytest.mark.usefixtures("umask")
def test_the_control_socket_has_its_mode_from_the_start(directory: Path) -> None:
    def act() -> None:
        sock, file = ControlSocket.bound(directory / "s")
        with sock:
            assert stat.S_IMODE((directory / "s").stat().st_mode) == 0o666
        file.remove()

    assert changes(directory, act) == [IN_CREATE]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files to any group")
@pytest.mark.parametrize("by", ["name", "number"])
def test_a_group_that_connects(directory: Path, by: str) -> None:
    gid = grp.getgrnam(OTHER).gr_gid
    place = SocketPlace(directory / "s", 0o620, OTHER if by == "name" else str(gid))
    found = opened(place)
    assert (stat.S_IMODE(found.st_mode), found.st_gid) == (0o620, gid)
    assert found.st_uid == os.geteuid()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files to any group")
@pytest.mark.parametrize("replace", [Path.symlink_to, Path.hardlink_to])
def test_what_replaces_the_socket_keeps_its_group(
    directory: Path, replace: Callable[[Path, Path], None]
) -> None:
    victim, path = directory / "victim", directory / "s"
    victim.touch()
    with closing(socket.socket(socket.AF_UNIX)) as sock:
        file = bind(sock, path, 0o660)
        path.unlink()
        replace(path, victim)
        for found in (file, SocketFile(Fd(os.open(directory, os.O_PATH)), "s")):
            with pytest.raises(OSError, match=str(errno.ESTALE)):
                found.change_group(grp.getgrnam(OTHER).gr_gid)
            found._directory.close()
    assert victim.stat().st_gid == path.lstat().st_gid == os.getegid()


def test_an_unknown_group_is_named(directory: Path) -> None:
    with pytest.raises(ConfigError, match="socket_group = 'no such group': there is no such group"):
        opened(SocketPlace(directory / "s", group="no such group"))
    assert [*directory.iterdir()] == []


AS_NOBODY = f"""
import os, sys
from pathlib import Path
from vgpud.errors import HostError
from vgpud.unix.activation import Activated
from vgpud.unix.fd import Fd
from vgpud.unix.listener import Listener
from vgpud.unix.socket_place import SocketPlace
from vgpud.unix.socket_file import SocketFile, bind
os.setgroups([]), os.setgid(65534), os.setuid(65534)
try:
    Listener.open(SocketPlace(Path(sys.argv[1]), group="{OTHER}"), "gpu0", Activated())
except HostError as error:
    print(error)
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_a_group_that_the_daemon_may_not_give(directory: Path) -> None:
    directory.chmod(0o777)
    done = subprocess.run(
        [sys.executable, "-c", AS_NOBODY, str(directory / "s")],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == (
        f"listening on {directory}/s: Operation not permitted; only root, or a member, can give the"
        f" socket to group {OTHER}\n"
    )
    assert [*directory.iterdir()] == []


def test_a_stale_socket_makes_room_for_one_of_another_mode(directory: Path) -> None:
    path = directory / "s"
    with closing(socket.socket(socket.AF_UNIX)) as stale:
        stale.bind(str(path))
    assert stat.S_IMODE(opened(SocketPlace(path, 0o600)).st_mode) == 0o600
