"""A KVM vCPU: its registers (`uapi.registers`), and running it until an exit (`uapi.exits`).

Source: Documentation/virt/kvm/api.rst of the kernel, "KVM_RUN" and section 5 "The kvm_run
structure".
"""

from __future__ import annotations

import errno
import mmap
import struct
from collections.abc import Iterable, Mapping
from dataclasses import astuple, fields
from types import MappingProxyType
from typing import Any, Final, TypeVar

from vgpud.errors import HostError
from vgpud.uapi._linux import ffi, lib
from vgpud.uapi.exits import (
    Direction,
    Exit,
    FailEntryExit,
    HltExit,
    InternalErrorExit,
    InterruptedExit,
    IoExit,
    MmioExit,
    ShutdownExit,
    UnknownExit,
)
from vgpud.uapi.ioctl import Remedies, ioctl
from vgpud.uapi.owned import FdOwner, Owned
from vgpud.uapi.registers import CpuidEntry, DescriptorTable, Registers, Segment, SpecialRegisters

_REMEDIES: Final[Remedies] = MappingProxyType(
    {
        errno.EIO: "the VM belongs to another process, and only that one may run it",
        errno.EFAULT: "the guest touched a slot whose memory is not mapped in this process",
        errno.EINVAL: "a value that this KVM, or the vCPU's CPUID, does not allow",
    }
)

_Plain = TypeVar("_Plain", Registers, Segment, DescriptorTable)


def _fill(kernel: Any, value: Registers | Segment | DescriptorTable) -> None:
    for field in fields(value):
        setattr(kernel, field.name, getattr(value, field.name))


def _read(kernel: Any, kind: type[_Plain]) -> _Plain:
    return kind(*(getattr(kernel, field.name) for field in fields(kind)))


_SEGMENTS: Final = ("cs", "ds", "es", "fs", "gs", "ss", "tr", "ldt")
_TABLES: Final = ("gdt", "idt")
_CONTROLS: Final = ("cr0", "cr2", "cr3", "cr4", "cr8", "efer", "apic_base")
_MAX_CPUID_ENTRIES: Final = 256  # KVM_MAX_CPUID_ENTRIES: the kernel refuses to fill more


def cpuid_entries(kvm_fd: int) -> tuple[CpuidEntry, ...]:
    """Return what KVM_GET_SUPPORTED_CPUID says on the descriptor of /dev/kvm."""
    table = ffi.new(
        "struct kvm_cpuid2 *", {"nent": _MAX_CPUID_ENTRIES, "entries": _MAX_CPUID_ENTRIES}
    )
    ioctl(kvm_fd, lib.KVM_GET_SUPPORTED_CPUID, table, name="KVM_GET_SUPPORTED_CPUID")
    names = [field.name for field in fields(CpuidEntry)]
    return tuple(
        CpuidEntry(*(getattr(table.entries[i], name) for name in names)) for i in range(table.nent)
    )


