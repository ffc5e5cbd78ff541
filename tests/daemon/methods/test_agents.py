"""Slot agents over the control socket: real sockets, real processes, agents that come and go."""

from __future__ import annotations

import errno
import json
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.support.agent_daemon import FLAG, AgentDaemon
from tests.support.fake_vm import EVERY_FLAG, Asked, FakeVm, accept, refusal
from tests.support.kvm_host import Poker, has_flag, open_kvm
from tests.support.process import Process
from tests.support.until import until
from vgpud.client import Client, SlotAgent
from vgpud.coherency.kvm_mode import KvmMode
from vgpud.control.rpc import RpcError
from vgpud.errors import HostError
from vgpud.memory import memfd
from vgpud.memory.addresses import Gpa
from vgpud.memory.mapping import map_shared
from vgpud.slots.entries import SlotUse
from vgpud.unix.fd import Fd

PAGE = 4096
SIZE = 16 * PAGE
BAR, MOVED = Gpa(0x1_0000_0000), Gpa(0x2_0000_0000)
WINDOW = range(BAR, BAR + SIZE)


@pytest.fixture
def stand(tmp_path: Path) -> Iterator[AgentDaemon]:
    before = descriptors()
    with AgentDaemon(tmp_path / "control.sock") as made:
        yield made
    assert descriptors() == before


@pytest.fixture
def blob() -> Iterator[Fd]:
    with memfd.create("test-blob", SIZE) as fd:
        yield fd


def descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


@contextmanager
def attached(
    stand: AgentDaemon,
    vm: Any,
    numbers: range = range(8, 16),
    window: range | None = WINDOW,
    **more: Any,
) -> Iterator[SlotAgent]:
    with SlotAgent(Client(stand.path), vm, numbers=numbers, window=window, **more) as agent:
        agent.attach("gpu0")
        thread = threading.Thread(target=agent.run)
        thread.start()
        try:
            yield agent
        finally:
            agent.stop()
            thread.join(5)
            assert not thread.is_alive()


def wait_for(stand: AgentDaemon, kind: str) -> None:
    until(lambda: kind in stand.kinds, complaint=lambda: str(stand.kinds))


def error_of(call: Any, *arguments: Any) -> RpcError:
    with pytest.raises(RpcError) as raised:
        call(*arguments)
    return raised.value


def test_a_flagged_slot_is_tried_in_the_agents_own_vm(stand: AgentDaemon) -> None:
    vm = FakeVm()
    with SlotAgent(Client(stand.path), vm, numbers=range(8, 16), window=WINDOW) as agent:
        state = agent.attach("gpu0")
        assert vm.asked == [(8, FLAG, BAR, PAGE), (8, 0, 0, 0)]
        assert (state["flag_accepted"], state["pid"], state["guest_phys_addr"]) == (
            True,
            os.getpid(),
            BAR,
        )
        assert (state["first_slot"], state["slot_count"], state["flags"]) == (8, 8, FLAG)
        assert stand.kinds == ["agent.attached"]


def test_a_flag_that_is_refused_is_told_and_done_without(
    stand: AgentDaemon, blob: Fd, caplog: pytest.LogCaptureFixture
) -> None:
    vm = FakeVm(flags=EVERY_FLAG & ~FLAG)
    with attached(stand, vm):
        state = stand.slots.attached()
        assert state is not None
        assert state.flag_accepted is False
        assert state.finding.mode is not KvmMode.FLAG
        assert stand.kinds == ["slot.refused", "agent.attached"]
        assert stand.events[0].data == {"slot": 8, "flags": FLAG, "errno": errno.EINVAL}
        (line,) = [record.message for record in caplog.records if "refused" in record.message]
        assert line.startswith("slot refused device=gpu0: slot.set slot=8")
        stand.run(stand.slots.map(blob, 0, 0, SIZE))
        assert vm.slots == {8: (0, BAR, SIZE)}


def test_a_vm_may_be_given_by_its_descriptor(stand: AgentDaemon, blob: Fd) -> None:
    """On the real KVM: a guest writes through the slot, and the descriptor stays the VMM's."""
    view = map_shared(blob, SIZE)
    here = range(0x4_0000, 0x4_0000 + SIZE)
    with open_kvm() as kvm:
        poker = Poker(kvm)
        try:
            with attached(stand, poker.vm.fileno(), window=here):
                state = stand.slots.attached()
                assert state is not None
                assert state.flag_accepted is has_flag(kvm)
                stand.run(stand.slots.map(blob, 0, 0, SIZE))
                poker.poke(here.start + 0x1234, 0x42)
                assert view[0x1234] == 0x42
            with pytest.raises(AssertionError):
                poker.poke(here.start, 1)
            os.fstat(poker.vm.fileno())
        finally:
            poker.close()


