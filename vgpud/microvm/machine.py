"""The micro-VM: RAM, one CPU in long mode, and a doorbell for each queue.

The host-visible window's slots are set by its slot owner: `microvm.front_end`, a slot agent, or a
test. Source: Documentation/virt/kvm/api.rst of the kernel.
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
from vgpud.microvm.guest_code import Boot, Failed, GuestDone, GuestFailedError, Record, RecordReader
from vgpud.native.arrays import address_of
from vgpud.uapi.exits import Direction, HltExit, InterruptedExit, IoExit
from vgpud.uapi.kvm import Kvm, Quirk
from vgpud.unix import eventfd
from vgpud.unix.fd import Fd

RAM_SLOT: Final = 0
_DOORBELL_BYTES: Final = 2
_TSS_ADDR: Final = 0xFFFB_D000  # the same as QEMU's: below the firmware, beyond this VM's RAM


class Halted:
    """The guest waits for a queue. It should run again once the device has signalled."""


HALTED: Final = Halted()
Event: TypeAlias = Record | Halted


class Machine:
    """A VM; a context manager. Raises `HostError` if KVM refuses or does not exist.

    `disable_quirk` switches KVM_X86_QUIRK_IGNORE_GUEST_PAT off, which must come before the guest
    first runs. `ram` is the memory file behind guest-physical address 0 on, `kicks` are the
    doorbells' eventfds, one a queue: a `front_end.FrontEndGuest`.
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
        """Create a machine on this host's KVM."""
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
        """End the VM and free its memory; a second call does nothing."""
        self._cleanup.close()

    def load(self, block: Boot) -> None:
        """Load a guest into RAM, which is cleared first, and reset the CPU to its entry point."""
        image = np.frombuffer(boot.image(block, guest_code.code()), np.uint8)
        self._memory[: image.size] = image
        self._memory[image.size :] = 0
        self._vcpu.set_sregs(boot.special_registers(self._reset))
        self._vcpu.set_regs(boot.registers(guest_code.entry()))
        self._vcpu.set_msrs({boot.MTRR_DEF_TYPE: boot.MTRR_ALL_WB})

    def queue(self, index: int) -> guest_code.Queue:
        """Return the addresses of a queue in RAM."""
        return boot.queue(index)

    def run(self) -> Iterator[Event]:
        """Run the guest to its end; yield the records that it reports, and `HALTED` when it waits.

        The guest does not run while the caller handles an event. Raises `GuestFailedError` if the
        guest gives up or exits for a reason that is not handled.
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
                        case GuestDone():
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