class Vcpu(Owned):
    """One virtual CPU, which one thread at a time may use.

    All methods raise HostError if the kernel refuses.
    """

    __slots__ = ("_buffer", "_memory", "_reply", "_run")

    def __init__(self, fd: FdOwner, mmap_size: int) -> None:
        super().__init__(fd)
        try:
            self._memory = mmap.mmap(fd.fileno(), mmap_size)
        except OSError as error:
            fd.close()
            raise HostError("mmap of a vCPU", error) from error
        self._buffer = ffi.from_buffer(self._memory, require_writable=True)
        self._run = ffi.cast("struct kvm_run *", self._buffer)
        # The offset in kvm_run of the value that the last exit reads, and its length.
        self._reply: tuple[int, int] | None = None

    def close(self) -> None:
        """Close the descriptor and unmap kvm_run, which keeps the VM alive too.

        Do not call it while the vCPU runs.
        """
        if not self._memory.closed:
            del self._run
            ffi.release(self._buffer)
            self._memory.close()
        super().close()

    def get_regs(self) -> Registers:
        """Return the general registers (KVM_GET_REGS)."""
        regs = ffi.new("struct kvm_regs *")
        self._ioctl(lib.KVM_GET_REGS, regs, "KVM_GET_REGS")
        return _read(regs, Registers)

    def set_regs(self, registers: Registers) -> None:
        """Set the general registers (KVM_SET_REGS)."""
        regs = ffi.new("struct kvm_regs *")
        _fill(regs, registers)
        self._ioctl(lib.KVM_SET_REGS, regs, "KVM_SET_REGS")

    def get_sregs(self) -> SpecialRegisters:
        """Return the special registers (KVM_GET_SREGS)."""
        sregs = ffi.new("struct kvm_sregs *")
        self._ioctl(lib.KVM_GET_SREGS, sregs, "KVM_GET_SREGS")
        values: dict[str, Any] = {name: getattr(sregs, name) for name in _CONTROLS}
        values |= {name: _read(getattr(sregs, name), Segment) for name in _SEGMENTS}
        values |= {name: _read(getattr(sregs, name), DescriptorTable) for name in _TABLES}
        return SpecialRegisters(**values)

    def set_sregs(self, registers: SpecialRegisters) -> None:
        """Set the special registers (KVM_SET_SREGS), with no interrupt pending."""
        sregs = ffi.new("struct kvm_sregs *")
        for name in _SEGMENTS + _TABLES:
            _fill(getattr(sregs, name), getattr(registers, name))
        for name in _CONTROLS:
            setattr(sregs, name, getattr(registers, name))
        self._ioctl(lib.KVM_SET_SREGS, sregs, "KVM_SET_SREGS")

    def get_msrs(self, indices: Iterable[int]) -> dict[int, int]:
        """Return MSRs by index (KVM_GET_MSRS); EINVAL for one that KVM does not have."""
        wanted = list(indices)
        msrs = _msrs([(index, 0, 0) for index in wanted])
        self._all_msrs(lib.KVM_GET_MSRS, msrs, "KVM_GET_MSRS", wanted)
        return {index: msrs.entries[i].data for i, index in enumerate(wanted)}

    def set_msrs(self, values: Mapping[int, int]) -> None:
        """Set MSRs (KVM_SET_MSRS); EINVAL for one that KVM does not have, or an invalid value.

        Those before it in order are set then.
        """
        msrs = _msrs([(index, 0, value) for index, value in values.items()])
        self._all_msrs(lib.KVM_SET_MSRS, msrs, "KVM_SET_MSRS", list(values))

    def set_cpuid2(self, entries: Iterable[CpuidEntry]) -> None:
        """Set the vCPU's CPUID (KVM_SET_CPUID2), before it first runs."""
        rows = [(*astuple(entry), (0, 0, 0)) for entry in entries]
        table = ffi.new("struct kvm_cpuid2 *", {"nent": len(rows), "entries": rows})
        self._ioctl(lib.KVM_SET_CPUID2, table, "KVM_SET_CPUID2")

    def run(self) -> Exit:
        """Run the guest until an exit (KVM_RUN), and return that.

        The next run completes an access that was reported, and answered if it is a read.
        """
        self._reply = None
        try:
            self._ioctl(lib.KVM_RUN, 0, "KVM_RUN")
        except HostError as error:
            if error.errno in {errno.EINTR, errno.EAGAIN}:
                return InterruptedExit()
            raise
        return self._exit()

    def kick(self) -> None:
        """Make this run, and every later one, return at once; may be called in a signal handler.

        A run in another thread also needs a signal, sent to that thread after this call.
        """
        self._run.immediate_exit = 1

    def answer(self, data: bytes) -> None:
        """Set the value that the guest's last access reads.

        Raises ValueError if no read waits for a value, or for another length.
        """
        if self._reply is None:
            raise ValueError("no access waits for an answer")
        start, length = self._reply
        if len(data) != length:
            raise ValueError(f"{len(data)} bytes in answer to a read of {length}")
        self._memory[start : start + length] = data
        self._reply = None

    def _exit(self) -> Exit:
        run = self._run
        match run.exit_reason:
            case lib.KVM_EXIT_IO:
                io = run.io
                out = io.direction == Direction.OUT
                data = self._access(io.data_offset, io.size * io.count, out)
                return IoExit(Direction(io.direction), io.port, io.size, io.count, data)
            case lib.KVM_EXIT_MMIO:
                mmio = run.mmio
                is_write = bool(mmio.is_write)
                data = self._access(_MMIO_DATA, mmio.len, is_write)
                return MmioExit(mmio.phys_addr, mmio.len, is_write, data)
            case lib.KVM_EXIT_HLT:
                return HltExit()
            case lib.KVM_EXIT_SHUTDOWN:
                return ShutdownExit()
            case lib.KVM_EXIT_FAIL_ENTRY:
                entry = run.fail_entry
                return FailEntryExit(entry.hardware_entry_failure_reason, entry.cpu)
            case lib.KVM_EXIT_INTERNAL_ERROR:
                words = struct.unpack_from("=16Q", self._memory, _INTERNAL_DATA)
                return InternalErrorExit(run.internal.suberror, words[: run.internal.ndata])
            case reason:
                return UnknownExit(reason, run.hw.hardware_exit_reason)

    def _access(self, start: int, length: int, is_write: bool) -> bytes:
        if is_write:
            return self._memory[start : start + length]
        self._reply = start, length
        return b""

    def _ioctl(self, request: int, argument: Any, name: str) -> int:
        return ioctl(self.fileno(), request, argument, name=name, remedies=_REMEDIES)

    def _all_msrs(self, request: int, msrs: Any, name: str, indices: list[int]) -> None:
        # The kernel stops at the first MSR that it refuses and returns how many it has done.
        done = self._ioctl(request, msrs, name)
        if done < len(indices):
            error = OSError(errno.EINVAL, "")
            raise HostError(f"{name} {indices[done]:#x}", error, _REMEDIES[errno.EINVAL])


def _msrs(entries: list[tuple[int, int, int]]) -> Any:
    return ffi.new("struct kvm_msrs *", {"nmsrs": len(entries), "entries": entries})


_MMIO_DATA: Final[int] = ffi.offsetof("struct kvm_run", "mmio", "data")
_INTERNAL_DATA: Final[int] = ffi.offsetof("struct kvm_run", "internal", "data")