def test_an_agent_that_grants_no_flag_is_not_asked_for_one(stand: AgentDaemon) -> None:
    vm = FakeVm()
    with attached(stand, vm, flags=0):
        state = stand.slots.attached()
        assert state is not None
        assert (vm.asked, state.flag_accepted) == ([], None)


def test_slots_are_set_moved_and_deleted(stand: AgentDaemon, blob: Fd) -> None:
    vm = FakeVm()
    with attached(stand, vm) as agent:
        stand.run(stand.slots.map(blob, 0, 0, PAGE, flags=FLAG))
        stand.run(stand.slots.map(blob, PAGE, 4 * PAGE, PAGE, flags=FLAG))
        assert vm.slots == {8: (FLAG, BAR, PAGE), 9: (FLAG, BAR + 4 * PAGE, PAGE)}
        state = agent.move(range(MOVED, MOVED + SIZE))
        assert state["guest_phys_addr"] == MOVED
        assert vm.slots == {8: (FLAG, MOVED, PAGE), 9: (FLAG, MOVED + 4 * PAGE, PAGE)}
        agent.move(None)
        assert vm.slots == {}
        agent.move(WINDOW)
        stand.run(stand.slots.unmap(0, PAGE))
        assert vm.slots == {9: (FLAG, BAR + 4 * PAGE, PAGE)}
        agent.detach()
        assert vm.slots == {}
    assert stand.kinds[:3] == ["agent.attached", "slot.set", "slot.set"]
    assert stand.kinds.count("agent.moved") == 3
    assert stand.kinds[-1] == "agent.detached"
    assert stand.events[-1].data["slots"] == [9]
    assert stand.events[1].data == {
        "slot": 8,
        "flags": FLAG,
        "guest_phys_addr": BAR,
        "memory_size": PAGE,
    }


def test_the_flag_is_tried_once_the_bar_has_an_address(stand: AgentDaemon) -> None:
    vm = FakeVm()
    with attached(stand, vm, window=range(0)) as agent:
        assert vm.asked == []
        assert agent.move(WINDOW)["flag_accepted"] is True
        assert vm.asked == [(8, FLAG, BAR, PAGE), (8, 0, 0, 0)]
        agent.move(range(MOVED, MOVED + SIZE))
        assert len(vm.asked) == 2


def test_a_move_that_the_vm_refuses_changes_nothing(stand: AgentDaemon, blob: Fd) -> None:
    vm = FakeVm()
    with attached(stand, vm) as agent:
        stand.run(stand.slots.map(blob, 0, 0, PAGE))

        def once(asked: Asked) -> None:
            if asked.memory_size:
                vm.check = accept  # The daemon puts it back: by then there is room again.
                raise refusal(errno.ENOSPC)

        vm.check = once
        error = error_of(agent.move, range(MOVED, MOVED + SIZE))
        assert error.data["errno"] == errno.ENOSPC
        assert vm.slots == {8: (0, BAR, PAGE)}
        assert agent.window == WINDOW
        state = stand.slots.attached()
        assert state is not None
        assert state.grant.base == BAR


def test_without_an_agent_nothing_is_mapped(stand: AgentDaemon, blob: Fd) -> None:
    with pytest.raises(HostError, match=r"no agent is attached to gpu0: the VMM must call agent"):
        stand.run(stand.slots.map(blob, 0, 0, PAGE))
    assert stand.slots.attached() is None
    stand.run(stand.slots.clear())


def test_what_an_agent_leaves_the_next_one_sets_again(stand: AgentDaemon, blob: Fd) -> None:
    first, second = FakeVm(), FakeVm()
    with attached(stand, first):
        for page in range(3):
            stand.run(stand.slots.map(blob, page * PAGE, page * PAGE, PAGE, flags=FLAG))
        stand.run(stand.slots.unmap(0, PAGE))
    assert len(stand.slots.table) == 2
    assert first.slots == {}
    stand.run(stand.slots.unmap(PAGE, PAGE))  # what is not in any VM can go
    with attached(stand, second, numbers=range(3, 5), window=range(MOVED, MOVED + SIZE)):
        assert second.slots == {3: (FLAG, MOVED + 2 * PAGE, PAGE)}
        stand.run(stand.slots.clear())
        assert second.slots == {}


