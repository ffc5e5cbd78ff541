"""A vCPU on the real /dev/kvm: its registers, and everything that it comes back with."""

from __future__ import annotations

import errno
import mmap
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest

from vgpud.errors import HostError
from vgpud.native.arrays import address_of
from vgpud.uapi.exits import (
    Direction,
    Exit,
    HltExit,
    InternalErrorExit,
    InterruptedExit,
    IoExit,
    MmioExit,
    ShutdownExit,
)
from vgpud.uapi.kvm import Kvm, Vm
from vgpud.uapi.registers import CpuidEntry, DescriptorTable, Registers
from vgpud.uapi.vcpu import Vcpu

RAM = 0x4000
PAT_MSR = 0x277
NO_SUCH_MSR = 0x0ABC_DEF0


class Cpu:
    """A CPU in real mode whose code is at address 0 of 16 KiB of RAM."""

    def __init__(self, kvm: Kvm, vm: Vm) -> None:
        self.ram = np.frombuffer(mmap.mmap(-1, RAM), np.uint8)
        vm.set_user_memory_region(0, 0, 0, RAM, address_of(self.ram))
        self.vcpu = vm.create_vcpu(0)
        self.vcpu.set_cpuid2(kvm.supported_cpuid())
        sregs = self.vcpu.get_sregs()
        self.vcpu.set_sregs(replace(sregs, cs=replace(sregs.cs, base=0, selector=0)))

    def load(self, code: str, **registers: int) -> None:
        data = bytes.fromhex(code)
        self.ram[: len(data)] = list(data)
        self.vcpu.set_regs(Registers(**registers))

    def run(self, code: str, **registers: int) -> Exit:
        self.load(code, **registers)
        return self.vcpu.run()


@pytest.fixture
def cpu(kvm: Kvm) -> Iterator[Cpu]:
    with kvm.create_vm() as vm:
        machine = Cpu(kvm, vm)
        with machine.vcpu:
            yield machine


@pytest.fixture
def vcpu(cpu: Cpu) -> Vcpu:
    return cpu.vcpu


def test_registers_are_read_as_they_were_set(vcpu: Vcpu) -> None:
    names = [name for name in Registers.__slots__ if name != "rflags"]
    values = {name: 0x1111_1111_0000_0000 + index for index, name in enumerate(names)}
    registers = Registers(**values)
    vcpu.set_regs(registers)
    assert vcpu.get_regs() == registers


def test_special_registers_are_read_as_they_were_set(vcpu: Vcpu) -> None:
    before = vcpu.get_sregs()
    wanted = replace(
        before,
        ds=replace(before.ds, base=0x1230, selector=0x123),
        gdt=DescriptorTable(0x2000, 0x17),
        idt=DescriptorTable(0x3000, 0x27),
        cr2=0x5678,
        cr8=3,
    )
    vcpu.set_sregs(wanted)
    assert vcpu.get_sregs() == wanted


def test_special_registers_that_can_not_be_are_refused(vcpu: Vcpu) -> None:
    with pytest.raises(HostError, match="KVM_SET_SREGS: Invalid argument") as raised:
        vcpu.set_sregs(replace(vcpu.get_sregs(), cr4=1 << 63, efer=1 << 63))
    assert raised.value.errno == errno.EINVAL


def test_msrs_are_read_as_they_were_set(vcpu: Vcpu) -> None:
    pat = 0x0001_0406_0007_0406
    vcpu.set_msrs({PAT_MSR: pat})
    assert vcpu.get_msrs([PAT_MSR]) == {PAT_MSR: pat}
    assert vcpu.get_msrs([]) == {}


def test_an_msr_that_is_none_is_named(vcpu: Vcpu) -> None:
    with pytest.raises(HostError, match="KVM_SET_MSRS 0xabcdef0: Invalid argument"):
        vcpu.set_msrs({PAT_MSR: 0x0007_0406_0007_0406, NO_SUCH_MSR: 1})
    with pytest.raises(HostError, match="KVM_GET_MSRS 0xabcdef0: Invalid argument"):
        vcpu.get_msrs([PAT_MSR, NO_SUCH_MSR])


def test_cpuid_has_an_entry_for_each_leaf_that_matters(kvm: Kvm) -> None:
    entries = kvm.supported_cpuid()
    functions = {entry.function for entry in entries}
    assert {0, 1, 0x8000_0001} <= functions
    vendor = next(entry for entry in entries if entry.function == 0)
    name = b"".join(value.to_bytes(4, "little") for value in (vendor.ebx, vendor.edx, vendor.ecx))
    assert name.decode("ascii").isprintable()


