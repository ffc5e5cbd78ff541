"""Where a caller may be answered: at a socket of its own user, whatever address it gives."""

from __future__ import annotations

import os
import socket
import threading
import time
from pathlib import Path

import pytest

from tests.control.control_stand import CALL, ask, client, serving
from tests.support.until import until
from vgpud.control import caller_sockets
from vgpud.control.call import Caller
from vgpud.control.caller_sockets import CallerSockets

OWN = os.geteuid()


def caller(address: str | bytes, uid: int = OWN) -> Caller:
    return Caller(address, 1, uid, 0)


def answered(who: Caller) -> Caller:
    """The caller as it can be answered, as the server finds it."""
    sockets = CallerSockets()
    found = sockets.known(who)
    if found is None:
        found = sockets.look_up(who)
        sockets.remember(found)
        again = sockets.known(who)
        assert (again is None) == (found.file is None)
    return found


def test_a_socket_of_the_callers_user_is_answered(tmp_path: Path) -> None:
    with client(tmp_path / "me"):
        found = answered(caller(str(tmp_path / "me")))
        assert found.file is not None
        assert os.path.samestat(os.fstat(found.file.fileno()), (tmp_path / "me").stat())


def test_anothers_socket_a_link_and_a_file_are_not(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "link").symlink_to("me")
    with client(tmp_path / "me"):
        assert answered(caller(str(tmp_path / "me"), OWN + 1)).address == ""
        for name in ("file", "link", "nothing", "."):
            assert answered(caller(str(tmp_path / name))).address == ""


def test_a_relative_name_is_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is relative to the caller's directory, not to the daemon's."""
    monkeypatch.chdir(tmp_path)
    with client("me"):
        assert CallerSockets().known(caller("me")) == caller("")


@pytest.mark.parametrize("address", ["", b"\0abstract"])
def test_what_is_no_path_needs_no_look_up(address: str | bytes) -> None:
    assert CallerSockets().known(caller(address)) == caller(address)


def test_a_socket_that_took_anothers_name_is_looked_up(tmp_path: Path) -> None:
    path = tmp_path / "me"
    sockets, who = CallerSockets(), caller(str(path))
    with client(path):
        sockets.remember(sockets.look_up(who))
        assert sockets.known(who) is not None
        path.unlink()
        with client(path):
            assert sockets.known(who) is None


def test_a_filesystem_that_waits_for_a_server_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with client(tmp_path / "me"):
        assert answered(caller(str(tmp_path / "me"))).file is not None
        monkeypatch.setattr(caller_sockets, "_REMOTE", ("",))  # all are
        assert answered(caller(str(tmp_path / "me"))).file is None


def test_what_is_remembered_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(caller_sockets, "MAX_KNOWN", 2)
    sockets = CallerSockets()
    for number in range(5):
        with client(tmp_path / f"{number}"):
            sockets.remember(sockets.look_up(caller(str(tmp_path / f"{number}"))))
    assert len(sockets._known) == 2


def test_an_answer_goes_to_no_other_socket_with_the_same_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The daemon would send to it what its sender may not."""
    theirs, ours = tmp_path / "theirs", tmp_path / "ours"
    for directory in (theirs, ours):
        directory.mkdir()
    control = tmp_path / "control.sock"
    with serving(control), client(ours / "log") as log, client(tmp_path / "me", control) as me:
        monkeypatch.chdir(theirs)
        with client("log") as attacker:
            monkeypatch.chdir(ours)
            for number in range(20):
                attacker.sendto(CALL % number, str(control))
                attacker.sendto(b"<29>forged", str(control))
            assert ask(me, CALL % 1)["id"] == 1
        log.setblocking(False)
        with pytest.raises(BlockingIOError):
            log.recv(1 << 16)


def test_a_look_up_that_does_not_end_holds_up_no_other_client(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also of the same user."""
    hung, ended = threading.Event(), threading.Event()
    look_up = CallerSockets.look_up

    def slow(self: CallerSockets, who: Caller) -> Caller:
        if str(who.address).endswith("hangs"):
            hung.set()
            assert ended.wait(20)
        return look_up(self, who)

    monkeypatch.setattr(CallerSockets, "look_up", slow)
    control = tmp_path / "control.sock"
    with (
        serving(control) as running,
        client(tmp_path / "hangs", control) as first,
        client(tmp_path / "me", control) as me,
    ):
        for number in range(3):
            first.send(CALL % number)
        assert hung.wait(5)
        began = time.monotonic()
        assert ask(me, CALL % 7)["id"] == 7
        assert time.monotonic() - began < 1
        ended.set()
        assert [b'"id":%d' % number in first.recv(1 << 16) for number in range(3)] == [True] * 3
        until(lambda: len(running.server._reception) == 0)


def test_what_waits_for_a_look_up_is_bounded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended = threading.Event()

    def slow(self: CallerSockets, who: Caller) -> Caller:
        assert ended.wait(20)
        return who

    monkeypatch.setattr(CallerSockets, "look_up", slow)
    control = tmp_path / "control.sock"
    with serving(control) as running:
        socks = [client(tmp_path / f"{number}", control) for number in range(80)]
        for sock in socks:
            for _ in range(5):
                sock.send(bytes(60_000))
        until(lambda: len(running.server._reception) == 64)
        visits = running.do(lambda: [*running.server._reception._visits.values()])
        assert len(visits) <= 64
        assert sum(visit.size for visit in visits) <= 64 * (256 << 10)
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as abstract:
            abstract.settimeout(5)
            abstract.bind("")
            abstract.connect(str(control))
            assert ask(abstract, CALL % 3)["id"] == 3
        ended.set()
        for sock in socks:
            sock.close()