def test_an_agent_that_can_not_set_what_is_there_is_not_taken(stand: AgentDaemon, blob: Fd) -> None:
    """The guest got `map_info` WC, which must stay true."""
    with attached(stand, FakeVm()):
        for page in range(2):
            stand.run(stand.slots.map(blob, page * PAGE, page * PAGE, PAGE, flags=FLAG))
    vm = FakeVm(flags=EVERY_FLAG & ~FLAG)
    with SlotAgent(Client(stand.path), vm, numbers=range(8, 16), window=WINDOW) as agent:
        assert error_of(agent.attach, "gpu0").data["errno"] == errno.EINVAL
        assert vm.slots == {}
    with SlotAgent(Client(stand.path), FakeVm(), numbers=range(8, 9), window=WINDOW) as agent:
        assert error_of(agent.attach, "gpu0").data["errno"] == errno.ENOSPC
    assert stand.slots.connection is None
    assert len(stand.slots.table) == 2
    with attached(stand, FakeVm()):
        assert len(stand.slots.entries()) == 2


def test_an_agent_may_offer_other_numbers_while_it_is_attached(
    stand: AgentDaemon, blob: Fd
) -> None:
    vm = FakeVm()
    with attached(stand, vm) as agent:
        stand.run(stand.slots.map(blob, 0, 0, PAGE))
        agent._numbers = range(20, 24)
        agent.move(range(MOVED, MOVED + SIZE))
        assert vm.slots == {20: (0, MOVED, PAGE)}


def test_a_slot_outside_of_the_bar_takes_a_grant_of_its_own(stand: AgentDaemon, blob: Fd) -> None:
    vm = FakeVm()
    with attached(stand, vm, ram=[range(0x4000_0000, 0x4001_0000)]):
        ram = SlotUse.RAM
        stand.run(stand.slots.map(blob, 0, 0x4000_0000, PAGE, use=ram))
        assert vm.slots == {8: (0, 0x4000_0000, PAGE)}
        with pytest.raises(HostError, match="leaves the BAR"):
            stand.run(stand.slots.map(blob, PAGE, 0x5000_0000, PAGE, use=ram))
        stand.run(stand.slots.unmap(0x4000_0000, PAGE, use=ram))
        assert vm.slots == {}


@pytest.mark.parametrize(
    ("change", "kind", "words"),
    [
        ({"device": "gpu7"}, "no-device", "gpu7"),
        ({"device": "gpu1"}, "not-possible", 'slots = "agent"'),
        ({"guest_phys_addr": BAR + 1}, "host", "must be page-aligned and below"),
        ({"guest_phys_addr": 1 << 60}, "host", "must be page-aligned and below"),
    ],
)
def test_what_can_not_be_attached(
    stand: AgentDaemon, change: dict[str, Any], kind: str, words: str
) -> None:
    good = {"device": "gpu0", "guest_phys_addr": BAR, "first_slot": 1, "slot_count": 2}
    with Client(stand.path) as client:
        error = error_of(client.call, "agent.attach", good | change)
        assert (error.data["kind"], words in error.message) == (kind, True), error.message
        assert error_of(client.call, "agent.detach", {"device": "gpu0"}).data["kind"] == "no-agent"
    assert stand.kinds == []


def test_slots_beyond_those_that_a_vm_can_have_are_no_offer(stand: AgentDaemon) -> None:
    """The first map there would be a call that can't be made."""
    with Client(stand.path) as client:
        params = {"device": "gpu0", "guest_phys_addr": None, "first_slot": 65535}
        error = error_of(client.call, "agent.attach", {**params, "slot_count": 2})
        assert "slots end at 65536" in str(error)
        client.call("agent.attach", {**params, "slot_count": 1})


def test_a_caller_that_can_not_be_called_back_is_no_agent(stand: AgentDaemon) -> None:
    params = {"device": "gpu0", "guest_phys_addr": None, "first_slot": 1, "slot_count": 1}
    call = {"jsonrpc": "2.0", "method": "agent.attach", "params": params}
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as nameless:
        nameless.sendto(json.dumps(call).encode(), str(stand.path))
    with Client(stand.path) as client:
        client.call("daemon.info")
    assert stand.slots.connection is None


def test_another_socket_of_the_same_process_takes_over(stand: AgentDaemon) -> None:
    with attached(stand, FakeVm()), attached(stand, FakeVm()):
        assert stand.kinds == ["agent.attached", "agent.lost", "agent.attached"]


