"""Two processes: the daemon, and a micro-VM that is its slot agent over the control socket."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.microvm.kvm import needs_kvm
from tests.support.front_end import FrontEnd
from tests.support.kvm_host import Poker, open_kvm
from tests.support.process import ROOT, Process
from tests.support.until import until
from tests.vhost.test_session import MAPPED, make_blob
from tests.vhost.test_session import run as run_command
from vgpud.client import Client, SlotAgent
from vgpud.coherency.probes import kvm as probe_kvm
from vgpud.coherency.slot_policy import GuestPat, Layout, SlotOwner
from vgpud.errors import VgpudError
from vgpud.gpu.wire import commands as c
from vgpud.microvm.boot import WINDOW_GPA
from vgpud.microvm.service import DEVICE, Service, configuration
from vgpud.microvm.slots import NUMBERS
from vgpud.microvm.vmm import Attach, Outcome, run_front_end
from vgpud.uapi.exits import HltExit
from vgpud.uapi.kvm import Kvm, Vm

pytestmark = needs_kvm

FLAG = 8
PAGE, WINDOW = 4096, 1 << 20


@pytest.fixture
def layout() -> Layout:
    return Layout.WINDOW


@pytest.fixture
def service(layout: Layout) -> Iterator[Service]:
    with Service(configuration(GuestPat.AUTO, layout, SlotOwner.AGENT)) as made:
        yield made
        assert made.end() == 0, made.log
        assert "Traceback" not in "".join(made.log)


class Watcher:
    """A second client: what happened, and how the device stood when its first slot was set."""

    def __init__(self, service: Service) -> None:
        self.events: list[dict[str, Any]] = []
        self.device: dict[str, Any] = {}
        self._client = Client(service.control)
        self._coming = self._client.events(device=DEVICE)
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()

    def _watch(self) -> None:
        for event in self._coming:
            self.events.append(event)
            if event["kind"] == "slot.set" and not self.device:
                self.device = self._client.call("device.get", {"device": DEVICE})
            if event["kind"] == "device.disconnected":
                break

    def end(self) -> list[str]:
        """The kinds of all events, once the front-end has gone."""
        self._thread.join(20)
        assert not self._thread.is_alive(), self.events
        self._client.close()
        return [event["kind"] for event in self.events]


def run(service: Service, *, moved: bool = False) -> Outcome:
    attach = Attach(service.control, DEVICE, moved)
    return run_front_end(service.connect(), agent=attach, width=16, height=8)


def descriptors(service: Service) -> int:
    return len(list(Path(f"/proc/{service.pid}/fd").iterdir()))


@pytest.mark.parametrize("layout", Layout)
def test_the_demo_over_the_control_socket(service: Service, layout: Layout) -> None:
    watcher = Watcher(service)
    outcome = run(service)
    kinds = watcher.end()
    assert all(round_.dma.holds for round_ in outcome.rounds)
    assert len(outcome.rounds) == 2
    trials = [event["data"] for event in watcher.events if event["kind"] == "slot.refused"]
    agent = watcher.device["agent"]
    assert (agent["guest_phys_addr"], agent["first_slot"]) == (WINDOW_GPA, NUMBERS.start)
    if probe_kvm.probe().non_coherent_dma_flag:
        assert trials == []
        assert agent["flag_accepted"] is True
        assert [(slot.size, slot.flags) for slot in outcome.trials] == [(PAGE, FLAG)]
    else:
        assert trials == [{"slot": NUMBERS.start, "flags": FLAG, "errno": 22}]
        assert agent["flag_accepted"] is False
        assert agent["kvm_mode"] == watcher.device["kvm_mode"] != "flag"
        assert outcome.trials == ()
        assert {slot.flags for slot in outcome.slots} == {0}
        assert kinds.index("slot.refused") < kinds.index("agent.attached") < kinds.index("slot.set")
        assert "plan.fallback" in kinds
    sizes = [WINDOW] if layout is Layout.WINDOW else [PAGE] * 3
    assert [slot.size for slot in outcome.slots] == sizes
    assert kinds.count("slot.set") == len(sizes)


def test_ctl_tells_what_became_of_the_flag(service: Service) -> None:
    window = range(WINDOW_GPA, WINDOW_GPA + WINDOW)
    with (
        Kvm.open() as kvm,
        kvm.create_vm() as vm,
        Client(service.control) as client,
        SlotAgent(client, vm, numbers=NUMBERS, window=window) as agent,
    ):
        attached = agent.attach(DEVICE)
        command = [sys.executable, "-m", "vgpud", "ctl", "--socket", str(service.control)]
        shown = subprocess.run(
            [*command, "devices", DEVICE], cwd=ROOT, capture_output=True, text=True, check=True
        )
    word = "accepted" if probe_kvm.probe().non_coherent_dma_flag else "refused"
    [line] = [line for line in shown.stdout.splitlines() if line.startswith("agent ")]
    assert f"flags 0x8 ({word})" in line
    assert f"{attached['kvm_mode']}: {attached['reason']}" in line


def test_the_bar_moves_while_blobs_are_mapped(service: Service) -> None:
    watcher = Watcher(service)
    outcome = run(service, moved=True)
    kinds = watcher.end()
    assert all(round_.dma.holds for round_ in outcome.rounds)
    places = [slot.guest_phys_addr for slot in outcome.slots]
    away = WINDOW_GPA + (64 << 20)
    assert places == [WINDOW_GPA, *(away, WINDOW_GPA) * 2]
    assert kinds.count("agent.moved") == 4


SECRET, SECRET_GPA = b"of the first VM's", 0x80000


@contextmanager
def served_agent(service: Service, vm: Vm) -> Iterator[SlotAgent]:
    """An agent that answers the daemon's calls, with the window at `SECRET_GPA`."""
    window = range(SECRET_GPA, SECRET_GPA + WINDOW)
    with SlotAgent(Client(service.control), vm, numbers=range(8, 16), window=window) as agent:
        agent.attach(DEVICE)
        thread = threading.Thread(target=agent.run)
        thread.start()
        try:
            yield agent
        finally:
            agent.stop()
            thread.join()


