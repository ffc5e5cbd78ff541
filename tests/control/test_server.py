"""The control socket, spoken to as a script would: a plain socket and json."""

from __future__ import annotations

import asyncio
import gc
import json
import os
import pwd
import socket
import struct
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.control.control_stand import (
    CALL,
    HANDLERS,
    INFO,
    ask,
    call,
    client,
    info,
    make_server,
    serving,
)
from tests.support.until import until
from vgpud.control import access as access_module
from vgpud.control import openrpc
from vgpud.control import server as server_module
from vgpud.control.access import AccessList
from vgpud.control.call import Caller, Handlers
from vgpud.control.fitting import MAX_REPLY
from vgpud.control.grants import AccessRule
from vgpud.control.lane import Lane
from vgpud.control.models import DaemonInfo, Done
from vgpud.control.params import Nothing, Paged
from vgpud.control.rpc import MAX_BATCH, ErrorCode, Incoming, decode
from vgpud.control.server import MAX_ANSWERING_EACH, MAX_READ
from vgpud.control.sockets import MAX_MESSAGE
from vgpud.unix.fd import Fd
from vgpud.unix.socket_file import open_socket


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "control.sock"


@pytest.fixture
def script(path: Path, tmp_path: Path) -> Iterator[socket.socket]:
    """A bound socket that is connected to a running server."""
    with serving(path), client(tmp_path / "script.sock", path) as sock:
        yield sock


def test_daemon_info(script: socket.socket) -> None:
    assert ask(script, b'{"jsonrpc": "2.0", "method": "daemon.info", "id": 7}') == {
        "jsonrpc": "2.0",
        "id": 7,
        "result": INFO.model_dump(mode="json"),
    }


@pytest.mark.parametrize(
    ("message", "code"),
    [
        (b"garbage", ErrorCode.PARSE_ERROR),
        (b"", ErrorCode.PARSE_ERROR),
        (b'"' + b"x" * MAX_MESSAGE + b'"', ErrorCode.INVALID_REQUEST),
        (b"[" + b"0," * MAX_BATCH + b"0]", ErrorCode.INVALID_REQUEST),
        (b'{"jsonrpc":"2.0","method":"daemon.info"', ErrorCode.PARSE_ERROR),
        (b'{"method":"daemon.info","id":1}', ErrorCode.INVALID_REQUEST),
        (b'{"jsonrpc":"2.0","method":"nothing","id":1}', ErrorCode.METHOD_NOT_FOUND),
        (b'{"jsonrpc":"2.0","method":"daemon.info","params":[1],"id":1}', ErrorCode.INVALID_PARAMS),
        (b'{"jsonrpc":"2.0","method":"blob.destroy","params":["gpu0",1],"id":1}', ErrorCode.VGPUD),
    ],
)
def test_errors(script: socket.socket, message: bytes, code: ErrorCode) -> None:
    assert ask(script, message)["error"]["code"] == code
    assert "result" in ask(script, b'{"jsonrpc":"2.0","method":"daemon.info","id":1}')


def test_an_error_of_ours_says_of_which_kind(script: socket.socket) -> None:
    error = ask(script, b'{"jsonrpc":"2.0","method":"blob.destroy","params":["gpu0",1],"id":1}')[
        "error"
    ]
    assert error["data"] == {"kind": "host", "errno": 13}
    assert error["message"] == "opening the lid: Permission denied"


