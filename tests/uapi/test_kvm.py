"""KVM's slots and events on the real /dev/kvm."""

from __future__ import annotations

import errno
import mmap
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.support.kvm_host import Poker, has_flag
from vgpud.errors import HostError
from vgpud.native.arrays import address_of
from vgpud.uapi.exits import MmioExit
from vgpud.uapi.kvm import Cap, DeviceType, Kvm, Quirk, Vm
from vgpud.uapi.memslot import SlotFlag
from vgpud.unix import eventfd

GPA = 0x1_0000
SIZE = 0x4000


@pytest.fixture
def vm(kvm: Kvm) -> Iterator[Vm]:
    with kvm.create_vm() as created:
        yield created


@pytest.fixture
def memory() -> NDArray[np.uint8]:
    return np.frombuffer(mmap.mmap(-1, SIZE), np.uint8)


def test_kvm_speaks_our_version(kvm: Kvm) -> None:
    assert kvm.api_version == 12
    assert kvm.vcpu_mmap_size >= mmap.PAGESIZE
    assert kvm.check_extension(Cap.NR_MEMSLOTS) > 32
    assert kvm.check_extension(9999) == 0


def test_there_is_no_kvm() -> None:
    with pytest.raises(HostError, match=r"open /nowhere: No such file or directory; no KVM here"):
        Kvm.open("/nowhere")


def test_what_is_not_kvm_is_not_taken_for_it() -> None:
    with pytest.raises(HostError, match="KVM_GET_API_VERSION: Inappropriate ioctl"):
        Kvm.open("/dev/null")


def test_the_vm_outlives_the_subsystem(kvm: Kvm) -> None:
    with kvm.create_vm() as vm:
        kvm.close()
        assert vm.check_extension(Cap.NR_MEMSLOTS) > 32


def test_a_slot_is_made_and_deleted(vm: Vm, memory: NDArray[np.uint8]) -> None:
    vm.set_user_memory_region(1, 0, GPA, SIZE, address_of(memory))
    vm.set_user_memory_region(1, 0, GPA, 0, 0)
    with pytest.raises(HostError) as raised:
        vm.set_user_memory_region(1, 0, GPA, 0, 0)
    assert raised.value.errno == errno.EINVAL


@pytest.mark.parametrize(
    ("slot", "flags", "address", "size", "number", "remedy"),
    [
        (2, 0, GPA + 0x1000, 0x1000, errno.EEXIST, "another slot has some of these"),
        (2, 0, GPA + SIZE + 1, 0x1000, errno.EINVAL, "must be multiples of the page"),
        (2, 0, GPA + SIZE, 0xFFF, errno.EINVAL, "must be multiples of the page"),
        (1 << 15, 0, GPA + SIZE, 0x1000, errno.EINVAL, "a slot number beyond KVM_CAP_NR_MEMSLOTS"),
        (2, 1 << 20, GPA + SIZE, 0x1000, errno.EINVAL, "a flag that this kernel does not have"),
        (1, 2, GPA, SIZE, errno.EINVAL, "delete it and create it again"),
    ],
)
def test_a_slot_that_can_not_be(
    vm: Vm,
    memory: NDArray[np.uint8],
    slot: int,
    flags: int,
    address: int,
    size: int,
    number: int,
    remedy: str,
) -> None:
    vm.set_user_memory_region(1, 0, GPA, SIZE, address_of(memory))
    with pytest.raises(HostError, match=remedy) as raised:
        vm.set_user_memory_region(slot, flags, address, size, address_of(memory))
    assert raised.value.errno == number
    assert f"slot={slot} flags={flags:#x} addr={address:#x}" in str(raised.value)


def test_the_flag_is_taken_or_refused_in_words(kvm: Kvm, vm: Vm, memory: NDArray[np.uint8]) -> None:
    flag = SlotFlag.NON_COHERENT_DMA
    address = address_of(memory)
    if "VGPUD_FLAG" in os.environ:
        # Set where the kernel was built for these tests.
        assert has_flag(kvm) == (os.environ["VGPUD_FLAG"] == "1")
    if not has_flag(kvm):
        with pytest.raises(HostError, match="does not have KVM_MEM_NON_COHERENT_DMA") as raised:
            vm.set_user_memory_region(1, flag, GPA, SIZE, address)
        assert raised.value.errno == errno.EINVAL
        return
    vm.set_user_memory_region(1, flag, GPA, SIZE, address)
    for flags in (0, SlotFlag.LOG_DIRTY_PAGES):
        with pytest.raises(HostError):
            vm.set_user_memory_region(1, flags, GPA, SIZE, address)
    vm.set_user_memory_region(1, flag | SlotFlag.LOG_DIRTY_PAGES, GPA, SIZE, address)
    vm.set_user_memory_region(1, flag, 2 * GPA, SIZE, address)
    vm.set_user_memory_region(1, 0, 0, 0, 0)
    vm.set_user_memory_region(1, 0, GPA, SIZE, address)
    with pytest.raises(HostError, match="or the slot is live without it"):
        vm.set_user_memory_region(1, flag, GPA, SIZE, address)


