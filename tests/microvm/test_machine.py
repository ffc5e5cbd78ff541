"""A guest on the real /dev/kvm: it runs, writes through slots, and its failure is reported."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from tests.microvm.kvm import needs_kvm
from tests.support.fake_vm import Asked, FakeVm, refusal
from vgpud.errors import HostError
from vgpud.memory import memfd
from vgpud.memory.mapping import map_shared
from vgpud.microvm import boot
from vgpud.microvm.guest_code import CHASE_LINES, LINUX_PAT, GuestFailedError, Pat, Program, Samples
from vgpud.microvm.machine import Machine
from vgpud.microvm.slots import NUMBERS, SlotRecorder, SlotWindow
from vgpud.unix.fd import Fd

pytestmark = needs_kvm

SIZE = 64 << 10


@pytest.fixture
def machine() -> Iterator[Machine]:
    with Machine.open() as machine:
        yield machine


@pytest.fixture
def fd() -> Iterator[Fd]:
    with memfd.create("window", SIZE) as fd:
        yield fd


def load(machine: Machine, gpa: int = boot.WINDOW_GPA) -> None:
    """Make the machine ready to measure in a window at `gpa`."""
    machine.load(
        boot.boot_block(
            Program.MEASURE, window_gpa=gpa, window_size=SIZE, width=1, height=1, rounds=0
        )
    )


def chase(page: np.ndarray) -> int:
    """How many different lines the guest's chain through a page has."""
    offsets = page.view("<u8")
    seen: set[int] = set()
    at = 0
    while at not in seen:
        seen.add(at)
        at = int(offsets[at // 8])
    return len(seen)


def test_what_the_guest_writes_is_in_the_file_before_and_after_the_window_moves(
    machine: Machine, fd: Fd
) -> None:
    recorder = SlotRecorder(machine.vm)
    window = SlotWindow(recorder, boot.WINDOW_GPA, SIZE)
    window.map(fd, 0, 0, SIZE)
    file = map_shared(fd, SIZE)
    moved = boot.WINDOW_GPA + (64 << 20)
    for gpa in (boot.WINDOW_GPA, moved):
        if gpa == moved:
            window.move(gpa)
        file[:] = 0
        load(machine, gpa)
        events = list(machine.run())
        assert events[0] == Pat(LINUX_PAT, LINUX_PAT)
        assert isinstance(events[1], Samples)
        assert min(events[1].hit) > 0
        assert chase(file[:4096]) == chase(file[4096:8192]) == CHASE_LINES
        assert not file[8192:].any()
    # Where it was, there is nothing any more.
    load(machine, boot.WINDOW_GPA)
    with pytest.raises(GuestFailedError, match=f"MmioExit.*{boot.WINDOW_GPA}"):
        list(machine.run())
    assert [slot.guest_phys_addr for slot in recorder.history] == [boot.WINDOW_GPA, moved]
    window.close()
    assert not recorder.live


def test_a_guest_that_reads_where_nothing_is_has_failed(machine: Machine) -> None:
    load(machine)
    with pytest.raises(GuestFailedError, match=r"the guest ended at 0x1.*MmioExit"):
        list(machine.run())


def test_the_slots_of_the_window_run_out_and_come_back(machine: Machine, fd: Fd) -> None:
    page = 4096
    recorder = SlotRecorder(machine.vm)
    with memfd.create("many", (len(NUMBERS) + 1) * page) as many:
        window = SlotWindow(recorder, boot.WINDOW_GPA, 1 << 20)
        for index in range(len(NUMBERS)):
            window.map(many, index * page, index * page, page)
        with pytest.raises(HostError, match="No space left"):
            window.map(many, len(NUMBERS) * page, len(NUMBERS) * page, page)
        window.unmap(5 * page, page)
        window.map(many, 5 * page, 20 * page * 2, page)
        assert sorted(recorder.live) == list(NUMBERS)
        window.close()
    assert not recorder.live


@pytest.mark.parametrize(
    ("offset", "length", "number"),
    [(0, 8192, "File exists"), (SIZE, 4096, "Invalid"), (8192, 100, "Invalid")],
)
def test_a_mapping_that_can_not_be_changes_nothing(
    machine: Machine, fd: Fd, offset: int, length: int, number: str
) -> None:
    recorder = SlotRecorder(machine.vm)
    window = SlotWindow(recorder, boot.WINDOW_GPA, SIZE)
    window.map(fd, 4096, 4096, 4096)
    before = dict(recorder.live)
    with pytest.raises(HostError, match=number):
        window.map(fd, 0, offset, length)
    with pytest.raises(HostError):
        window.unmap(4096, 8192)
    assert recorder.live == before
    window.close()


@pytest.mark.parametrize("left", range(2, 6))
def test_a_move_that_fails_half_way_is_undone(fd: Fd, left: int) -> None:
    def check(_: Asked) -> None:
        if len(vm.asked) == left + 1:
            raise refusal(errno.ENOMEM)

    vm = FakeVm(check)
    window = SlotWindow(vm, boot.WINDOW_GPA, SIZE)
    window.map(fd, 0, 0, 4096)
    window.map(fd, 4096, 4096, 4096)
    before = vm.addresses
    with pytest.raises(HostError, match="Cannot allocate memory"):
        window.move(2 * boot.WINDOW_GPA)
    assert vm.addresses == before
    window.move(2 * boot.WINDOW_GPA)
    assert min(vm.addresses.values()) == 2 * boot.WINDOW_GPA
    window.close()


def test_a_machine_leaves_no_descriptor_behind(fd: Fd) -> None:
    def count() -> int:
        return sum(1 for _ in Path("/proc/self/fd").iterdir())

    before = count()
    with Machine.open() as machine:
        window = SlotWindow(SlotRecorder(machine.vm), boot.WINDOW_GPA, SIZE)
        window.map(fd, 0, 0, SIZE)
        load(machine)
        list(machine.run())
        window.close()
        assert count() > before
    assert count() == before