def test_a_batch_is_answered_at_once_and_without_its_notifications(script: socket.socket) -> None:
    reply = ask(
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
    script.send(b'{"jsonrpc":"2.0","method":"blob.destroy","params":["gpu0",1]}')
    script.send(b'[{"jsonrpc":"2.0","method":"daemon.info"}]')
    # The next datagram is the answer to the next call.
    assert ask(script, b'{"jsonrpc":"2.0","method":"daemon.info","id":9}')["id"] == 9


def test_ids_that_no_datagram_can_hold_are_an_error(script: socket.socket) -> None:
    # An id goes back as ASCII, three times the size that these two bytes had.
    ids = "é" * 500
    one = json.dumps({"jsonrpc": "2.0", "method": "daemon.info", "id": ids}, ensure_ascii=False)
    batch = ("[" + ",".join([one] * 50) + "]").encode()
    assert len(batch) <= MAX_MESSAGE
    reply = ask(script, batch)
    assert (reply["id"], reply["error"]["data"]["kind"]) == (None, "too-large")


def test_a_description_fits_into_a_datagram(script: socket.socket) -> None:
    script.send(b'{"jsonrpc":"2.0","method":"rpc.discover","id":1}')
    reply = script.recv(1 << 20)
    assert len(reply) <= MAX_REPLY
    assert json.loads(reply)["result"]["openrpc"] == "1.3.2"


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
    assert ask(script, b'{"jsonrpc":"2.0","method":"daemon.info","id":2}')["id"] == 2


def test_descriptors_that_come_with_a_message_are_dropped(script: socket.socket) -> None:
    # Answered once, the server has all the descriptors that it needs.
    ask(script, b'{"jsonrpc":"2.0","method":"daemon.info","id":0}')
    before = len([*Path("/proc/self/fd").iterdir()])
    for number in range(20):
        call = json.dumps({"jsonrpc": "2.0", "method": "daemon.info", "id": number}).encode()
        socket.send_fds(script, [call], [script.fileno()] * 4)
        assert json.loads(script.recv(1 << 20))["id"] == number
    until(lambda: len([*Path("/proc/self/fd").iterdir()]) == before)


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
        script.settimeout(0.9)
        assert ask(script, b'{"jsonrpc":"2.0","method":"daemon.info","id":3}')["id"] == 3


def test_another_user_is_told_what_lets_it_in(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    user, root = os.geteuid(), os.geteuid() == 0
    if root:
        user = 65534  # root may say that it is somebody else
    else:
        monkeypatch.setattr(os, "geteuid", lambda: user + 1)
    closed, opened = AccessList(), AccessList(AccessRule((pwd.getpwuid(user).pw_name,)))
    monkeypatch.undo()
    credentials = struct.pack("=iII", os.getpid(), user, user if root else os.getgid())
    ancillary = [(socket.SOL_SOCKET, socket.SCM_CREDENTIALS, credentials)]
    with serving(path, access=closed) as running, client(tmp_path / "other", path) as other:
        os.chown(tmp_path / "other", user, -1)

        def knock() -> dict[str, Any]:
            other.sendmsg([b'{"jsonrpc":"2.0","method":"daemon.info"}'], ancillary)
            other.sendmsg([CALL % 5], ancillary)
            answer: dict[str, Any] = json.loads(other.recv(1 << 20))
            assert answer["id"] == 5
            return answer

        error = knock()["error"]
        assert (error["data"]["kind"], error["data"]["uid"]) == ("not-allowed", user)
        assert f"uid {user} gid" in error["message"]
        assert "allow_users" in error["message"]
        running.server.access = opened
        assert "result" in knock()
        running.server.access = closed
        assert "error" in knock()


def test_a_flood_from_somebody_else_is_no_bother(path: Path, tmp_path: Path) -> None:
    class OnlyNew(AccessList):
        """Allows callers by the names of their sockets, since a test runs as one user."""

        def allows(self, caller: Caller) -> bool:
            return str(caller.address).endswith("allowed")

    with (
        serving(path, access=OnlyNew()),
        client(tmp_path / "stranger", path) as stranger,
        client(tmp_path / "allowed", path) as allowed,
    ):
        for number in range(3000):
            stranger.send(CALL % number)
            if number % 300 == 0:
                start = time.monotonic()
                assert ask(allowed, CALL % number)["id"] == number
                assert time.monotonic() - start < 0.5
        stranger.setblocking(False)
        told = 0
        while True:
            try:
                assert b"not-allowed" in stranger.recv(1 << 20)
            except BlockingIOError:
                break
            told += 1
        # As many as there was plenty of room for.
        assert 1 <= told < 3000


def test_calls_that_wait_do_not_pile_up(path: Path, tmp_path: Path) -> None:
    async def wait(params: Nothing, caller: Caller) -> Done:
        await asyncio.sleep(60)
        return Done()

    with (
        serving(path, {**HANDLERS, "config.reload": wait}),
        client(tmp_path / "eager", path) as eager,
        client(tmp_path / "other", path) as other,
    ):
        for number in range(MAX_ANSWERING_EACH):
            eager.send(b'{"jsonrpc":"2.0","method":"config.reload","id":%d}' % number)
        error = ask(eager, CALL % 77)
        assert (error["id"], error["error"]["data"]["kind"]) == (77, "busy")
        assert "result" in ask(other, CALL % 1)


def test_long_messages_are_decoded_in_their_senders_turn(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    began: list[float] = []

    def slow(message: bytes, limit: int) -> Incoming:
        if len(message) > MAX_READ:
            began.append(time.thread_time())
            while time.thread_time() < began[-1] + 0.005:
                pass
        return decode(message, limit)

    monkeypatch.setattr(server_module, "decode", slow)
    with serving(path), client(tmp_path / "script", path) as script:
        started = time.monotonic()
        for number in range(10):
            script.send(CALL % number + b" " * MAX_READ)
        assert sorted(json.loads(script.recv(1 << 20))["id"] for _ in range(10)) == [*range(10)]
        # Others have twice as much time as it took to decode what was before the last one.
        assert time.monotonic() - started > 9 * 3 * 0.005 * 0.9


def test_no_more_long_messages_wait_than_calls(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Lane, "_wait", lambda _: 0.2)  # nobody's turn for a while
    with serving(path), client(tmp_path / "script", path) as script:
        for number in range(MAX_ANSWERING_EACH + 1):
            script.send(CALL % number + b" " * MAX_READ)
        error = json.loads(script.recv(1 << 20))
        assert (error["id"], error["error"]["data"]["kind"]) == (None, "busy")
        monkeypatch.undo()
        for _ in range(MAX_ANSWERING_EACH):
            assert "result" in json.loads(script.recv(1 << 20))


@pytest.mark.parametrize("size", [0, MAX_READ])
def test_a_message_that_comes_when_the_server_has_ended_is_dropped(
    path: Path, tmp_path: Path, size: int
) -> None:
    """The look-up of its sender may have taken that long."""
    with serving(path) as running, client(tmp_path / "script", path) as script:
        ask(script, CALL % 1)
    address = str(tmp_path / "script")
    caller = Caller(address, os.getpid(), os.geteuid(), os.getegid())
    running.server._serve(CALL % 2 + b" " * size, caller, False)
    gc.collect()  # a coroutine that nobody awaits is an error of this test
    assert not running.server._working


@pytest.mark.skipif(os.geteuid() != 0, reason="takes root, to be somebody else")
def test_calls_of_one_user_that_wait_leave_room_for_others(path: Path, tmp_path: Path) -> None:
    async def wait(params: Nothing, caller: Caller) -> Done:
        await asyncio.sleep(60)
        return Done()

    access = AccessList(AccessRule(("1000", "1001", "1002")))
    message = b'{"jsonrpc":"2.0","method":"config.reload","id":1}'
    with (
        serving(path, {**HANDLERS, "config.reload": wait}, access) as running,
        client(tmp_path / "root", path) as root,
        ExitStack() as stack,
    ):
        for uid in (1000, 1001, 1002):
            credentials = struct.pack("=iII", os.getpid(), uid, uid)
            for number in range(8):
                sock = stack.enter_context(client(b"\0%d-%d" % (uid, number), path))  # type: ignore[arg-type]
                for _ in range(MAX_ANSWERING_EACH):
                    rights = [(socket.SOL_SOCKET, socket.SCM_CREDENTIALS, credentials)]
                    sock.sendmsg([message], rights)
        assert ask(root, CALL % 1)["id"] == 1
        assert running.do(lambda: dict(running.server._users)) == {1000: 96, 1001: 96}


def test_the_groups_of_subscribers_are_looked_up_again(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    groups = [77]
    monkeypatch.setattr(os, "getgrouplist", lambda name, gid: [gid, *groups])
    monkeypatch.setattr(server_module, "RENEWING", 0.05)
    monkeypatch.setattr(access_module, "FRESH", 0.1)
    access = AccessList(AccessRule(groups=("77",)))
    access._own_user = -1
    with serving(path, access=access) as running, client(tmp_path / "me", path) as me:
        assert "result" in call(me, "events.subscribe")
        time.sleep(0.3)
        assert running.do(lambda: running.server.subscribers) == 1
        groups.clear()
        until(lambda: running.do(lambda: running.server.subscribers) == 0)


def test_the_description_is_not_made_on_the_loop(path: Path, tmp_path: Path) -> None:
    openrpc.document.cache_clear()
    with serving(path) as running, client(tmp_path / "me", path) as me:
        running.do(lambda: None)
        began = running.do(time.thread_time)
        me.send(b'{"jsonrpc":"2.0","method":"rpc.discover","id":1}')
        assert b"openrpc" in me.recv(1 << 20)
        assert running.do(time.thread_time) - began < 0.015


ANSWERS = (
    b'{"jsonrpc":"2.0","id":1,"result":{}}',
    b'{"jsonrpc":"2.0","id":1,"error":{"code":1,"message":"no"}}',
    b'{"result":0}',
)


def messages(taken: list[Incoming | None]) -> list[bytes]:
    """The answers that a sink took, as they came."""
    assert all(answer is not None and answer.answer for answer in taken)
    return [answer.start for answer in taken if answer is not None]


def test_answers_go_to_whoever_waits_for_them_and_are_not_answered(
    path: Path, tmp_path: Path
) -> None:
    callers: list[Caller] = []
    taken: list[Incoming | None] = []

    def attach(params: Nothing, caller: Caller) -> Done:
        callers.append(caller)
        return Done()

    with (
        serving(path, {**HANDLERS, "config.reload": attach}) as running,
        client(tmp_path / "agent", path) as agent,
        client(tmp_path / "other", path) as other,
    ):
        call(agent, "config.reload")
        [caller] = callers
        assert (caller.pid, caller.uid) == (os.getpid(), os.getuid())
        server = running.server
        running.do(lambda: server.replies_from(caller, "gpu0", taken.append))
        for answer in ANSWERS:
            agent.send(answer)
            other.send(answer)
            other.send(b"[" + answer + b"]")
        # Nothing came back but the answers to these.
        assert ask(agent, CALL % 8)["id"] == 8
        assert ask(other, CALL % 9)["id"] == 9
        assert messages(taken) == [*ANSWERS]
        impostor = Caller(caller.address, caller.pid + 1, caller.uid, caller.gid)
        others: list[Incoming | None] = []
        running.do(lambda: server.replies_from(impostor, "gpu0", others.append))
        agent.send(ANSWERS[0])
        assert ask(agent, CALL % 10)["id"] == 10
        running.do(lambda: server.replies_from(caller, "gpu0", None))
        agent.send(ANSWERS[0])
        assert ask(agent, CALL % 11)["id"] == 11
        assert messages(taken) == [*ANSWERS, ANSWERS[0]]
        assert others == []


def test_a_sink_is_ended_by_who_has_it(path: Path, tmp_path: Path) -> None:
    """An address may have gone to another process since."""
    taken: list[Incoming | None] = []
    with serving(path) as running, client(tmp_path / "agent", path) as agent:
        caller = Caller(str(tmp_path / "agent"), os.getpid(), os.getuid(), os.getgid())
        former = Caller(caller.address, caller.pid + 1, caller.uid, caller.gid)
        running.do(lambda: running.server.replies_from(former, "gpu0", taken.append))
        running.do(lambda: running.server.replies_from(caller, "gpu0", taken.append))
        running.do(lambda: running.server.replies_from(former, "gpu0", None))
        agent.send(ANSWERS[0])
        assert ask(agent, CALL % 1)["id"] == 1
        assert messages(taken) == [ANSWERS[0]]


def test_a_sink_that_fails_is_its_own_problem(path: Path, tmp_path: Path) -> None:
    def fail(answer: Incoming | None) -> None:
        raise RuntimeError

    with serving(path) as running, client(tmp_path / "agent", path) as agent:
        caller = Caller(str(tmp_path / "agent"), os.getpid(), os.getuid(), os.getgid())
        running.do(lambda: running.server.replies_from(caller, "gpu0", fail))
        agent.send(ANSWERS[0])
        assert ask(agent, CALL % 1)["id"] == 1


def test_a_descriptor_comes_with_the_answer(script: socket.socket) -> None:
    with open(call_with_fd(script), "rb") as picture:
        picture.seek(0)
        assert picture.read() == b"\x89PNG"


def test_what_is_sent_to_an_agent_carries_a_descriptor(path: Path, tmp_path: Path) -> None:
    address = str(tmp_path / "agent")
    with (
        serving(path) as running,
        client(address, path) as agent,
        Fd(os.memfd_create("ram", os.MFD_CLOEXEC)) as ram,
    ):
        file = open_socket(address, os.geteuid())
        me = Caller(address, os.getpid(), os.geteuid(), os.getegid(), file=file)
        running.do(lambda: running.server.send(me, b"{}", ram))
        message, fds, _, _ = socket.recv_fds(agent, 1 << 20, 4)
        assert message == b"{}"
        [fd] = fds
        assert os.path.sameopenfile(fd, ram.fileno())
        os.close(fd)
        with pytest.raises(FileNotFoundError):
            running.do(lambda: running.server.send(replace(me, file=None), b"{}"))


def test_every_call_is_answered_though_nothing_is_read_yet(path: Path, tmp_path: Path) -> None:
    """With what it asked for, or with the word that this was too much at once."""

    def long(params: Paged, caller: Caller) -> DaemonInfo:
        return INFO.model_copy(update={"version": "x" * 60_000})

    handlers: Handlers = {"daemon.info": info, "device.list": long}
    with serving(path, handlers) as running, client(tmp_path / "eager", path) as eager:
        for number in range(MAX_ANSWERING_EACH):
            eager.send(b'{"jsonrpc":"2.0","method":"device.list","id":%d}' % number)
        running.do(lambda: None)
        replies = [json.loads(eager.recv(1 << 20)) for _ in range(MAX_ANSWERING_EACH)]
        assert sorted(reply["id"] for reply in replies) == [*range(MAX_ANSWERING_EACH)]
        kinds = {reply["error"]["data"]["kind"] for reply in replies if "error" in reply}
        assert kinds <= {"busy"}
        assert sum("result" in reply for reply in replies) >= 4
        assert ask(eager, CALL % 99)["result"]["version"] == "1.2.3"


def call_with_fd(sock: socket.socket) -> int:
    sock.send(b'{"jsonrpc":"2.0","method":"device.screenshot","params":["gpu0"],"id":1}')
    message, fds, _, _ = socket.recv_fds(sock, 1 << 20, 4)
    assert json.loads(message)["result"]["size"] == 4
    [fd] = fds
    return fd


def test_no_descriptor_is_left_where_nobody_takes_it(script: socket.socket, path: Path) -> None:
    """Notifications, batches, senders without a name, names that are gone."""
    shot = b'{"jsonrpc":"2.0","method":"device.screenshot","params":["gpu0"]%s}'
    ask(script, CALL % 1)
    before = len([*Path("/proc/self/fd").iterdir()])
    for _ in range(10):
        script.send(shot % b"")
        [error] = ask(script, b"[" + shot % b',"id":3' + b"]")
        assert error["error"]["data"]["kind"] == "not-possible"
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as nameless:
            nameless.sendto(shot % b',"id":1', str(path))
        with client(b"") as gone:  # type: ignore[arg-type]
            gone.sendto(shot % b',"id":1', str(path))
        error = ask(script, shot % (b',"id":"%s"' % (b"x" * 65450)))
        assert error["error"]["data"]["kind"] == "too-large"
    assert ask(script, CALL % 2)["id"] == 2
    assert len([*Path("/proc/self/fd").iterdir()]) == before


def test_only_methods_that_are_described_can_be_served(path: Path) -> None:
    with make_server(path) as server, pytest.raises(ValueError, match=r"daemon\.sing"):
        server.add({"daemon.sing": HANDLERS["daemon.info"]})