# -- Agents in processes of their own --------------------------------------------------------------

PROGRAM = """
import sys, threading
from tests.support.fake_vm import FakeVm
from vgpud.client import Client, SlotAgent

path, mode = sys.argv[1:]
def check(asked):
    if asked.memory_size > 4096:
        if mode == "close":
            agent._channel._sock.close()
        print("asked", flush=True)
        threading.Event().wait()
agent = SlotAgent(Client(path), FakeVm(check), numbers=range(1, 9), window=range(1 << 32, 2 << 32))
agent.attach("gpu0")
print("attached", flush=True)
agent.run()
"""


@contextmanager
def agent_process(stand: AgentDaemon, mode: str = "stay") -> Iterator[Process]:
    with Process(sys.executable, "-c", PROGRAM, stand.path, mode) as process:
        process.until_printed("attached\n")
        yield process


def test_an_agent_that_dies_in_the_middle_of_a_map(stand: AgentDaemon, blob: Fd) -> None:
    before = descriptors()
    with agent_process(stand) as process:
        mapping = stand.start(stand.slots.map(blob, 0, 0, SIZE))
        process.until_printed("asked\n")
        start = time.monotonic()
        process.send_signal(signal.SIGKILL)
        with pytest.raises(HostError, match="agent is gone"):
            mapping.result(10)
        assert time.monotonic() - start < 1  # and not at the end of anybody's patience
    assert len(stand.slots.table) == 0
    assert stand.slots.attached() is None
    assert stand.kinds[0] == "agent.attached"
    assert sorted(stand.kinds[1:]) == ["agent.lost", "slot.refused"]
    with pytest.raises(HostError, match=r"no agent is attached.*its process has ended"):
        stand.run(stand.slots.map(blob, 0, 0, SIZE))
    until(lambda: descriptors() <= before)  # the daemon soon forgets its socket
    with attached(stand, FakeVm()):
        stand.run(stand.slots.map(blob, 0, 0, SIZE))


def test_an_agent_that_dies_idle_is_noticed(stand: AgentDaemon) -> None:
    with agent_process(stand) as process:
        process.kill()
        wait_for(stand, "agent.lost")
    assert stand.events[-1].data["pid"] == process.pid


def test_an_agent_that_lives_keeps_others_away(stand: AgentDaemon) -> None:
    with agent_process(stand) as process, Client(stand.path) as client:
        agent = SlotAgent(client, FakeVm(), numbers=range(8, 16), window=WINDOW)
        error = error_of(agent.attach, "gpu0")
        assert error.data == {"kind": "busy", "device": "gpu0", "pid": process.pid}
        error = error_of(client.call, "agent.detach", {"device": "gpu0"})
        assert error.data["kind"] == "busy"


def test_an_agent_that_has_closed_its_socket_does_not(stand: AgentDaemon, blob: Fd) -> None:
    with agent_process(stand, "close") as process:
        mapping = stand.start(stand.slots.map(blob, 0, 0, SIZE))
        process.until_printed("asked\n")
        with attached(stand, FakeVm()):
            with pytest.raises(HostError, match="agent is gone"):
                mapping.result(10)
            assert "agent.lost" in stand.kinds
            stand.run(stand.slots.map(blob, 0, 0, SIZE))


def test_answers_of_others_are_not_the_agents(stand: AgentDaemon, blob: Fd) -> None:
    with agent_process(stand) as process, Client(stand.path) as liar:
        mapping = stand.start(stand.slots.map(blob, 0, 0, SIZE))
        process.until_printed("asked\n")
        for number in range(10):
            answer = {"jsonrpc": "2.0", "id": number, "result": {}}
            liar._send(json.dumps(answer).encode(), time.monotonic() + 1)
        liar.call("daemon.info")
        assert not mapping.done()
        process.kill()
        with pytest.raises(HostError):
            mapping.result(10)


def test_an_agents_run_returns_when_the_daemon_goes(tmp_path: Path) -> None:
    """Though no datagram socket tells."""
    with AgentDaemon(tmp_path / "s") as stand:
        client = Client(stand.path, timeout=1.0)
        agent = SlotAgent(client, FakeVm(), numbers=range(8, 16), window=WINDOW)
        agent.attach("gpu0")
        thread = threading.Thread(target=agent.run)
        thread.start()
    thread.join(15)
    assert not thread.is_alive()
    agent.close()
