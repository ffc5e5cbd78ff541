"""The slot agent against daemons whose requests are forbidden or malformed."""

from __future__ import annotations

import array
import errno
import json
import os
import socket
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.support.fake_vm import Asked, FakeVm, accept, refusal
from vgpud.client.slot_agent import SlotAgent
from vgpud.memory import memfd
from vgpud.unix import eventfd
from vgpud.unix.fd import Fd

PAGE = 4096
BAR = 1 << 32
SIZE = 16 * PAGE
GOOD = {
    "slot": 3,
    "flags": 8,
    "guest_phys_addr": BAR,
    "memory_size": PAGE,
    "fd_offset": PAGE,
    "prot": 3,
}


def refuse(_: Asked) -> None:
    """The check of a VM that refuses whatever it is asked."""
    raise refusal(errno.EEXIST, "free it")


class Daemon:
    """Asks an agent that is served step by step."""

    def __init__(self) -> None:
        self.vm = FakeVm()
        self.sock, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.agent = SlotAgent(theirs, self.vm, numbers=range(2, 6), window=range(BAR, BAR + SIZE))

    def send(self, data: bytes, fds: Sequence[int] = ()) -> Any:
        """What is answered; None if nothing."""
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        self.sock.sendmsg([data], rights)
        assert self.agent.serve_one()
        self.sock.setblocking(False)  # it was answered before this
        try:
            return json.loads(self.sock.recv(65536))
        except BlockingIOError:
            return None

    def call(self, method: str, params: object, fds: Sequence[int] = ()) -> Any:
        call = {"jsonrpc": "2.0", "id": 1, "method": method, "params": params}
        return self.send(json.dumps(call).encode(), fds)

    def close(self) -> None:
        self.agent.close()
        self.sock.close()


@pytest.fixture
def daemon() -> Iterator[Daemon]:
    made = Daemon()
    yield made
    made.close()


@pytest.fixture
def blob() -> Iterator[Fd]:
    with memfd.create("test-agent-blob", 4 * PAGE) as fd:
        yield fd


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def mappings() -> int:
    return Path("/proc/self/maps").read_text().count("/memfd:test-agent-blob ")


def test_a_slot_is_set_and_deleted(daemon: Daemon, blob: Fd) -> None:
    before = open_files()
    answer = daemon.call("slot.set", GOOD, [blob.fileno()])
    assert answer == {"jsonrpc": "2.0", "id": 1, "result": {}}
    assert daemon.vm.slots == {3: (8, BAR, PAGE)}
    assert daemon.agent.live[3].model_dump() == GOOD
    assert (open_files(), mappings()) == (before, 1)
    assert daemon.call("slot.delete", {"slot": 3})["result"] == {}
    assert (daemon.vm.slots, daemon.agent.live, mappings()) == ({}, {}, 0)


@pytest.mark.parametrize(
    ("change", "number", "text"),
    [
        ({"slot": 1}, errno.EPERM, "slot 1 is not one of the daemon's range(2, 6)"),
        ({"slot": 6}, errno.EPERM, "slot 6 is not one of the daemon's"),
        ({"flags": 9}, errno.EPERM, "flags 0x9 are not all granted"),
        ({"prot": 1}, errno.EPERM, "prot"),
        ({"guest_phys_addr": BAR - PAGE}, errno.EPERM, "leaves the BAR"),
        ({"guest_phys_addr": BAR + SIZE}, errno.EPERM, "leaves the BAR"),
        ({"memory_size": SIZE + PAGE}, errno.EPERM, "leaves the BAR"),
        ({"memory_size": 4 * PAGE}, errno.ENXIO, "the file has 0x4000 bytes only"),
        ({"fd_offset": 100}, errno.EINVAL, "must be multiples of the file's page size"),
        ({"fd_offset": (1 << 63) - PAGE}, errno.ENXIO, "the file has 0x4000 bytes only"),
    ],
)
def test_what_is_not_granted_is_refused(
    daemon: Daemon, blob: Fd, change: dict[str, int], number: int, text: str
) -> None:
    error = daemon.call("slot.set", GOOD | change, [blob.fileno()])["error"]
    assert error["code"] == -32000
    assert error["data"] == {"kind": "host", "errno": number}
    assert text in error["message"]
    assert (daemon.vm.slots, daemon.agent.live, mappings()) == ({}, {}, 0)


@pytest.mark.parametrize(
    "params",
    [
        {},
        [],
        {**GOOD, "slot": "3"},
        {**GOOD, "slot": 3.0},
        {**GOOD, "slot": True},
        {**GOOD, "slot": -1},
        {**GOOD, "slot": 1 << 16},
        {**GOOD, "flags": 1 << 32},
        {**GOOD, "guest_phys_addr": 1 << 64},
        {**GOOD, "guest_phys_addr": -PAGE},
        {**GOOD, "memory_size": 0},
        {**GOOD, "prot": 7},
        {**GOOD, "fd_offset": 1 << 63},
        {**GOOD, "memory_size": 1 << 63},
        {**GOOD, "more": 1},
        {name: value for name, value in GOOD.items() if name != "prot"},
    ],
)
def test_parameters_that_make_no_sense_are_refused(
    daemon: Daemon, blob: Fd, params: object
) -> None:
    answer = daemon.call("slot.set", params, [blob.fileno()])
    assert answer["error"]["code"] == -32602
    assert daemon.vm.slots == {}


@pytest.mark.parametrize("count", [0, 2, 4])
def test_a_slot_has_one_file(daemon: Daemon, blob: Fd, count: int) -> None:
    before = open_files()
    answer = daemon.call("slot.set", GOOD, [blob.fileno()] * count)
    assert f"{count} descriptors instead of one" in answer["error"]["message"]
    assert open_files() == before


