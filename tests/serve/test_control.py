"""The control socket, spoken to as a script would: a plain socket and json."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import stat
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from vgpud.client import Client
from vgpud.errors import ConfigError, HostError
from vgpud.serve import control
from vgpud.serve.control.server import ControlServer, DaemonInfo, DeviceInfo
from vgpud.wire.rpc import ErrorCode, RpcError

INFO = DaemonInfo(
    version="1.2.3",
    pid=42,
    uptime_s=0.5,
    devices=(DeviceInfo(name="gpu0", socket="/run/gpu0.sock", connected=True),),
)


def _broken() -> DaemonInfo:
    raise HostError("opening the lid", OSError(13, "Permission denied"))


@contextmanager
def serving(path: Path) -> Iterator[None]:
    """A server in a thread with a loop of its own, so that the test may block like any client."""
    ready = threading.Event()
    ends: list[Any] = []

    async def main() -> None:
        with ControlServer(path, {"daemon.info": lambda: INFO, "broken": _broken}) as server:
            task = asyncio.ensure_future(server.run())
            ends.extend([asyncio.get_running_loop(), task])
            ready.set()
            await asyncio.wait([task])
        if not task.cancelled():
            task.result()

    thread = threading.Thread(target=asyncio.run, args=(main(),))
    thread.start()
    assert ready.wait(5)
    try:
        yield
    finally:
        alive = not ends[1].done()
        ends[0].call_soon_threadsafe(ends[1].cancel)
        thread.join(5)
        assert alive
        assert not thread.is_alive()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "control.sock"


@pytest.fixture
def script(path: Path, tmp_path: Path) -> Iterator[socket.socket]:
    """A bound socket that is connected to a running server."""
    with serving(path), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.settimeout(5)
        sock.bind(str(tmp_path / "script.sock"))
        sock.connect(str(path))
        yield sock


def _ask(sock: socket.socket, message: bytes) -> Any:
    sock.send(message)
    return json.loads(sock.recv(1 << 20))


def test_daemon_info(script: socket.socket) -> None:
    assert _ask(script, b'{"jsonrpc": "2.0", "method": "daemon.info", "id": 7}') == {
        "jsonrpc": "2.0",
        "id": 7,
        "result": {
            "version": "1.2.3",
            "pid": 42,
            "uptime_s": 0.5,
            "devices": [{"name": "gpu0", "socket": "/run/gpu0.sock", "connected": True}],
        },
    }


@pytest.mark.parametrize(
    ("message", "code"),
    [
        (b"garbage", ErrorCode.PARSE_ERROR),
        (b"", ErrorCode.PARSE_ERROR),
        (b'"' + b"x" * control.MAX_MESSAGE + b'"', ErrorCode.INVALID_REQUEST),
        (b"[" + b"0," * control.MAX_BATCH + b"0]", ErrorCode.INVALID_REQUEST),
        (b'{"jsonrpc":"2.0","method":"daemon.info"', ErrorCode.PARSE_ERROR),
        (b'{"method":"daemon.info","id":1}', ErrorCode.INVALID_REQUEST),
        (b'{"jsonrpc":"2.0","method":"nothing","id":1}', ErrorCode.METHOD_NOT_FOUND),
        (b'{"jsonrpc":"2.0","method":"daemon.info","params":[1],"id":1}', ErrorCode.INVALID_PARAMS),
        (b'{"jsonrpc":"2.0","method":"broken","id":1}', ErrorCode.VGPUD),
    ],
)
def test_errors(script: socket.socket, message: bytes, code: ErrorCode) -> None:
    assert _ask(script, message)["error"]["code"] == code
    assert "result" in _ask(script, b'{"jsonrpc":"2.0","method":"daemon.info","id":1}')


def test_an_error_of_ours_says_of_which_kind(script: socket.socket) -> None:
    error = _ask(script, b'{"jsonrpc":"2.0","method":"broken","id":1}')["error"]
    assert error["data"] == {"kind": "HostError"}
    assert error["message"] == "opening the lid: Permission denied"


def test_a_batch_is_answered_at_once_and_without_its_notifications(script: socket.socket) -> None:
    reply = _ask(
        script,
        b'[{"jsonrpc":"2.0","method":"daemon.info","id":1},{"jsonrpc":"2.0","method":"daemon.info"},'
        b'{"jsonrpc":"2.0","method":"nothing"},8,{"jsonrpc":"2.0","method":"nothing","id":"b"}]',
    )
    assert [answer["id"] for answer in reply] == [1, None, "b"]
    assert [answer.get("error", {}).get("code") for answer in reply] == [
        None,
        ErrorCode.INVALID_REQUEST,
        ErrorCode.METHOD_NOT_FOUND,
    ]


def test_a_notification_is_not_answered(script: socket.socket) -> None:
    script.send(b'{"jsonrpc":"2.0","method":"broken"}')
    script.send(b'[{"jsonrpc":"2.0","method":"daemon.info"}]')
    # The next datagram is the answer to the next call.
    assert _ask(script, b'{"jsonrpc":"2.0","method":"daemon.info","id":9}')["id"] == 9


def test_a_reply_that_no_datagram_can_hold_is_an_error(script: socket.socket) -> None:
    # An id goes back as ASCII, three times the size that these two bytes had.
    ids = "é" * 500
    call = json.dumps({"jsonrpc": "2.0", "method": "daemon.info", "id": ids}, ensure_ascii=False)
    batch = ("[" + ",".join([call] * 50) + "]").encode()
    assert len(batch) <= control.MAX_MESSAGE
    reply = _ask(script, batch)
    if isinstance(reply, dict):
        assert reply["error"]["code"] == ErrorCode.VGPUD
    else:
        assert len(reply) == 50


def test_clients_without_an_address_or_that_are_gone_do_no_harm(
    script: socket.socket, path: Path, tmp_path: Path
) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as nameless:
        nameless.sendto(b'{"jsonrpc":"2.0","method":"daemon.info","id":1}', str(path))
    gone = tmp_path / "gone.sock"
    for unlink in (True, False):
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
            sock.bind(str(gone))
            sock.sendto(b'{"jsonrpc":"2.0","method":"daemon.info","id":1}', str(path))
            if unlink:
                gone.unlink()
    assert _ask(script, b'{"jsonrpc":"2.0","method":"daemon.info","id":2}')["id"] == 2


def test_descriptors_that_come_with_a_message_are_dropped(script: socket.socket) -> None:
    # Answered once, the server has all the descriptors that it needs.
    _ask(script, b'{"jsonrpc":"2.0","method":"daemon.info","id":0}')
    before = len([*Path("/proc/self/fd").iterdir()])
    for number in range(20):
        call = json.dumps({"jsonrpc": "2.0", "method": "daemon.info", "id": number}).encode()
        socket.send_fds(script, [call], [script.fileno()] * 4)
        assert json.loads(script.recv(1 << 20))["id"] == number
    assert len([*Path("/proc/self/fd").iterdir()]) == before


def test_a_client_that_sends_many_calls_before_it_reads_gets_every_answer(
    script: socket.socket,
) -> None:
    count = 60
    for number in range(count):
        script.send(b'{"jsonrpc":"2.0","method":"daemon.info","id":%d}' % number)
    ids = {json.loads(script.recv(1 << 20))["id"] for _ in range(count)}
    assert ids == set(range(count))


def test_a_client_that_never_reads_does_not_hold_up_another(
    script: socket.socket, path: Path, tmp_path: Path
) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as deaf:
        deaf.settimeout(5)
        deaf.bind(str(tmp_path / "deaf.sock"))
        for number in range(2000):
            call = b'{"jsonrpc":"2.0","method":"daemon.info","id":%d}' % number
            deaf.sendto(call, str(path))
        script.settimeout(0.9 * control.REPLY_PATIENCE)
        assert _ask(script, b'{"jsonrpc":"2.0","method":"daemon.info","id":3}')["id"] == 3


def test_only_the_owner_may_use_the_socket(path: Path) -> None:
    with serving(path):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600


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
            ControlServer(path, {})
        with Client(path) as client:
            assert client.call("daemon.info")["pid"] == 42


def test_a_file_of_another_kind_is_left_alone(path: Path) -> None:
    path.write_text("precious")
    with pytest.raises(ConfigError, match="is no socket"):
        ControlServer(path, {})
    assert path.read_text() == "precious"


def test_closing_leaves_a_successors_file(path: Path) -> None:
    server = ControlServer(path, {})
    path.unlink()
    with ControlServer(path, {}):
        server.close()
        assert path.exists()
    server.close()


def test_no_directory(tmp_path: Path) -> None:
    with pytest.raises(HostError, match=r"control\.sock: No such file.*set daemon\.runtime_dir"):
        ControlServer(tmp_path / "nowhere" / "control.sock", {})


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
            with pytest.raises(HostError, match="denied; it answers to the daemon's own user"):
                Client(path)
        finally:
            os.seteuid(user)


def test_the_client_gives_up_on_a_daemon_that_hangs(path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as hung:
        hung.bind(str(path))
        with Client(path, timeout=0.05) as client, pytest.raises(HostError, match="timed out"):
            client.call("daemon.info")
