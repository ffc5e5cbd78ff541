"""The real /dev/kvm for tests, and the smallest guest that writes where it is told.

Where KVM can't be had a test is skipped with the reason.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace

import numpy as np
import pytest

from vgpud.errors import HostError
from vgpud.native.arrays import address_of
from vgpud.uapi.exits import Exit, HltExit
from vgpud.uapi.kvm import Kvm, Vm
from vgpud.uapi.memslot import SlotFlag
from vgpud.uapi.registers import Registers

RAM_SLOT = 0
RAM_SIZE = 0x8000
REAL_MODE_LIMIT = 1 << 20
_CODE = bytes.fromhex(
    "8805"  # mov [di], al
    "8a5d01"  # mov bl, [di + 1]
    "f4"  # hlt
)


@contextmanager
def open_kvm() -> Iterator[Kvm]:
    """KVM, or no test."""
    try:
        kvm = Kvm.open()
    except HostError as error:
        pytest.skip(str(error))
    with kvm:
        yield kvm


def has_flag(kvm: Kvm) -> bool:
    """Whether this kernel takes KVM_MEM_NON_COHERENT_DMA: asked of it, and nobody else."""
    memory = np.frombuffer(mmap.mmap(-1, 4096), np.uint8)
    with kvm.create_vm() as vm:
        try:
            vm.set_user_memory_region(
                0, SlotFlag.NON_COHERENT_DMA, 0, memory.nbytes, address_of(memory)
            )
        except HostError:
            return False
        return True


class Poker:
    """A guest in real mode, with RAM in slot 0 at address 0, that pokes a byte and peeks the next.

    `vm` has all other slots free, and all addresses from RAM_SIZE on.
    """

    def __init__(self, kvm: Kvm) -> None:
        self._memory = np.frombuffer(mmap.mmap(-1, RAM_SIZE), np.uint8)
        self._memory[: len(_CODE)] = list(_CODE)
        with ExitStack() as stack:
            self.vm: Vm = stack.enter_context(kvm.create_vm())
            self.vm.set_user_memory_region(RAM_SLOT, 0, 0, RAM_SIZE, address_of(self._memory))
            self.vcpu = stack.enter_context(self.vm.create_vcpu(0))
            sregs = self.vcpu.get_sregs()
            self._sregs = replace(sregs, cs=replace(sregs.cs, base=0, selector=0))
            self._stack = stack.pop_all()

    def close(self) -> None:
        self._stack.close()

    def poke(self, address: int, value: int) -> int:
        """Write a byte below 1 MiB; the byte after it, as the guest sees it."""
        assert self.run(address, value) == HltExit()
        return self.vcpu.get_regs().rbx & 0xFF

    def run(self, address: int, value: int) -> Exit:
        """Start to poke and peek; what comes of it first."""
        assert address < REAL_MODE_LIMIT
        segment = replace(self._sregs.ds, base=address & ~0xF, selector=address >> 4)
        self.vcpu.set_sregs(replace(self._sregs, ds=segment))
        self.vcpu.set_regs(Registers(rax=value, rdi=address & 0xF))
        return self.vcpu.run()