def test_a_guest_writes_through_a_slot(poker: Poker, memory: NDArray[np.uint8]) -> None:
    poker.vm.set_user_memory_region(1, 0, GPA, SIZE, address_of(memory))
    memory[0x124] = 0x77
    assert poker.poke(GPA + 0x123, 0x42) == 0x77
    assert memory[0x123] == 0x42


@pytest.mark.parametrize("datamatch", [None, 0x42])
def test_a_write_signals_an_eventfd_and_nothing_else(
    poker: Poker, memory: NDArray[np.uint8], datamatch: int | None
) -> None:
    poker.vm.set_user_memory_region(1, 0, GPA, SIZE, address_of(memory))
    with eventfd.create() as event:
        poker.vm.ioeventfd(GPA - 1, 1, event.fileno(), datamatch)
        memory[0] = 0x77
        assert poker.poke(GPA - 1, 0x42) == 0x77
        assert eventfd.drain(event) == 1


def test_a_write_of_another_value_comes_to_us(poker: Poker) -> None:
    with eventfd.create() as event:
        poker.vm.ioeventfd(GPA - 1, 1, event.fileno(), 0x43)
        assert poker.run(GPA - 1, 0x42) == MmioExit(GPA - 1, 1, True, b"\x42")
        assert eventfd.drain(event) == 0


def test_an_eventfd_is_bound_once_and_unbound(vm: Vm) -> None:
    with eventfd.create() as event, eventfd.create() as other:
        vm.ioeventfd(0x10, 2, event.fileno(), 7, pio=True)
        vm.ioeventfd(0x10, 2, other.fileno(), 8, pio=True)
        with pytest.raises(HostError, match=r"KVM_IOEVENTFD port 0x10: .*another eventfd is bound"):
            vm.ioeventfd(0x10, 2, other.fileno(), 7, pio=True)
        vm.ioeventfd(0x10, 2, event.fileno(), 7, pio=True, deassign=True)
        with pytest.raises(HostError, match="no eventfd is bound to this address and value"):
            vm.ioeventfd(0x10, 2, event.fileno(), 7, pio=True, deassign=True)


def test_a_quirk_that_is_not_offered_is_refused(vm: Vm) -> None:
    offered = Quirk(vm.check_extension(Cap.DISABLE_QUIRKS2))
    vm.disable_quirks(Quirk(0))
    if Quirk.IGNORE_GUEST_PAT in offered:
        vm.disable_quirks(Quirk.IGNORE_GUEST_PAT)
    else:
        with pytest.raises(HostError, match="KVM_ENABLE_CAP DISABLE_QUIRKS2: Invalid argument"):
            vm.disable_quirks(Quirk.IGNORE_GUEST_PAT)


def test_whether_there_is_a_device_is_only_asked(vm: Vm) -> None:
    before = open_files()
    assert isinstance(vm.has_device(DeviceType.VFIO), bool)
    assert open_files() == before


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


_FOREIGN = """
import io, mmap, sys, numpy as np
from vgpud.errors import HostError
from vgpud.uapi.exits import MmioExit
from vgpud.uapi.kvm import Cap, Vm
from vgpud.native.arrays import address_of
memory = np.frombuffer(mmap.mmap(-1, 4096), np.uint8)
with Vm.from_fd(io.FileIO(int(sys.argv[1]), "r+")) as vm:
    for call in (
        lambda: vm.check_extension(Cap.NR_MEMSLOTS),
        lambda: vm.set_user_memory_region(1, 0, 1 << 32, 4096, address_of(memory)),
        lambda: vm.create_vcpu(0),
    ):
        try:
            call()
        except HostError as error:
            print(error.errno, error)
"""


def test_the_vm_of_another_process_is_refused_with_the_remedy(vm: Vm) -> None:
    done = subprocess.run(
        [sys.executable, "-c", _FOREIGN, str(vm.fileno())],
        pass_fds=[vm.fileno()],
        capture_output=True,
        text=True,
        check=True,
    )
    lines = done.stdout.splitlines()
    assert len(lines) == 3
    for line in lines:
        assert line.startswith(f"{errno.EIO} KVM_")
        assert "the VM belongs to another process" in line
        assert 'use slots = "agent"' in line


def test_a_vm_goes_with_its_last_descriptor(kvm: Kvm) -> None:
    before = open_files()
    vm = kvm.create_vm()
    vcpu = vm.create_vcpu(0)
    vm.close()
    vcpu.close()
    vcpu.close()
    assert open_files() == before
    assert "kvm-vcpu" not in Path("/proc/self/maps").read_text()
