"""Events to those who want them, over real sockets."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import struct
import time
from collections import deque
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.control.control_stand import CALL, Running, ask, call, client, serving
from tests.support.until import until
from vgpud.control.access import AccessList
from vgpud.control.call import Caller
from vgpud.control.events import Events
from vgpud.control.fitting import MAX_REPLY
from vgpud.control.grants import AccessGrant, AccessRule
from vgpud.control.models import Subscription
from vgpud.control.outbox import Outbox
from vgpud.control.params import Subscribe
from vgpud.control.sockets import ControlSocket
from vgpud.control.subscriptions import MAX_SUBSCRIBERS, Subscriptions


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "control.sock"


@pytest.fixture
def running(path: Path) -> Iterator[Running]:
    with serving(path) as running:
        yield running


def _event(sock: socket.socket) -> Any:
    message = sock.recv(1 << 20)
    assert len(message) <= MAX_REPLY
    value = json.loads(message)
    assert (value["jsonrpc"], value["method"], "id" in value) == ("2.0", "event", False)
    return value["params"]


@pytest.mark.parametrize("connected", [True, False])
def test_a_subscriber_gets_what_it_asked_for(
    running: Running, path: Path, tmp_path: Path, connected: bool
) -> None:
    with client(tmp_path / "sub", path if connected else None) as sock:
        if not connected:
            sock.sendto(
                b'{"jsonrpc":"2.0","method":"events.subscribe","id":1,'
                b'"params":[["slot.*","gpu.added"],"gpu0"]}',
                str(path),
            )
            reply = json.loads(sock.recv(1 << 20))
        else:
            reply = call(sock, "events.subscribe", kinds=["slot.*", "gpu.added"], device="gpu0")
        assert reply["result"] == {
            "kinds": ["slot.*", "gpu.added"],
            "device": "gpu0",
            "sequence": 0,
        }

        def publish() -> None:
            running.events.publish("slot.set", "one", device="gpu0", resource=5, slot=3)
            running.events.publish("slot.set", "elsewhere", device="gpu1")
            running.events.publish("slot.set", "nowhere")
            running.events.publish("gpu.removed", "of another kind", device="gpu0")
            running.events.publish("gpu.added", "five", device="gpu0")

        running.do(publish)
        first, second = _event(sock), _event(sock)
        assert first.pop("time") <= second.pop("time") <= time.time()
        assert first == {
            "sequence": 1,
            "kind": "slot.set",
            "device": "gpu0",
            "resource": 5,
            "message": "one",
            "data": {"slot": 3},
        }
        assert (second["sequence"], second["message"]) == (5, "five")


def test_subscribing_anew_replaces_and_unsubscribing_ends(
    running: Running, path: Path, tmp_path: Path
) -> None:
    with client(tmp_path / "sub", path) as sock:
        call(sock, "events.subscribe", ["gpu.*"])
        call(sock, "events.subscribe", ["slot.*"])
        assert running.do(lambda: running.server.subscribers) == 1
        running.do(lambda: running.events.publish("gpu.added", ""))
        running.do(lambda: running.events.publish("slot.set", ""))
        assert _event(sock)["sequence"] == 2
        assert call(sock, "events.unsubscribe")["result"] == {"was_subscribed": True}
        running.do(lambda: running.events.publish("slot.set", ""))
        assert call(sock, "events.unsubscribe")["result"] == {"was_subscribed": False}


def test_subscribing_anew_loses_nothing(running: Running, path: Path, tmp_path: Path) -> None:
    """A client that got no event subscribes again while one is being published."""
    with client(tmp_path / "sub", path) as sock:
        call(sock, "events.subscribe")

        def publish() -> None:
            # Its call is read before the loop comes round to the events.
            sock.send(b'{"jsonrpc":"2.0","method":"events.subscribe","id":2}')
            for _ in range(50):
                running.events.publish("slot.set", "")

        running.do(publish)
        sequence, seen = None, list[int]()
        while len(seen) < 50:
            message = json.loads(sock.recv(1 << 20))
            if "result" in message:
                sequence = message["result"]["sequence"]
                assert seen == list(range(1, sequence + 1)), "the first to come has a higher one"
            else:
                seen.append(message["params"]["sequence"])
        assert seen == list(range(1, 51))
        assert sequence is not None


def test_what_happened_before_is_not_sent(running: Running, path: Path, tmp_path: Path) -> None:
    """Also where it is still on its way to others."""
    with client(tmp_path / "old", path) as old, client(tmp_path / "new", path) as new:
        call(old, "events.subscribe")
        message = b'{"jsonrpc":"2.0","method":"events.subscribe","id":1}'

        def publish() -> None:
            # Its call is read before the loop comes round to the events.
            new.send(message)
            for _ in range(50):
                running.events.publish("slot.set", "")

        running.do(publish)
        sequence = json.loads(new.recv(1 << 20))["result"]["sequence"]
        assert sequence == 50
        running.do(lambda: running.events.publish("slot.set", ""))
        assert _event(new)["sequence"] == 51


@pytest.mark.parametrize("kinds", [[], [""], [7], "slot.*", ["x" * 64], ["a"] * 33])
def test_what_is_no_list_of_kinds(
    running: Running, path: Path, tmp_path: Path, kinds: object
) -> None:
    with client(tmp_path / "sub", path) as sock:
        assert call(sock, "events.subscribe", kinds=kinds)["error"]["code"] == -32602


@pytest.mark.parametrize("kinds", [["["], ["[!"], ["[z-a]"], ["\\"], ["*" * 63], ["?*" * 31]])
def test_any_pattern_is_one(running: Running, path: Path, tmp_path: Path, kinds: list[str]) -> None:
    with client(tmp_path / "sub", path) as sock:
        assert "result" in call(sock, "events.subscribe", kinds=kinds)
        start = time.monotonic()
        running.do(lambda: running.events.publish("a" * 40, ""))
        assert time.monotonic() - start < 1


def test_a_subscriber_that_does_not_read_loses_its_subscription(
    running: Running, path: Path, tmp_path: Path
) -> None:
    with client(tmp_path / "deaf", path) as deaf, client(tmp_path / "sub", path) as sock:
        call(sock, "events.subscribe", ["client.*"])
        call(deaf, "events.subscribe")

        def publish() -> None:
            for _ in range(20):
                running.events.publish("slot.set", "x" * 500, device="gpu0")

        end = time.monotonic() + 20
        while running.do(lambda: running.server.subscribers) == 2:
            assert time.monotonic() < end
            running.do(publish)
            time.sleep(0.005)
        event = _event(sock)
        assert event["kind"] == "client.dropped"
        assert event["data"] == {"pid": os.getpid(), "uid": os.getuid()}
        # It can have a new one, once it has read.
        deaf.setblocking(False)
        while True:
            try:
                deaf.recv(1 << 20)
            except BlockingIOError:
                break
        deaf.settimeout(5)
        reply = call(deaf, "events.subscribe")
        while "method" in reply:  # events that were on their way
            reply = json.loads(deaf.recv(1 << 20))
        assert "result" in reply


def test_a_subscriber_that_is_gone_makes_room(running: Running, path: Path, tmp_path: Path) -> None:
    for number in range(2 * MAX_SUBSCRIBERS):
        with client(tmp_path / f"{number}", path) as sock:
            assert "result" in call(sock, "events.subscribe")
    running.do(lambda: running.events.publish("slot.set", ""))
    until(lambda: running.do(lambda: running.server.subscribers) == 0)


def test_there_are_only_so_many(running: Running, path: Path, tmp_path: Path) -> None:
    socks = [client(tmp_path / f"{number}", path) for number in range(MAX_SUBSCRIBERS + 1)]
    *first, last = socks
    for sock in first:
        assert "result" in call(sock, "events.subscribe")
    assert call(last, "events.subscribe")["error"]["data"]["kind"] == "busy"
    assert "result" in call(socks[0], "events.subscribe")
    for sock in socks:
        sock.close()


def test_events_of_any_size(running: Running, path: Path, tmp_path: Path) -> None:
    with client(tmp_path / "sub", path) as sock:
        call(sock, "events.subscribe")

        def publish() -> None:
            running.events.publish("slot.set", "y" * MAX_REPLY, data="x" * MAX_REPLY)
            running.events.publish("slot.set", "cut", data=float("nan"))
            running.events.publish("slot.set", "cut", data=object())
            running.events.publish("slot.set", "last", name="\ud800")

        running.do(publish)
        long = _event(sock)
        assert (long["sequence"], long["data"], set(long["message"])) == (1, {}, {"y"})
        for sequence in (2, 3):
            cut = _event(sock)
            assert (cut["sequence"], cut["message"]) == (sequence, "cut")
        assert _event(sock)["sequence"] == 4


def test_whoever_may_call_no_more_gets_no_more_events(
    running: Running, path: Path, tmp_path: Path
) -> None:
    class Nobody(AccessList):
        def allows(self, caller: Caller) -> bool:
            return False

        def grants_any(self, caller: Caller, grant: AccessGrant) -> bool:
            return False

    with client(tmp_path / "sub", path) as sock:
        call(sock, "events.subscribe")

        def close() -> None:
            running.server.access = Nobody()
            running.events.publish("slot.set", "")

        running.do(close)
        assert running.do(lambda: running.server.subscribers) == 0
        assert ask(sock, CALL % 1)["error"]["data"]["kind"] == "not-allowed"


def test_a_socket_without_a_name_can_not_subscribe(running: Running, path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.sendto(b'{"jsonrpc":"2.0","method":"events.subscribe","id":1}', str(path))
    running.do(lambda: None)
    assert running.do(lambda: running.server.subscribers) == 0


def as_user(sock: socket.socket, uid: int, method: str) -> Any:
    """The answer to a call that root sends as another user."""
    data = json.dumps({"jsonrpc": "2.0", "method": method, "id": 1}).encode()
    credentials = struct.pack("=iII", os.getpid(), uid, os.getgid())
    sock.sendmsg([data], [(socket.SOL_SOCKET, socket.SCM_CREDENTIALS, credentials)])
    return json.loads(sock.recv(1 << 20))


def abstract(path: Path, number: int = 0) -> socket.socket:
    """A client that several users can have."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    sock.settimeout(5)
    sock.bind(b"\0vgpud-test-%d-%d" % (os.getpid(), number))
    sock.connect(str(path))
    return sock


