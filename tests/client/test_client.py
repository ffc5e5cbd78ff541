"""The client of the control socket: answers, events and calls told apart; names, users, threads."""

from __future__ import annotations

import array
import json
import os
import socket
import stat
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import pytest

from vgpud.client import Client
from vgpud.control.rpc import RpcError
from vgpud.errors import HostError, PeerError

ROOT = Path(__file__).parents[2]
NOBODY = 65534
T = TypeVar("T", bound=Exception)


class Server:
    """A daemon by hand: what it was asked, and from where."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.sock.bind(str(path))
        self.sock.settimeout(5)

    def asked(self) -> tuple[dict[str, Any], Any]:
        data, address = self.sock.recvfrom(65536)
        call: dict[str, Any] = json.loads(data)
        return call, address

    def say(self, address: Any, value: Any, fds: tuple[int, ...] = ()) -> None:
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        data = value if isinstance(value, bytes) else json.dumps(value).encode()
        self.sock.sendmsg([data], rights, 0, address)

    def answer(self, address: Any, call: dict[str, Any], result: Any, *fds: int) -> None:
        self.say(address, {"jsonrpc": "2.0", "id": call["id"], "result": result}, fds)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    made = Server(tmp_path / "control.sock")
    yield made
    made.sock.close()


@pytest.fixture
def client(server: Server) -> Iterator[Client]:
    with Client(server.path) as made:
        yield made


def aside(work: Callable[[], Any]) -> Callable[[], Any]:
    """Runs it on another thread; call the result to join it and get what it returned."""
    box: list[Any] = []
    thread = threading.Thread(target=lambda: box.append(work()))
    thread.start()

    def join() -> Any:
        thread.join(10)
        assert not thread.is_alive()
        return box[0]

    return join


def failing(kind: type[T], work: Callable[[], Any]) -> Callable[[], T]:
    """The same for work that shall fail: what it raises."""

    def fail() -> T:
        with pytest.raises(kind) as raised:
            work()
        return raised.value

    return aside(fail)


def event(number: int) -> dict[str, Any]:
    return {"jsonrpc": "2.0", "method": "event", "params": {"sequence": number}}


def descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def test_events_and_other_answers_come_between_a_call_and_its_answer(
    server: Server, client: Client
) -> None:
    call = aside(lambda: client.call("daemon.info"))
    asked, address = server.asked()
    server.say(address, event(1))
    server.say(address, {"jsonrpc": "2.0", "id": 99, "result": "of another"})
    server.answer(address, asked, "mine")
    assert call() == "mine"
    listening = aside(lambda: client.events(["slot.*"], "gpu0"))
    asked, address = server.asked()
    assert asked["params"] == {"kinds": ["slot.*"], "device": "gpu0"}
    server.say(address, event(2))
    server.answer(address, asked, {})
    events = listening()
    server.say(address, event(3))
    assert [next(events)["sequence"] for _ in range(3)] == [1, 2, 3]
    events.close()
    assert server.asked()[0] == {
        "jsonrpc": "2.0",
        "method": "events.unsubscribe",
    }


def test_an_idle_subscription_is_renewed_and_ends_with_the_daemon(
    server: Server, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vgpud.client.client.HEARTBEAT", 0.3)
    listening = aside(client.events)
    asked, address = server.asked()
    server.answer(address, asked, {})
    events = listening()
    first = aside(lambda: next(events))
    asked, address = server.asked()  # a heartbeat later
    assert asked["method"] == "events.subscribe"
    server.say(address, event(1))
    server.answer(address, asked, {})
    assert first() == {"sequence": 1}
    server.sock.close()
    with pytest.raises(HostError, match="is the daemon running"):
        next(events)


def test_answers_to_several_threads(server: Server, client: Client) -> None:
    calls = [aside(lambda: client.call("some.method")) for _ in range(4)]
    asked = [server.asked() for _ in calls]
    for call, address in reversed(asked):
        server.answer(address, call, call["id"])
    assert sorted(join() for join in calls) == sorted(call["id"] for call, _ in asked)


def test_a_descriptor_comes_with_an_answer(server: Server, client: Client) -> None:
    before = descriptors()
    with (ROOT / "pyproject.toml").open() as file:
        call = aside(lambda: client.call_with_fd("device.screenshot"))
        asked, address = server.asked()
        server.answer(address, asked, {"size": 1}, file.fileno())
        value, fd = call()
        assert value == {"size": 1}
        assert os.path.samestat(os.fstat(fd.fileno()), os.fstat(file.fileno()))
        assert not os.get_inheritable(fd.fileno())
        fd.close()
        for sent in (0, 2):
            call = failing(PeerError, lambda: client.call_with_fd("x"))
            asked, address = server.asked()
            server.answer(address, asked, {}, *[file.fileno()] * sent)
            assert f"{sent} descriptors" in str(call())
        # One that nobody asked for, with an answer, an event or a call.
        call = aside(lambda: client.call("x"))
        asked, address = server.asked()
        server.say(address, event(1), (file.fileno(),))
        server.say(address, {"jsonrpc": "2.0", "id": 7, "method": "slot.set"}, (file.fileno(),) * 3)
        server.answer(address, asked, {}, file.fileno())
        call()
        assert server.asked()[0]["error"]["code"] == -32601
    assert descriptors() == before


def test_a_listing_is_fetched_to_its_end(server: Server, client: Client) -> None:
    def serve() -> list[Any]:
        seen = []
        for items in ([1, 2], [3], [4, 5]):
            asked, address = server.asked()
            seen.append(asked["params"])
            server.answer(address, asked, {"items": items, "offset": 0, "total": 5})
        return seen

    serving = aside(serve)
    assert list(client.pages("blob.list", {"device": "gpu0"})) == [1, 2, 3, 4, 5]
    assert [params["offset"] for params in serving()] == [0, 2, 3]


@pytest.mark.parametrize("page", [{}, [], None, {"items": 1, "total": 2}])
def test_a_listing_that_is_none(server: Server, client: Client, page: Any) -> None:
    call = failing(PeerError, lambda: list(client.pages("blob.list")))
    asked, address = server.asked()
    server.answer(address, asked, page)
    assert "no page" in str(call())


def test_an_error_without_an_id_is_of_the_call_that_waits(server: Server, client: Client) -> None:
    """Of the one that is so long that a daemon may have refused it unread."""
    short = aside(lambda: client.call("x"))
    asked, address = server.asked()
    call = failing(RpcError, lambda: client.call("x", {"text": "x" * 5000}))
    server.asked()
    error = {"code": -32000, "message": "go away", "data": {"kind": "not-allowed"}}
    server.say(address, {"jsonrpc": "2.0", "id": None, "error": error})
    assert call().data == {"kind": "not-allowed"}
    server.answer(address, asked, "answered all the same")
    assert short() == "answered all the same"


def test_an_answer_without_an_id_is_of_no_call_that_can_be_read(
    server: Server, client: Client
) -> None:
    """Nor are those that another might make a daemon send, without having seen a call."""
    call = aside(lambda: client.call("x"))
    asked, address = server.asked()
    error = {"code": -32700, "message": "not JSON"}
    for number in (None, *range(50)):
        server.say(address, {"jsonrpc": "2.0", "id": number, "error": error})
    server.answer(address, asked, "mine")
    assert call() == "mine"


def test_nobody_else_is_listened_to(server: Server, client: Client) -> None:
    call = aside(lambda: client.call("x"))
    asked, address = server.asked()
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as other, pytest.raises(PermissionError):
        other.sendto(b'{"jsonrpc":"2.0","id":1,"result":"a lie"}', address)
    server.answer(address, asked, "the truth")
    assert call() == "the truth"


def test_what_waits_ends_when_the_client_is_stopped(server: Server, client: Client) -> None:
    call = failing(HostError, lambda: client.call("x", timeout=60))
    server.asked()
    client.stop()
    call()


def test_a_client_that_waits_costs_no_processor(server: Server) -> None:
    with Client(server.path, timeout=0.5) as client:
        start = time.process_time()
        with pytest.raises(HostError, match="timed out"):
            client.call("x")
        assert time.process_time() - start < 0.2


def test_the_directory_for_clients_comes_first(tmp_path: Path, server: Server) -> None:
    (tmp_path / "clients").mkdir()
    with Client(server.path) as client:
        [own] = (tmp_path / "clients").iterdir()
        assert str(own) == client._sock.getsockname()
        assert stat.S_IMODE(own.stat().st_mode) == 0o666  # whatever the umask
    assert [*(tmp_path / "clients").iterdir()] == []


@pytest.mark.skipif(os.geteuid() != 0, reason="takes root, to be somebody else")
@pytest.mark.parametrize("daemon_is_nobody", [False, True])
def test_a_client_of_another_user_is_answered(daemon_is_nobody: bool) -> None:
    """One who may make no file beside the daemon's has a name all the same; and one whose file is
    there, but not the daemon's, is answered by a daemon without privileges."""
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        directory.chmod(0o755)
        _answer_another_user(directory, daemon_is_nobody)


def _answer_another_user(directory: Path, daemon_is_nobody: bool) -> None:
    path = directory / "control.sock"
    server = Server(path)
    path.chmod(0o666)
    program = (
        "import os, sys\nsys.path.insert(0, sys.argv[2])\nfrom vgpud.client.client import Client\n"
        f"{'' if daemon_is_nobody else f'os.setuid({NOBODY})'}\n"
        "with Client(sys.argv[1]) as client: print(client.call('x'))"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program, path, ROOT], stdout=subprocess.PIPE, text=True
    )
    try:
        # Without a file, a client first finds out whether it can be answered.
        for method in ("x",) if daemon_is_nobody else ("daemon.info", "x"):
            asked, address = server.asked()
            assert asked["method"] == method
            named = isinstance(address, str)  # an abstract name is bytes
            assert named == daemon_is_nobody
            if daemon_is_nobody:
                os.seteuid(NOBODY)
            try:
                server.answer(address, asked, "hello")
            finally:
                os.seteuid(0)
        assert process.communicate(timeout=10)[0] == "hello\n"
    finally:
        process.kill()
        process.communicate()
        server.sock.close()
    assert [*directory.iterdir()] == [path]