@pytest.mark.parametrize("layout", Layout)
def test_what_a_vm_had_is_not_set_into_the_next_one(service: Service, layout: Layout) -> None:
    """Neither into an agent that comes after it, nor by one that comes before its front-end."""
    with open_kvm() as kvm, closing(Poker(kvm)) as first, closing(Poker(kvm)) as second:
        with (
            FrontEnd.connect(service.socket_of(DEVICE)).handshake() as front_end,
            served_agent(service, first.vm) as agent,
        ):
            make_blob(front_end, 1, PAGE)
            assert run_command(front_end, c.ResourceMapBlob, 1, 0) == MAPPED
            for at, byte in enumerate(SECRET):
                first.poke(SECRET_GPA + at, byte)
            assert len(agent.live) == 1
        with Client(service.control) as client, served_agent(service, second.vm) as agent:
            until(lambda: not client.call("device.get", {"device": DEVICE})["connected"])
            assert list(client.pages("slot.list")) == []
            assert agent.live == {}
            assert not isinstance(second.run(SECRET_GPA, 0), HltExit)
            with FrontEnd.connect(service.socket_of(DEVICE)).handshake() as front_end:
                make_blob(front_end, 1, PAGE)
                assert run_command(front_end, c.ResourceMapBlob, 1, 0) == MAPPED
                assert {second.poke(SECRET_GPA + at, 0) for at in range(len(SECRET))} == {0}
                assert len(agent.live) == 1
            until(lambda: agent.live == {})


PROGRAM = """
import socket, sys, threading
from pathlib import Path
from vgpud.microvm.slots import SlotRecorder
from vgpud.microvm.vmm import Attach, run_front_end

class Stuck:
    def __init__(self, vm):
        self.vm = vm
    def set_user_memory_region(self, slot, flags, gpa, size, address):
        if size == 1 << 20:
            print("asked", flush=True)
            threading.Event().wait()
        self.vm.set_user_memory_region(slot, flags, gpa, size, address)

made = SlotRecorder.__init__
SlotRecorder.__init__ = lambda self, vm: made(self, Stuck(vm))
control, device = Path(sys.argv[1]), sys.argv[2]
connection = socket.socket(socket.AF_UNIX)
connection.connect(str(control.with_name(device + ".sock")))
run_front_end(connection, agent=Attach(control, device))
"""


def test_a_vmm_that_dies_in_the_middle_of_a_map_leaves_nothing(service: Service) -> None:
    watcher = Watcher(service)
    run(service)  # so that what is made once is there
    watcher.end()
    before = descriptors(service)
    watcher = Watcher(service)
    with Process(sys.executable, "-c", PROGRAM, service.control, DEVICE) as process:
        process.until_printed("asked\n")
    kinds = watcher.end()
    assert "agent.lost" in kinds
    assert "slot.set" not in kinds
    until(lambda: descriptors(service) <= before)
    outcome = run(service)
    assert all(round_.dma.holds for round_ in outcome.rounds)


def test_a_service_that_can_not_start_says_why() -> None:
    with pytest.raises(VgpudError, match=r"nonsense = \{\}: no table of this file"):
        Service("[nonsense]\n")
