"""The daemon as a service: what it reports, the sockets that it is passed, and reloads."""

from __future__ import annotations

import os
import signal
import socket
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.managed_daemon import ManagedDaemon
from tests.support.until import PATIENCE
from vgpud.client import Client
from vgpud.control.methods import METHODS
from vgpud.control.rpc import ErrorCode, RpcError

HEAD = '[daemon]\nruntime_dir = "{dir}/run"\n'
ONE = '[[device]]\nname = "one"\nwindow = "1MiB"\n'
TWO = '[[device]]\nname = "two"\nwindow = "1MiB"\n'


@pytest.fixture
def directory() -> Iterator[Path]:
    """A place whose names are short enough for sockets."""
    with tempfile.TemporaryDirectory(prefix="vgpud-", dir="/tmp") as path:
        yield Path(path)


def call(service: ManagedDaemon, method: str) -> Any:
    with Client(service.directory / "run" / "control.sock") as client:
        return client.call(method)


def can_connect(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as front_end:
        return front_end.connect_ex(str(path)) == 0


def closed_by_peer(front_end: socket.socket) -> bool:
    front_end.settimeout(PATIENCE)
    try:
        return front_end.recv(1) == b""
    except ConnectionResetError:
        return True


def listening(path: Path, kind: int = socket.SOCK_STREAM) -> socket.socket:
    """A socket as a service manager opens it."""
    path.parent.mkdir(exist_ok=True)
    sock = socket.socket(socket.AF_UNIX, kind)
    sock.bind(str(path))
    if kind == socket.SOCK_STREAM:
        sock.listen()
    return sock


# What it reports


def test_a_life(directory: Path) -> None:
    with ManagedDaemon(directory, HEAD + ONE + TWO) as service:
        service.until_said(READY="1", STATUS="2 devices, 0 connected")
        with socket.socket(socket.AF_UNIX) as front_end:
            front_end.connect(str(directory / "run" / "one.sock"))
            service.until_said(STATUS="2 devices, 1 connected")
        service.until_said(STATUS="2 devices, 0 connected")
        service.terminate()
        assert service.wait() == 0
        service.listen()
        assert service.said[-1]["STOPPING"] == "1"
        assert [*(directory / "run").iterdir()] == []
        assert service.output.startswith("vgpud ")
        assert len(service.output.splitlines()) == 1
        assert "Traceback" not in service.log


def test_signs_of_life(directory: Path) -> None:
    with ManagedDaemon(directory, HEAD + ONE, watchdog=0.5) as service:
        service.until_said(READY="1")
        for _ in range(3):
            service.until_said(WATCHDOG="1")
        service.send_signal(signal.SIGSTOP)
        service.listen()
        count = len(service.said)
        time.sleep(0.6)
        service.listen()
        assert len(service.said) == count, "a process that stands still gives none"


# Sockets that are passed


def test_activation(directory: Path) -> None:
    run = directory / "run"
    control = listening(run / "control.sock", socket.SOCK_DGRAM)
    one, spare = listening(run / "one.sock"), listening(run / "spare.sock")
    odd, _other = socket.socketpair()
    sockets = [("vgpud.socket", sock) for sock in (control, one, spare)] + [("odd", odd)]
    with control, one, spare, odd, _other, socket.socket(socket.AF_UNIX) as early:
        early.connect(str(run / "one.sock"))  # before there is a daemon
        with ManagedDaemon(directory, HEAD + ONE + TWO, sockets=sockets) as service:
            service.until_said(READY="1")
            service.until_said(STATUS="2 devices, 1 connected")
            info = call(service, "daemon.info")
            assert [device["socket"] for device in info["devices"]] == [
                str(run / "one.sock"),
                str(run / "two.sock"),
            ]
            assert can_connect(run / "two.sock")
            assert "activated socket closed name=odd fd=6: " in service.log
            assert f"unused name=vgpud.socket type=stream address={run}/spare.sock" in service.log
            environment = Path(f"/proc/{service.pid}/environ").read_text()
            assert "LISTEN_FDS=4" in environment  # as it was started, and not as it is
            service.terminate()
            assert service.wait() == 0
        names = {path.name for path in run.iterdir()}
        assert names == {"clients", "control.sock", "one.sock", "spare.sock"}, "two.sock is gone"


def test_a_socket_with_a_devices_name_and_another_address(directory: Path) -> None:
    elsewhere = directory / "elsewhere"
    with (
        listening(elsewhere) as sock,
        ManagedDaemon(directory, HEAD + ONE, sockets=[("one", sock)]) as service,
    ):
        service.until_said(READY="1")
        [device] = call(service, "daemon.info")["devices"]
        assert device["socket"] == str(elsewhere)
        assert can_connect(elsewhere)
        assert not (directory / "run" / "one.sock").exists()


def test_a_device_that_is_added_finds_its_activated_socket(directory: Path) -> None:
    with (
        listening(directory / "run" / "two.sock") as sock,
        ManagedDaemon(directory, HEAD + ONE, sockets=[("x", sock)]) as service,
        socket.socket(socket.AF_UNIX) as early,
    ):
        service.until_said(READY="1")
        early.connect(str(directory / "run" / "two.sock"))
        for _ in range(2):
            service.configure(HEAD + ONE + TWO)
            assert call(service, "config.reload")["applied"] == ["device two: added"]
            service.configure(HEAD + ONE)
            assert call(service, "config.reload")["applied"] == ["device two: removed"]
            assert (directory / "run" / "two.sock").exists()


# What can be called


def test_every_method_is_there(directory: Path) -> None:
    with ManagedDaemon(directory, HEAD + ONE) as service:
        service.until_said(READY="1")
        with Client(directory / "run" / "control.sock") as client:
            missing = []
            for name in METHODS:
                try:
                    client.call(name, {"no such parameter": 0})
                except RpcError as error:
                    if error.code != ErrorCode.INVALID_PARAMS:
                        missing.append((name, str(error)))
            assert missing == []
            assert client.call("device.get", {"device": "one"})["window"] == 1 << 20
            assert "vgpud_info" in client.call("metrics.get")["text"]


def test_events_of_a_reload(directory: Path) -> None:
    with ManagedDaemon(directory, HEAD + ONE) as service:
        service.until_said(READY="1")
        with Client(directory / "run" / "control.sock") as client:
            events = client.events(["device.*", "config.*"])
            service.configure(HEAD + TWO)
            call(service, "config.reload")
            service.configure("x =")
            with pytest.raises(RpcError):
                call(service, "config.reload")
            found = [next(events) for _ in range(4)]
            assert [(event["kind"], event["device"]) for event in found] == [
                ("device.added", "two"),
                ("device.removed", "one"),
                ("config.reloaded", None),
                ("config.rejected", None),
            ]
            assert found[2]["data"]["applied"] == ["device one: removed", "device two: added"]
            [fault] = found[3]["data"]["faults"]
            assert fault.startswith(f"{service.config}: is not TOML: ")


# Reloads


def test_a_signal_has_the_configuration_read_anew(directory: Path) -> None:
    with ManagedDaemon(directory, HEAD + ONE) as service:
        service.until_said(READY="1")
        service.configure(HEAD + ONE + TWO)
        service.send_signal(signal.SIGHUP)
        assert service.until_said(RELOADING="1")["MONOTONIC_USEC"].isdecimal()
        service.until_said(READY="1", STATUS="2 devices, 0 connected")
        assert can_connect(directory / "run" / "two.sock")
        assert "configuration reloaded: device two: added" in service.log


def test_a_bad_configuration_changes_nothing(directory: Path) -> None:
    with ManagedDaemon(directory, HEAD + ONE) as service:
        service.until_said(READY="1")
        before, files = call(service, "daemon.info"), service.idle_files()
        service.configure(HEAD + TWO + "colour = 3\n[[device]]\nname = 'x'\nwindow = 3\n")
        with pytest.raises(RpcError) as caught:
            call(service, "config.reload")
        assert caught.value.data is not None
        for fault in ("colour = 3: unknown key", "window = 3: a size"):
            assert fault in str(caught.value)
            assert f"configuration rejected: {service.config}: " in service.log
            assert fault in service.log
        service.until_said(READY="1", STATUS="1 device, 0 connected; the last reload was rejected")
        after = call(service, "daemon.info")
        assert {**after, "uptime_s": 0} == {**before, "uptime_s": 0}
        assert can_connect(directory / "run" / "one.sock")
        service.until(lambda: "front-end disconnected" in service.log)
        service.until(lambda: service.open_files() == files)
        service.until(lambda: "front-end disconnected" in service.log)
        service.configure(HEAD + ONE)
        assert call(service, "config.reload") == {
            "applied": [],
            "next_connection": [],
            "restart": [],
        }
        service.until_said(READY="1", STATUS="1 device, 0 connected")


def test_what_is_said_of_each_change(directory: Path) -> None:
    with ManagedDaemon(directory, HEAD + ONE, arguments=["--log-level", "warning"]) as service:
        service.until_said(READY="1")
        service.configure(
            '[daemon]\nruntime_dir = "/elsewhere"\nlog_level = "debug"\nallow_groups = ["0"]\n'
            '[[device]]\nname = "one"\nwindow = "2MiB"\nmemory_limit = "64MiB"\n'
        )
        # The socket stays where it is until a restart.
        assert call(service, "config.reload") == {
            "applied": [
                "daemon: allow_groups [] -> [0]",
                "device one: memory_limit 1GiB -> 64MiB",
            ],
            "next_connection": ["device one: window 1MiB -> 2MiB"],
            "restart": [
                "daemon: log_level info -> debug, overridden by --log-level warning",
                f"daemon: runtime_dir {directory}/run -> /elsewhere",
            ],
        }
        assert call(service, "daemon.info")["log_level"] == "warning"


def test_the_log_level_changes_live(directory: Path) -> None:
    with ManagedDaemon(directory, HEAD + 'log_level = "error"\n' + ONE) as service:
        service.until_said(READY="1")
        assert not can_connect(directory / "none")
        service.configure(HEAD + 'log_level = "info"\n' + ONE)
        call(service, "config.reload")
        assert can_connect(directory / "run" / "one.sock")
        service.until(lambda: "front-end connected device=one" in service.log)
        assert call(service, "daemon.info")["log_level"] == "info"


def test_a_device_goes_and_the_others_notice_nothing(directory: Path) -> None:
    run = directory / "run"
    with (
        ManagedDaemon(directory, HEAD + ONE + TWO) as service,
        socket.socket(socket.AF_UNIX) as of_one,
        socket.socket(socket.AF_UNIX) as of_two,
    ):
        service.until_said(READY="1")
        of_one.connect(str(run / "one.sock"))
        of_two.connect(str(run / "two.sock"))
        service.until_said(STATUS="2 devices, 2 connected")
        service.configure(HEAD + TWO)
        assert call(service, "config.reload")["applied"] == ["device one: removed"]
        assert closed_by_peer(of_one)
        assert not (run / "one.sock").exists()
        of_two.settimeout(0.2)
        with pytest.raises(TimeoutError):
            of_two.recv(1)
        info = call(service, "daemon.info")["devices"]
        assert [(device["name"], device["connected"]) for device in info] == [("two", True)]


def test_all_or_nothing_where_a_socket_can_not_be_had(directory: Path) -> None:
    run = directory / "run"
    with ManagedDaemon(directory, HEAD + ONE) as service:
        service.until_said(READY="1")
        files = service.idle_files()
        (run / "three.sock").write_text("precious")
        service.configure(
            HEAD + "allow_users = []\n" + TWO + '[[device]]\nname = "three"\nwindow = "1MiB"\n'
        )
        with pytest.raises(RpcError, match=r"three\.sock exists and is no socket") as caught:
            call(service, "config.reload")
        assert isinstance(caught.value.data, dict)
        assert caught.value.data["kind"] == "config"
        assert not (run / "two.sock").exists()
        assert (run / "three.sock").read_text() == "precious"
        assert [device["name"] for device in call(service, "daemon.info")["devices"]] == ["one"]
        service.until(lambda: service.open_files() == files)
        (run / "three.sock").unlink()
        applied = call(service, "config.reload")["applied"]
        assert applied[1:] == ["device one: removed", "device two: added", "device three: added"]


def test_a_device_of_another_name_takes_over_a_socket(directory: Path) -> None:
    first = '[[device]]\nname = "old"\nsocket = "s"\nwindow = "1MiB"\n'
    with (
        ManagedDaemon(directory, HEAD + first) as service,
        socket.socket(socket.AF_UNIX) as front_end,
    ):
        service.until_said(READY="1")
        path = directory / "run" / "s"
        front_end.connect(str(path))
        service.until_said(STATUS="1 device, 1 connected")
        inode = path.stat().st_ino
        service.configure(HEAD + first.replace("old", "new"))
        applied = call(service, "config.reload")["applied"]
        assert applied == ["device old: removed", "device new: added"]
        assert closed_by_peer(front_end)
        assert path.stat().st_ino == inode
        with socket.socket(socket.AF_UNIX) as another:
            another.connect(str(path))
            service.until_said(STATUS="1 device, 1 connected")
        service.terminate()
        assert service.wait() == 0
        assert not path.exists()


def test_many_reloads_leak_nothing(directory: Path) -> None:
    texts = [HEAD + ONE, HEAD + ONE + TWO, HEAD + TWO, HEAD + "[[device]]\nname = 3\n"]
    with ManagedDaemon(directory, texts[0]) as service:
        service.until_said(READY="1")
        call(service, "config.reload")
        files = service.idle_files()
        for number in range(40):
            service.configure(texts[number % 4])
            with Client(directory / "run" / "control.sock") as client:
                if number % 4 == 3:
                    with pytest.raises(RpcError):
                        client.call("config.reload")
                else:
                    client.call("config.reload")
        service.configure(texts[0])
        call(service, "config.reload")
        service.until(lambda: service.open_files() == files)
        assert "Traceback" not in service.log


def test_reloads_at_the_same_time_come_one_after_the_other(directory: Path) -> None:
    with ManagedDaemon(directory, HEAD + ONE) as service:
        service.until_said(READY="1")
        service.configure(HEAD + ONE + TWO)
        for _ in range(5):
            os.kill(service.pid, signal.SIGHUP)
        answers = [call(service, "config.reload") for _ in range(3)]
        assert all(answer["restart"] == [] for answer in answers)
        service.until_said(READY="1")
        assert service.log.count("device two: added") == 1


@pytest.mark.parametrize("what", ["gone", "fifo", "directory"])
def test_a_file_that_can_not_be_read_again(directory: Path, what: str) -> None:
    with ManagedDaemon(directory, HEAD + ONE) as service:
        service.until_said(READY="1")
        service.config.unlink()
        if what == "fifo":
            os.mkfifo(service.config)
        elif what == "directory":
            service.config.mkdir()
        with pytest.raises(RpcError) as caught:
            call(service, "config.reload")
        assert str(service.config) in str(caught.value)
        assert can_connect(directory / "run" / "one.sock")


def test_slots_in_this_process_take_a_vm_of_this_process(directory: Path) -> None:
    with ManagedDaemon(directory, HEAD + ONE) as service:
        service.until_said(READY="1")
        service.configure(HEAD + ONE + 'slots = "local"\n')
        with pytest.raises(RpcError, match='device one: slots = "local": this process has no VM'):
            call(service, "config.reload")
    with ManagedDaemon(directory, HEAD + ONE + 'slots = "local"\n') as service:
        assert service.wait() == 2
        assert 'device one: slots = "local": this process has no VM' in service.log
