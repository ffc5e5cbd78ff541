"""Slots on the real /dev/kvm: a guest that writes through them, what goes wrong."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from tests.support.fake_vm import Asked, FakeVm, refusal
from tests.support.kvm_host import Poker, has_flag
from vgpud.errors import HostError
from vgpud.memory import memfd
from vgpud.memory.mapping import map_shared
from vgpud.slots.memslots import Memslots
from vgpud.slots.slot_mapping import SlotMapping, identify
from vgpud.slots.vm import scratch_slots
from vgpud.uapi.kvm import Cap, Kvm
from vgpud.uapi.memslot import SlotFlag
from vgpud.unix.fd import Fd

PAGE = 4096
BAR = 0x4_0000
MOVED = 0x8_0000
HIGH = 1 << 32
SIZE = 16 * PAGE


@pytest.fixture
def slots(poker: Poker) -> Iterator[Memslots]:
    with Memslots(poker.vm) as made:
        yield made


@pytest.fixture
def window() -> Iterator[Fd]:
    with memfd.create("test-window", SIZE) as fd:
        yield fd


def mappings(name: str) -> int:
    """How many pieces of a memfd this process has mapped."""
    return Path("/proc/self/maps").read_text().count(f"/memfd:{name} ")


def test_a_guest_writes_to_the_file_before_and_after_the_bar_moves(
    poker: Poker, slots: Memslots, window: Fd
) -> None:
    view = map_shared(window, SIZE)
    slots.attach(1, window, 0, SIZE)
    slots.set(1, 0, BAR)
    view[0x1235] = 0x77
    assert poker.poke(BAR + 0x1234, 0x42) == 0x77
    assert view[0x1234] == 0x42

    slots.delete(1)
    slots.set(1, 0, MOVED)
    view[0x2001] = 0x88
    assert poker.poke(MOVED + 0x2000, 0x43) == 0x88
    assert view[0x2000] == 0x43
    with pytest.raises(AssertionError):  # an MMIO exit: nothing is there any more
        poker.poke(BAR + 0x1234, 0x44)
    assert view[0x1234] == 0x42


def test_a_slot_has_the_part_of_the_file_that_was_asked_for(
    poker: Poker, slots: Memslots, window: Fd
) -> None:
    slots.attach(1, window, 3 * PAGE, PAGE)
    slots.set(1, 0, BAR)
    view = map_shared(window, SIZE)
    window.close()  # the mapping has it
    poker.poke(BAR + 1, 0x51)
    assert np.flatnonzero(view).tolist() == [3 * PAGE + 1]


def test_the_memory_of_a_slot_keeps_no_file_open(window: Fd) -> None:
    before = len(list(Path("/proc/self/fd").iterdir()))
    mapping = SlotMapping(window, 0, SIZE)
    assert len(list(Path("/proc/self/fd").iterdir())) == before
    mapping.close()


def test_all_slots_of_the_vm_are_taken_and_come_back(kvm: Kvm, window: Fd) -> None:
    numbers = range(kvm.check_extension(Cap.NR_MEMSLOTS))
    assert len(numbers) > 32
    with scratch_slots() as slots:
        for slot in range(numbers.stop + 1):
            # Every other page, so that no two of them are one mapping of this process.
            slots.attach(slot, window, slot % 2 * PAGE, PAGE)
        for slot in numbers:
            slots.set(slot, 0, HIGH + 2 * slot * PAGE)
        with pytest.raises(HostError, match="a slot number beyond KVM_CAP_NR_MEMSLOTS"):
            slots.set(numbers.stop, 0, HIGH + 2 * numbers.stop * PAGE)
        slots.delete(7)
        with pytest.raises(HostError, match="another slot has some of these"):
            slots.set(7, 0, HIGH + 2 * 9 * PAGE)
        slots.set(7, 0, HIGH + 2 * numbers.stop * PAGE)


def test_the_flag_goes_to_kvm_and_an_einval_comes_back_as_such(kvm: Kvm, window: Fd) -> None:
    flag = SlotFlag.NON_COHERENT_DMA
    with scratch_slots() as slots:
        slots.attach(1, window, 0, SIZE)
        if has_flag(kvm):
            slots.set(1, flag, HIGH)
            slots.delete(1)
        else:
            with pytest.raises(HostError, match="this kernel does not have") as raised:
                slots.set(1, flag, HIGH)
            assert raised.value.errno == errno.EINVAL
        # Either way it may be had without.
        slots.set(1, 0, HIGH)


def test_a_slot_is_deleted_and_unmapped_with_its_owner(kvm: Kvm) -> None:
    with kvm.create_vm() as vm, memfd.create("test-owned", PAGE) as fd:
        for slot in (1, 3):
            with Memslots(vm) as slots:
                slots.attach(slot, fd, 0, PAGE)
                slots.attach(slot + 1, fd, 0, PAGE)
                slots.set(slot, 0, HIGH)  # which would be an overlap, had the other stayed
                assert mappings("test-owned") == 2
            assert mappings("test-owned") == 0


def test_a_slot_has_to_be_deleted_before_its_memory_goes(slots: Memslots, window: Fd) -> None:
    slots.attach(1, window, 0, SIZE)
    with pytest.raises(ValueError, match="slot 1 has its memory already"):
        slots.attach(1, window, 0, SIZE)
    slots.set(1, 0, BAR)
    with pytest.raises(ValueError, match="slot 1 is still set"):
        slots.release(1)
    slots.delete(1)
    slots.delete(1)
    assert 1 in slots
    assert len(slots) == 1
    slots.release(1)
    assert 1 not in slots


@pytest.mark.parametrize(
    ("offset", "length"), [(0, SIZE + PAGE), (SIZE, PAGE), (-PAGE, PAGE), (1 << 62, PAGE)]
)
def test_a_file_that_is_too_short_is_not_mapped(window: Fd, offset: int, length: int) -> None:
    with pytest.raises(HostError, match="the file has 0x10000 bytes only") as raised:
        SlotMapping(window, offset, length)
    assert raised.value.errno == errno.ENXIO


def test_a_file_that_can_not_be_written_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(bytes(PAGE))
    with (
        Fd(os.open(path, os.O_RDONLY)) as fd,
        pytest.raises(HostError, match="must be open for reading and writing"),
    ):
        SlotMapping(fd, 0, PAGE)


def test_two_files_are_told_apart_and_one_is_known_again(window: Fd) -> None:
    with memfd.create("test-other", SIZE) as other, window.dup() as same:
        assert identify(window, 0, SIZE) == identify(same, PAGE, PAGE)
        assert identify(window, 0, SIZE) != identify(other, 0, SIZE)


_FOREIGN = """
import io, sys
from vgpud.errors import HostError
from vgpud.memory import memfd
from vgpud.slots.memslots import Memslots
from vgpud.uapi.kvm import Vm
with (
    memfd.create("foreign", 4096) as fd,
    Vm.from_fd(io.FileIO(int(sys.argv[1]), "r+")) as vm,
    Memslots(vm) as slots,
):
    slots.attach(1, fd, 0, 4096)
    try:
        slots.set(1, 0, 1 << 32)
    except HostError as error:
        print(error.errno, error)
    slots.release(1)