def test_more_files_than_there_is_room_for_are_not_leaked(daemon: Daemon, blob: Fd) -> None:
    before = open_files()
    answer = daemon.call("slot.set", GOOD, [blob.fileno()] * 9)
    assert answer["error"]["message"] == "the datagram was cut off"
    assert open_files() == before


def test_a_file_with_a_delete_is_closed(daemon: Daemon, blob: Fd) -> None:
    before = open_files()
    assert daemon.call("slot.delete", {"slot": 3}, [blob.fileno()])["error"]["data"] == {
        "kind": "host",
        "errno": errno.ENOENT,
    }
    assert open_files() == before


@pytest.mark.parametrize("offset", [0, (1 << 63) - PAGE])
def test_a_file_that_can_not_be_mapped_is_refused(daemon: Daemon, offset: int) -> None:
    with eventfd.create() as event:
        error = daemon.call("slot.set", {**GOOD, "fd_offset": offset}, [event.fileno()])["error"]
    assert error["data"]["errno"] in {errno.ENODEV, errno.EINVAL, errno.EOVERFLOW}
    assert daemon.vm.slots == {}


def test_a_slot_that_is_there_is_not_set_again(daemon: Daemon, blob: Fd) -> None:
    daemon.call("slot.set", GOOD, [blob.fileno()])
    error = daemon.call("slot.set", GOOD, [blob.fileno()])["error"]
    assert error["data"]["errno"] == errno.EEXIST
    assert len(daemon.vm.slots) == 1


def test_what_kvm_refuses_is_unmapped_and_told(daemon: Daemon, blob: Fd) -> None:
    daemon.vm.check = refuse
    error = daemon.call("slot.set", GOOD, [blob.fileno()])["error"]
    assert error["message"] == "KVM_SET_USER_MEMORY_REGION: File exists; free it"
    assert error["data"]["errno"] == errno.EEXIST
    assert (daemon.agent.live, mappings()) == ({}, 0)
    daemon.vm.check = accept
    assert "result" in daemon.call("slot.set", GOOD, [blob.fileno()])


def test_a_slot_that_kvm_does_not_let_go_stays(daemon: Daemon, blob: Fd) -> None:
    daemon.call("slot.set", GOOD, [blob.fileno()])
    daemon.vm.check = refuse
    assert "error" in daemon.call("slot.delete", {"slot": 3})
    assert (list(daemon.agent.live), mappings()) == ([3], 1)
    daemon.vm.check = accept
    assert "result" in daemon.call("slot.delete", {"slot": 3})


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (b"hello", -32700),
        (b"\xff" * 100, -32700),
        (b"[]", -32600),
        (b'{"id":1}', -32600),
        (b'{"jsonrpc":"2.0","id":1,"method":"slot.list"}', -32601),
        (b'[{"jsonrpc":"2.0","id":1,"method":"slot.delete","params":{"slot":3}}]', -32600),
        (b"x" * (64 << 10) + b"x", -32600),
    ],
)
def test_nonsense_is_answered(daemon: Daemon, data: bytes, code: int) -> None:
    answer = daemon.send(data)
    assert answer["error"]["code"] == code


def test_a_notification_is_done_and_not_answered(daemon: Daemon, blob: Fd) -> None:
    call = {"jsonrpc": "2.0", "method": "slot.set", "params": GOOD}
    assert daemon.send(json.dumps(call).encode(), [blob.fileno()]) is None
    assert list(daemon.vm.slots) == [3]


def test_what_is_still_set_goes_with_the_agent(blob: Fd) -> None:
    daemon = Daemon()
    daemon.call("slot.set", GOOD, [blob.fileno()])
    daemon.close()
    assert (daemon.vm.slots, mappings()) == ({}, 0)


def test_a_daemon_that_is_gone_does_not_end_the_agent(blob: Fd) -> None:
    daemon = Daemon()
    call = {"jsonrpc": "2.0", "id": 1, "method": "slot.delete", "params": {"slot": 3}}
    daemon.sock.send(json.dumps(call).encode())
    daemon.sock.close()
    assert daemon.agent.serve_one()
    daemon.agent.close()


@pytest.mark.parametrize("kind", [socket.SOCK_DGRAM, socket.SOCK_SEQPACKET])
def test_an_agent_is_stopped_from_another_thread(kind: socket.SocketKind) -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, kind)
    with ours, SlotAgent(theirs, FakeVm(), numbers=range(9)) as agent:
        thread = threading.Thread(target=agent.run)
        thread.start()
        agent.stop()
        thread.join(5)
        assert not thread.is_alive()


def test_an_agent_ends_with_a_connection_that_has_an_end() -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.close()
    with SlotAgent(theirs, FakeVm(), numbers=range(9)) as agent:
        agent.run()


def test_descriptors_are_not_inherited(daemon: Daemon, blob: Fd) -> None:
    """Whatever the VMM runs while a call is served does not get the guest's memory."""
    seen: list[bool] = []

    def look(_: Asked) -> None:
        seen.extend(
            os.get_inheritable(int(entry.name))
            for entry in Path("/proc/self/fd").iterdir()
            if entry.exists() and "test-agent-blob" in str(entry.readlink())
        )

    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    with SlotAgent(theirs, FakeVm(look), numbers=range(9)) as agent:
        call = {"jsonrpc": "2.0", "id": 1, "method": "slot.set", "params": GOOD}
        rights = array.array("i", [blob.fileno()])
        ours.sendmsg([json.dumps(call).encode()], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)])
        agent.serve_one()
    ours.close()
    assert seen
    assert not any(seen)
