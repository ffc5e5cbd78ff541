"""VMs of this process, for code that sets slots by `slots.memslots`."""

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
    """Yield the slots of a new VM without vCPUs, and close both at the end. Raises HostError."""
    with Kvm.open() as kvm, kvm.create_vm() as vm, Memslots(vm) as slots:
        yield slots


def borrowed_vm(fd: int) -> Vm:
    """Return a VM of this process for its descriptor, which its owner closes."""
    return Vm.from_fd(_Borrowed(fd))
