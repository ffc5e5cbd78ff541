"""A start that fails under socket activation: who waits gets the reason, nothing stays unread."""

from __future__ import annotations

import json
import os
import select
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.support.managed_daemon import ManagedDaemon
from tests.support.until import PATIENCE
from vgpud.client import Client
from vgpud.control.rpc import RpcError
from vgpud.daemon import refusal
from vgpud.daemon.log_limit import LogLimit
from vgpud.errors import ConfigError
from vgpud.unix.activation import Activated
from vgpud.unix.fd import Fd

HEAD = '[daemon]\nruntime_dir = "{dir}/run"\n'
ONE = '[[device]]\nname = "one"\nwindow = "1MiB"\n'
FAULTS = {
    "a typo": (HEAD + ONE + 'memory_limit = "64 parsecs"\n', "64 parsecs"),
    "no TOML": ("[daemon\n", "is not TOML"),
    "a contradiction": (HEAD + ONE + 'slots = "local"\n', "this process has no VM"),
    "a path that is taken": (HEAD + ONE + ONE.replace("one", "taken"), "is no socket"),
    "a directory that can't be made": (
        HEAD + ONE + ONE.replace("one", "two") + 'socket = "/proc/none/two.sock"\n',
        "/proc/none",
    ),
}


class Manager:
    """The sockets as a service manager holds them."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        run = directory / "run"
        run.mkdir()
        (run / "taken.sock").write_text("")
        self.control = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.control.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        self.control.bind(str(run / "control.sock"))
        (run / "control.sock").chmod(0o666)
        self.device = socket.socket(socket.AF_UNIX)
        self.device.bind(str(run / "one.sock"))
        self.device.listen()

    def close(self) -> None:
        self.control.close()
        self.device.close()

    def daemon(self, config: str) -> ManagedDaemon:
        sockets = [("control", self.control), ("one", self.device)]
        return ManagedDaemon(self.directory, config, sockets=sockets)

    def client(self) -> Client:
        return Client(self.directory / "run" / "control.sock", timeout=PATIENCE)

    def connect(self) -> socket.socket:
        front_end = socket.socket(socket.AF_UNIX)
        front_end.settimeout(PATIENCE)
        front_end.connect(str(self.directory / "run" / "one.sock"))
        return front_end

    def served(self) -> socket.socket:
        """Connect until it is not refused: so is who comes while others are being refused."""
        end = time.monotonic() + PATIENCE
        while time.monotonic() < end:
            front_end = self.connect()
            front_end.settimeout(0.2)
            try:
                assert front_end.recv(1) == b""
            except TimeoutError:
                return front_end
            front_end.close()
        raise AssertionError("every connection is refused")

    def waiting(self) -> list[socket.socket]:
        """What would have it start the daemon again."""
        return select.select([self.control, self.device], [], [], 0)[0]


@pytest.fixture
def manager() -> Iterator[Manager]:
    with tempfile.TemporaryDirectory(prefix="vgpud-", dir="/tmp") as path:
        made = Manager(Path(path))
        yield made
        made.close()


def refused(client: Client) -> RpcError:
    with pytest.raises(RpcError) as caught:
        client.call("daemon.info")
    return caught.value


@pytest.mark.parametrize("name", FAULTS)
def test_who_waits_is_answered_and_nothing_is_left(manager: Manager, name: str) -> None:
    config, words = FAULTS[name]
    with ExitStack() as stack:
        front_ends = [stack.enter_context(manager.connect()) for _ in range(3)]
        clients = [stack.enter_context(manager.client()) for _ in range(3)]
        daemon = manager.daemon(config)
        errors: list[RpcError] = []
        callers = [
            threading.Thread(target=lambda each=client: errors.append(refused(each)))
            for client in clients
        ]
        for caller in callers:
            caller.start()
        with daemon:
            for caller in callers:
                caller.join()
            for front_end in front_ends:
                assert front_end.recv(1) == b""
            assert daemon.wait() in {1, 2}
            assert [words in error.message for error in errors] == [True] * 3
            assert words in daemon.log
            assert "Traceback" not in daemon.log
    assert manager.waiting() == []


def test_the_next_call_is_served_once_the_file_is_right(manager: Manager) -> None:
    with manager.client() as client, manager.daemon(HEAD + ONE + "colour = 3\n") as daemon:
        for _ in range(20):
            error = refused(client)
            assert "colour = 3" in error.message
            assert error.data == {"kind": "config"}
        daemon.configure(HEAD + ONE)
        with manager.served():
            daemon.until_said(STATUS="1 device, 1 connected")
        assert client.call("daemon.info")["pid"] == daemon.pid
        assert daemon.log.count("colour = 3") == 1, "once, and not for each call"
        daemon.terminate()
        assert daemon.wait() == 0


def test_the_next_front_end_is_served_once_the_file_is_right(manager: Manager) -> None:
    with manager.daemon("x =") as daemon:
        with manager.connect() as refused_one:
            assert refused_one.recv(1) == b""
        daemon.configure(HEAD + ONE)
        with manager.served():
            daemon.until_said(STATUS="1 device, 1 connected")


def test_without_callers_it_ends_soon(manager: Manager) -> None:
    with manager.daemon("x =") as daemon:
        assert daemon.wait() == 2


ASK = """
import os, socket, sys
os.setgroups([]), os.setgid(65534), os.setuid(65534)
with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
    sock.bind(f"{sys.argv[1]}/client")
    sock.sendto(b'{"jsonrpc":"2.0","method":"daemon.info","id":1}', f"{sys.argv[1]}/control.sock")
    sock.settimeout(20)
    print(sock.recv(65536).decode())
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_other_users_are_told_nothing_of_the_file(manager: Manager) -> None:
    for path in (manager.directory, manager.directory / "run"):
        path.chmod(0o777)
    with (
        manager.daemon("secret =") as daemon,
        subprocess.Popen(
            [sys.executable, "-c", ASK, str(manager.directory / "run")],
            stdout=subprocess.PIPE,
            text=True,
        ) as stranger,
    ):
        said, _ = stranger.communicate(timeout=PATIENCE)
        error = json.loads(said)["error"]
        assert error["data"] == {"kind": "host"}
        assert "log" in error["message"]
        assert "TOML" not in error["message"]
        daemon.wait()


