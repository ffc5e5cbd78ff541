"""VMs of this process, for code that sets slots; the kernel's ABI is in `uapi.kvm`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from vgpud.slots.memslots import Memslots
from vgpud.uapi.kvm import Kvm, Vm


class _Borrowed:
    """A descriptor that its owner closes."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def fileno(self) -> int:
        return self._fd

    def close(self) -> None:
        pass


@contextmanager
def scratch_slots() -> Iterator[Memslots]:
    """Yield the slots of a new VM that has no CPU and goes with them. Raises HostError."""
    with Kvm.open() as kvm, kvm.create_vm() as vm, Memslots(vm) as slots:
        yield slots


def borrowed_vm(fd: int) -> Vm:
    """Return a VM of this process by its descriptor, which stays its owner's, and open."""
    return Vm.from_fd(_Borrowed(fd))