def test_a_guest_sees_the_cpuid_that_it_was_given(kvm: Kvm) -> None:
    leaf = CpuidEntry(function=0, index=0, flags=0, eax=1, ebx=0x64757067, ecx=3, edx=4)
    with kvm.create_vm() as vm:
        cpu = Cpu(kvm, vm)
        with cpu.vcpu:
            cpu.vcpu.set_cpuid2([leaf])
            assert cpu.run("0fa2 f4") == HltExit()
            registers = cpu.vcpu.get_regs()
    assert (registers.rax, registers.rbx, registers.rcx, registers.rdx) == (1, 0x64757067, 3, 4)


def test_a_port_is_written(cpu: Cpu) -> None:
    assert cpu.run("ef f4", rdx=0x3F8, rax=0xBEEF) == IoExit(
        Direction.OUT, 0x3F8, 2, 1, b"\xef\xbe"
    )
    assert cpu.vcpu.run() == HltExit()


def test_a_port_is_read(cpu: Cpu) -> None:
    assert cpu.run("ec f4", rdx=0x3F8) == IoExit(Direction.IN, 0x3F8, 1, 1, b"")
    cpu.vcpu.answer(b"\x5a")
    assert cpu.vcpu.run() == HltExit()
    assert cpu.vcpu.get_regs().rax == 0x5A


def test_a_string_of_ports_is_written_item_by_item_or_at_once(cpu: Cpu) -> None:
    cpu.ram[0x100:0x106] = [1, 2, 3, 4, 5, 6]
    written, exits = b"", 0
    reason = cpu.run("f3 6f f4", rdx=0x10, rsi=0x100, rcx=3)  # rep outsw
    while isinstance(reason, IoExit):
        assert len(reason.data) == reason.size * reason.count
        written += reason.data
        exits += 1
        reason = cpu.vcpu.run()
    assert reason == HltExit()
    assert written == bytes([1, 2, 3, 4, 5, 6])
    assert 1 <= exits <= 3


def test_memory_that_is_none_is_written(cpu: Cpu) -> None:
    exit_ = cpu.run("678907 f4", rdi=RAM + 4, rax=0x1234)  # mov [edi], ax
    assert exit_ == MmioExit(RAM + 4, 2, True, b"\x34\x12")
    assert cpu.vcpu.run() == HltExit()


def test_memory_that_is_none_is_read(cpu: Cpu) -> None:
    assert cpu.run("678b07 f4", rdi=RAM + 4) == MmioExit(RAM + 4, 2, False, b"")
    with pytest.raises(ValueError, match="1 bytes in answer to a read of 2"):
        cpu.vcpu.answer(b"\x00")
    cpu.vcpu.answer(b"\x78\x56")
    with pytest.raises(ValueError, match="no access waits"):
        cpu.vcpu.answer(b"\x78\x56")
    assert cpu.vcpu.run() == HltExit()
    assert cpu.vcpu.get_regs().rax == 0x5678


def test_a_write_waits_for_no_answer(cpu: Cpu) -> None:
    cpu.run("ee f4", rdx=0x3F8)
    with pytest.raises(ValueError, match="no access waits"):
        cpu.vcpu.answer(b"")


def test_an_answer_does_not_wait_for_the_next_exit(cpu: Cpu) -> None:
    cpu.run("ec f4", rdx=0x3F8)
    assert cpu.vcpu.run() == HltExit()
    with pytest.raises(ValueError, match="no access waits"):
        cpu.vcpu.answer(b"\x00")


def test_a_kick_ends_a_run_at_once(cpu: Cpu) -> None:
    cpu.load("ebfe")  # forever
    cpu.vcpu.kick()
    assert cpu.vcpu.run() == InterruptedExit()


def test_a_triple_fault_is_a_shutdown(cpu: Cpu) -> None:
    sregs = cpu.vcpu.get_sregs()
    cpu.vcpu.set_sregs(replace(sregs, idt=DescriptorTable(0, 0)))
    exit_ = cpu.run("0f0b")  # ud2, and nobody to handle it
    assert isinstance(exit_, ShutdownExit | InternalErrorExit)


def test_code_where_nothing_is_can_not_be_emulated(cpu: Cpu) -> None:
    exit_ = cpu.run("f4", rip=RAM)
    assert isinstance(exit_, InternalErrorExit)
    assert exit_.suberror == 1


def test_a_closed_cpu_can_not_be_used(kvm: Kvm) -> None:
    with kvm.create_vm() as vm:
        vcpu = vm.create_vcpu(0)
        vcpu.close()
        with pytest.raises(ValueError, match="closed"):
            vcpu.run()
        with pytest.raises(AttributeError):
            vcpu.kick()


def test_two_cpus_can_not_have_one_number(kvm: Kvm) -> None:
    with kvm.create_vm() as vm, vm.create_vcpu(0), pytest.raises(HostError, match="CREATE_VCPU 0"):
        vm.create_vcpu(0)


def test_a_vm_from_elsewhere_in_the_process_makes_cpus_too(kvm: Kvm) -> None:
    with kvm.create_vm() as vm, Vm.from_fd(vm) as same, same.create_vcpu(0) as vcpu:
        assert vcpu.get_regs().rip == 0xFFF0