def test_a_bug_leaves_nothing_waiting_and_is_not_tried_again(manager: Manager) -> None:
    tries = []

    def start() -> None:
        tries.append(1)
        raise ExceptionGroup("both", [ConfigError("a fault"), ZeroDivisionError()])

    passed = [("control", Fd(os.dup(manager.control.fileno())))]
    with (
        manager.connect() as front_end,
        Activated([*passed, ("one", Fd(os.dup(manager.device.fileno())))]) as activated,
    ):
        with pytest.raises(ExceptionGroup):
            refusal.run(activated, start, lambda: False)
        assert front_end.recv(1) == b""
    assert tries == [1]
    assert manager.waiting() == []


def test_a_daemon_that_has_listened_is_not_started_again(manager: Manager) -> None:
    def start() -> None:
        raise ConfigError("a fault")

    with (
        manager.connect(),
        Activated([("one", Fd(os.dup(manager.device.fileno())))]) as activated,
        pytest.raises(ConfigError),
    ):
        refusal.run(activated, start, lambda: True)
    assert manager.waiting() == []


def test_every_fault_is_logged(manager: Manager, caplog: pytest.LogCaptureFixture) -> None:
    with ExitStack() as stack:
        front_ends: list[socket.socket] = []

        def start() -> None:
            if not front_ends:  # another comes while this one is refused, so that it is tried again
                refused_later = threading.Timer(0.1, lambda: front_ends.append(manager.connect()))
                refused_later.start()
                stack.callback(refused_later.join)
            raise ConfigError("\n".join(f"fault {number}" for number in range(60)))

        limit = LogLimit()
        caplog.handler.addFilter(limit)
        stack.callback(caplog.handler.removeFilter, limit)
        activated = stack.enter_context(Activated([("one", Fd(os.dup(manager.device.fileno())))]))
        with pytest.raises(ConfigError):
            refusal.run(activated, start, lambda: False)
        for front_end in front_ends:
            front_end.close()
    faults = [line for line in caplog.messages if line.startswith("start failed, tried again: ")]
    assert len(faults) == 60
