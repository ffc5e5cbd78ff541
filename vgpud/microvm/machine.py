"""The micro-VM itself: RAM, one CPU in long mode, and a doorbell for each queue.

Owns its VM and everything that makes it up. What is in the host-visible window is put there by
whoever has slots to set (`microvm.front_end`, a slot agent, a test). Source:
Documentation/virt/kvm/api.rst of the kernel.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from types import TracebackType
from typing import Final, Self, TypeAlias

import numpy as np

from vgpud.memory import memfd
from vgpud.memory.mapping import map_shared
from vgpud.microvm import boot, guest_code
from vgpud.microvm.guest_code import Boot, Done, Failed, GuestFailedError, Record, RecordReader
from vgpud.native.core import address_of
from vgpud.uapi.exits import Direction, HltExit, InterruptedExit, IoExit
from vgpud.uapi.kvm import Kvm, Quirk
from vgpud.unix import eventfd
from vgpud.unix.fd import Fd

RAM_SLOT: Final = 0
_DOORBELL_BYTES: Final = 2
_TSS_ADDR: Final = 0xFFFB_D000  # where QEMU has it too: below the firmware, beyond our RAM


class Halted:
    """The guest waits for a queue: let it run again once the device has signalled."""


HALTED: Final = Halted()
Event: TypeAlias = Record | Halted


class Machine:
    """One VM; a context manager. Raises `HostError` where KVM refuses, or is not there.

    `disable_quirk` switches KVM_X86_QUIRK_IGNORE_GUEST_PAT off, which must come before the guest
    first runs. `ram` is the memory file behind guest-physical address 0 on, `kicks` are the
    doorbells' eventfds, one a queue: a `front_end.Guest`.
    """

    ram_size: Final = boot.RAM_SIZE
    queue_size: Final = guest_code.QUEUE_SIZE

    def __init__(self, kvm: Kvm, *, disable_quirk: bool = False) -> None:
        with ExitStack() as cleanup:
            self.vm = cleanup.enter_context(kvm.create_vm())
            self.vm.set_tss_addr(_TSS_ADDR)
            if disable_quirk:
                self.vm.disable_quirks(Quirk.IGNORE_GUEST_PAT)
            self.ram = cleanup.enter_context(memfd.create("microvm-ram", boot.RAM_SIZE))
            self._memory = map_shared(self.ram, boot.RAM_SIZE)
            self.vm.set_user_memory_region(RAM_SLOT, 0, 0, boot.RAM_SIZE, address_of(self._memory))
            self.kicks: list[Fd] = []
            for index in range(guest_code.QUEUES):
                kick = cleanup.enter_context(eventfd.create())
                address = boot.DOORBELL_GPA + index * boot.DOORBELL_STRIDE
                self.vm.ioeventfd(address, _DOORBELL_BYTES, kick.fileno())
                self.kicks.append(kick)
            self._vcpu = cleanup.enter_context(self.vm.create_vcpu(0))
            self._vcpu.set_cpuid2(kvm.supported_cpuid())
            self._reset = self._vcpu.get_sregs()
            self._cleanup = cleanup.pop_all()

    @classmethod
    def open(cls, *, disable_quirk: bool = False) -> Self:
        """A machine on this host's KVM."""
        with Kvm.open() as kvm:
            return cls(kvm, disable_quirk=disable_quirk)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Ends the VM and frees its memory; a second call does nothing."""
        self._cleanup.close()

    def load(self, block: Boot) -> None:
        """Puts a guest into RAM, which is cleared, and the CPU before its first instruction."""
        image = np.frombuffer(boot.image(block, guest_code.code()), np.uint8)
        self._memory[: image.size] = image
        self._memory[image.size :] = 0
        self._vcpu.set_sregs(boot.special_registers(self._reset))
        self._vcpu.set_regs(boot.registers(guest_code.entry()))
        self._vcpu.set_msrs({boot.MTRR_DEF_TYPE: boot.MTRR_ALL_WB})

    def queue(self, index: int) -> guest_code.Queue:
        """Where a queue is, in RAM."""
        return boot.queue(index)

    def run(self) -> Iterator[Event]:
        """Runs the guest to its end; the records that it reports, and `HALTED` when it waits.

        While an event is being looked at the guest stands still. Raises `GuestFailedError` if it
        gives up, or does what nobody can do anything about.
        """
        reader = RecordReader()
        while True:
            match self._vcpu.run():
                case IoExit(Direction.OUT, guest_code.RECORD_PORT, 4, 1, data):
                    record = reader.add(data)
                    match record:
                        case Failed(command, response):
                            raise GuestFailedError(
                                f"the device answered {response:#x} to command {command:#x}"
                            )
                        case Done():
                            return
                        case None:
                            pass
                        case _:
                            yield record
                case HltExit():
                    yield HALTED
                case InterruptedExit():
                    pass
                case other:
                    at = self._vcpu.get_regs().rip
                    raise GuestFailedError(f"the guest ended at {at:#x} with {other}")