OBSERVERS = AccessList(AccessRule(("1000", "1001", "1002", "0")))
AS_ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="takes root, to be somebody else")


@AS_ROOT
def test_another_user_with_the_same_address_does_not_end_a_subscription(path: Path) -> None:
    with serving(path, access=OBSERVERS) as running, abstract(path) as sock:
        assert "result" in call(sock, "events.subscribe")
        assert as_user(sock, 1000, "events.unsubscribe")["result"] == {"was_subscribed": False}
        assert running.do(lambda: running.server.subscribers) == 1
        assert call(sock, "events.unsubscribe")["result"] == {"was_subscribed": True}


@AS_ROOT
def test_users_leave_places_for_others_and_for_root(path: Path) -> None:
    with serving(path, access=OBSERVERS), ExitStack() as stack:
        counts = dict.fromkeys((1000, 1001, 1002), 0)
        for uid in counts:
            for number in range(MAX_SUBSCRIBERS):
                sock = stack.enter_context(abstract(path, 1000 * uid + number))
                if "error" in as_user(sock, uid, "events.subscribe"):
                    break
                counts[uid] += 1
        assert counts == {1000: 32, 1001: 16, 1002: 0}
        root = stack.enter_context(abstract(path))
        assert "result" in call(root, "events.subscribe")


def test_subscribing_anew_while_an_event_goes_to_others_loses_it_not(
    tmp_path: Path,
) -> None:
    """Nor is it sent twice."""

    async def main() -> None:
        events, sent = Events(), list[tuple[Caller, bytes]]()
        control, _ = ControlSocket.bound(tmp_path / "control.sock")
        subscriptions = Subscriptions(events, control)
        outbox = Outbox(control, subscriptions.drop)
        outbox.send = lambda *what: sent.append(what)  # type: ignore[method-assign]
        handlers = subscriptions.handlers()
        callers = [Caller(b"\0%d" % number, 1, 0, 0) for number in range(3)]
        for caller in callers:
            handlers["events.subscribe"](Subscribe(), caller)
        with control:
            running = asyncio.create_task(subscriptions.run(outbox))
            events.publish("slot.set", "")
            subscriptions._present, subscriptions._sending = 1, deque(callers[1:])
            subscriptions._pending.clear()
            sequences = []
            for caller in callers[:2]:  # one that has had it, and one that has not
                made = handlers["events.subscribe"](Subscribe(), caller)
                assert isinstance(made, Subscription)
                sequences.append(made.sequence)
            running.cancel()
        assert sequences == [1, 0]

    asyncio.run(main())
