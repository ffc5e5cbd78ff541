"""Calls that fail or are not answered: the cause, and that what was given up is not done later."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.control.control_stand import HANDLERS, serving
from vgpud.client import Client
from vgpud.client.own_socket import OwnSocket
from vgpud.control.call import Caller, Handlers
from vgpud.control.models import Reloaded
from vgpud.control.params import Nothing
from vgpud.control.rpc import RpcError
from vgpud.errors import HostError


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "control.sock"


class Slow:
    """A method that takes as long as it may."""

    def __init__(self) -> None:
        self.begun, self.given_up = threading.Event(), threading.Event()

    async def __call__(self, params: Nothing, caller: Caller) -> Reloaded:
        self.begun.set()
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            self.given_up.set()
            raise
        raise AssertionError("it was done all the same")

    @property
    def handlers(self) -> Handlers:
        return {**HANDLERS, "config.reload": self}


@contextmanager
def deaf(path: Path, *, reads: bool, answers: str = "") -> Iterator[None]:
    """A daemon that answers one method at most."""
    ended = threading.Event()

    def read() -> None:
        while not ended.is_set():
            try:
                data, address = sock.recvfrom(1 << 16)
            except TimeoutError:
                continue
            call = json.loads(data)
            if call["method"] == answers:
                reply = {"jsonrpc": "2.0", "id": call["id"], "result": {}}
                sock.sendto(json.dumps(reply).encode(), address)

    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(str(path))
        sock.settimeout(0.05)
        thread = threading.Thread(target=read)
        if reads:
            thread.start()
        yield
        ended.set()
        if reads:
            thread.join()


def test_what_takes_too_long_is_given_up_and_said(path: Path) -> None:
    slow = Slow()
    with serving(path, slow.handlers), Client(path) as client:
        with pytest.raises(RpcError) as caught:
            client.call("config.reload", timeout=0.2)
        assert caught.value.data == {"kind": "timed-out"}
        assert "config.reload was not done in 0.2 seconds, and was given up" in str(caught.value)
        assert slow.given_up.wait(5)
        assert client.call("daemon.info")["pid"] == 42


def test_a_client_that_goes_takes_its_call_along(path: Path) -> None:
    slow = Slow()
    with serving(path, slow.handlers) as running:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as script:
            script.bind(str(path.parent / "script"))
            script.sendto(b'{"jsonrpc":"2.0","method":"config.reload","id":1}', str(path))
            assert slow.begun.wait(5)
            time.sleep(1.5)
            assert not slow.given_up.is_set(), "it waits"
        assert slow.given_up.wait(5)
        assert running.do(lambda: len(running.server._working)) == 0


def test_a_time_without_end_is_one(path: Path) -> None:
    with serving(path), Client(path, timeout=1e6) as client:
        assert client.call("daemon.info")["pid"] == 42


def test_a_daemon_that_answers_others(path: Path) -> None:
    """One of a version that does not give up by itself."""
    with (
        deaf(path, reads=True, answers="daemon.info"),
        Client(path) as client,
        pytest.raises(HostError, match="answers other calls, but not yet x: give"),
    ):
        client.call("x", timeout=0.05)


def test_a_daemon_that_does_not_read(path: Path) -> None:
    with (
        deaf(path, reads=False),
        Client(path, timeout=0.05) as client,
        pytest.raises(HostError, match=r"timed out; .* open, but does not read from it"),
    ):
        client.call("daemon.info")


def test_a_daemon_whose_answers_do_not_arrive(path: Path) -> None:
    (path.parent / "clients").mkdir()
    with (
        deaf(path, reads=True),
        Client(path, timeout=0.05) as client,
        pytest.raises(HostError, match=f"at {path.parent}/clients/.*the same directory"),
    ):
        client.call("daemon.info")


def test_a_user_who_may_make_no_file(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: OwnSocket, address: object) -> None:
        if address:
            raise PermissionError(13, "")
        socket.socket.bind(self, "")

    monkeypatch.setattr(OwnSocket, "bind", refuse, raising=False)
    with (
        deaf(path, reads=True),
        pytest.raises(HostError, match=f"can't answer uid {os.geteuid()}, .*allow_users"),
    ):
        Client(path, timeout=0.2)


def test_a_service_that_the_first_call_has_started(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It opens the directory for clients only then."""
    tries: list[object] = []

    def refuse_at_first(self: OwnSocket, address: object) -> None:
        tries.append(address)
        if address and len(tries) < 6:
            raise PermissionError(13, "")
        socket.socket.bind(self, str(address))

    monkeypatch.setattr(OwnSocket, "bind", refuse_at_first, raising=False)
    with deaf(path, reads=True), Client(path, timeout=2) as client:
        assert client._sock.getsockname().startswith(f"{path.parent}/")


def test_a_devices_socket_is_none_for_calls(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as device:
        device.bind(str(path))
        device.listen()
        with pytest.raises(HostError, match="no control socket; a device's socket is for VMMs"):
            Client(path)
