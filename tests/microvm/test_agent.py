"""The micro-VM as a slot agent: a back-end in another process sets slots in its VM."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import pytest

from tests.microvm.kvm import needs_kvm
from tests.support.back_end_process import BackEndProcess
from tests.support.process import BACK_END
from vgpud.coherency.probes import kvm as probe_kvm
from vgpud.coherency.slot_policy import GuestPat, Layout
from vgpud.microvm.boot import WINDOW_GPA
from vgpud.microvm.guest_code import GuestFailedError
from vgpud.microvm.service import configuration
from vgpud.microvm.vmm import run_front_end
from vgpud.uapi.memslot import SlotFlag

pytestmark = needs_kvm

PROGRAM = (sys.executable, "-m", "tests.microvm.agent_back_end")
FLAG = SlotFlag.NON_COHERENT_DMA


def back_end(layout: Layout = Layout.WINDOW, program: Sequence[str] = PROGRAM) -> BackEndProcess:
    return BackEndProcess(configuration(GuestPat.IGNORED, layout), program=program, with_agent=True)


@pytest.mark.parametrize("program", [PROGRAM, BACK_END], ids=["test program", "vhost-user-vgpu"])
@pytest.mark.parametrize(
    ("layout", "slots"),
    [
        (Layout.WINDOW, [(1, WINDOW_GPA, 1 << 20)]),
        (Layout.PER_BLOB, [(n + 1, WINDOW_GPA + n * 4096, 4096) for n in range(3)]),
    ],
)
def test_the_four_steps_through_an_agent(
    layout: Layout, slots: list[tuple[int, int, int]], program: Sequence[str]
) -> None:
    with back_end(layout, program) as daemon:
        outcome = run_front_end(daemon.connection, agent=daemon.agent, width=16, height=8)
        assert daemon.end() == 0, daemon.log
    assert [(s.slot, s.guest_phys_addr, s.size) for s in outcome.slots] == slots
    assert all(round_.dma.holds for round_ in outcome.rounds)
    assert len(outcome.rounds) == 2


def test_the_flag_is_the_daemons_to_ask_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VGPUD_TEST_SLOT_FLAGS", str(int(FLAG)))
    with back_end() as daemon:
        if probe_kvm.probe().non_coherent_dma_flag:
            outcome = run_front_end(daemon.connection, agent=daemon.agent, width=16, height=8)
            assert [slot.flags for slot in outcome.slots] == [FLAG]
        else:
            # MAP_BLOB fails, with what KVM told the agent in the daemon's log.
            with pytest.raises(GuestFailedError, match="answered 0x1200 to command 0x208"):
                run_front_end(daemon.connection, agent=daemon.agent)
        assert daemon.end() == 0, daemon.log
        assert "Traceback" not in daemon.log


def test_without_an_agent_that_answers_the_guest_gets_an_error() -> None:
    with back_end() as daemon:
        assert daemon.agent is not None
        daemon.agent.close()
        with pytest.raises(GuestFailedError, match="answered 0x1200 to command 0x208"):
            run_front_end(daemon.connection)
        assert daemon.end() == 0, daemon.log