print(open("/proc/self/maps").read().count("/memfd:foreign"))
"""


def test_slots_of_another_processs_vm_are_refused_with_the_remedy(kvm: Kvm) -> None:
    with kvm.create_vm() as vm:
        done = subprocess.run(
            [sys.executable, "-c", _FOREIGN, str(vm.fileno())],
            pass_fds=[vm.fileno()],
            capture_output=True,
            text=True,
            check=True,
        )
    message, left = done.stdout.splitlines()
    assert message.startswith(f"{errno.EIO} KVM_SET_USER_MEMORY_REGION slot=1")
    assert "the VM belongs to another process" in message
    assert 'use slots = "agent"' in message
    assert left == "0"


def keep_slots(asked: Asked) -> None:
    """The check of a VM whose slots stay."""
    if asked.memory_size == 0:
        raise refusal(errno.EIO)


def test_memory_that_a_guest_may_still_reach_stays_mapped(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with memfd.create("test-reached", PAGE) as fd, Memslots(FakeVm(keep_slots)) as slots:
        slots.attach(1, fd, 0, PAGE)
        slots.attach(2, fd, 0, PAGE)
        slots.set(1, 0, HIGH)
        with pytest.raises(HostError):
            slots.delete(1)
    assert mappings("test-reached") == 1
    assert "slot not deleted slot=1" in caplog.text
    assert len(slots) == 0


def test_a_window_of_zeros_reads_as_such_for_the_guest(
    poker: Poker, slots: Memslots, window: Fd
) -> None:
    slots.attach(1, window, 0, SIZE)
    slots.set(1, 0, BAR)
    view = map_shared(window, SIZE)
    poker.poke(BAR, 0xFF)
    assert view[0] == 0xFF
    memfd.punch_hole(window, 0, SIZE)
    assert poker.poke(BAR + 1, 1) == 0
    assert np.flatnonzero(view).tolist() == [1]
