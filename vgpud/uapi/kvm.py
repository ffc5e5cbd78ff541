"""KVM's system and VM ioctls, with advice for each errno; vCPUs are in `uapi.vcpu`.

That module is loaded where a vCPU is made, because the daemon makes none.

All methods raise HostError if the kernel refuses. Addresses and sizes are in bytes. Source:
Documentation/virt/kvm/api.rst of the kernel.
"""

from __future__ import annotations

import errno
import io
from enum import IntEnum, IntFlag
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

from vgpud.errors import HostError
from vgpud.uapi._linux import ffi, lib
from vgpud.uapi.ioctl import Remedies, ioctl
from vgpud.uapi.memslot import SlotFlag
from vgpud.uapi.owned import FdOwner, Owned, own
from vgpud.uapi.page import PAGE_SIZE

if TYPE_CHECKING:
    from vgpud.uapi.registers import CpuidEntry
    from vgpud.uapi.vcpu import Vcpu

API_VERSION: Final = 12
"""The version of KVM's ABI: it has not changed since Linux 2.6.22 and won't."""


class Cap(IntEnum):
    """Capabilities for KVM_CHECK_EXTENSION: `KVM_CAP_*`.

    A number that means different things to different kernels is not here. Whether a memory slot may
    have a flag is found by trying it.
    """

    NR_MEMSLOTS = lib.KVM_CAP_NR_MEMSLOTS
    DISABLE_QUIRKS2 = lib.KVM_CAP_DISABLE_QUIRKS2
    USER_MEMORY2 = lib.KVM_CAP_USER_MEMORY2


_CAPS: Final = frozenset(Cap)


class Quirk(IntFlag):
    """Quirks that KVM_CAP_DISABLE_QUIRKS2 reports and disables: `KVM_X86_QUIRK_*`."""

    IGNORE_GUEST_PAT = lib.KVM_X86_QUIRK_IGNORE_GUEST_PAT


class DeviceType(IntEnum):
    """In-kernel devices: `KVM_DEV_TYPE_*`."""

    VFIO = lib.KVM_DEV_TYPE_VFIO


_OPEN_REMEDIES: Final[Remedies] = MappingProxyType(
    {
        errno.ENOENT: "no KVM here: load kvm_intel or kvm_amd, switch virtualization on in the"
        " firmware, or nested virtualization if this is itself a VM",
        errno.EACCES: "no permission: add this user to the group of /dev/kvm (`vgpud doctor` names"
        " it; usermod -aG GROUP USER), or DeviceAllow=/dev/kvm rw in the service",
        errno.EPERM: "no permission: allow this device in the container or the service"
        " (DeviceAllow=/dev/kvm rw)",
        errno.ENODEV: "the kvm module found no processor that it supports",
        errno.EPROTONOSUPPORT: "vgpud speaks version 12 of KVM's ABI",
    }
)
_CREATE_REMEDIES: Final[Remedies] = MappingProxyType(
    {
        errno.EBUSY: "another hypervisor has the processor's virtualization: unload it",
        errno.EMFILE: "raise the limit of open files (LimitNOFILE= of the service, ulimit -n)",
        errno.ENOMEM: "the kernel has no memory left for it, or the memory cgroup's limit is hit",
    }
)
_FOREIGN: Final = (
    'the VM belongs to another process, and only that one may change it: use slots = "agent"'
)
_VM_REMEDIES: Final[Remedies] = MappingProxyType(
    {
        errno.EIO: _FOREIGN,
        errno.ENOMEM: "the kernel has no memory left for it, or the memory cgroup's limit is hit",
    }
)
_MEMORY_REMEDIES: Final[Remedies] = MappingProxyType(
    {
        **_VM_REMEDIES,
        errno.EEXIST: "another slot has some of these guest-physical addresses: delete it first",
        errno.EINVAL: "a slot number beyond KVM_CAP_NR_MEMSLOTS, a flag that this kernel does not"
        " have, or a change that a live slot can't undergo: delete it and create it again",
        errno.ENOENT: "there is no such slot",
        errno.EFAULT: "the userspace address is not in this process",
    }
)
_UNALIGNED_REMEDIES: Final[Remedies] = MappingProxyType(
    {
        **_MEMORY_REMEDIES,
        errno.EINVAL: "addresses and sizes must be multiples of the page, 4096 bytes",
    }
)
_FLAGGED_REMEDIES: Final[Remedies] = MappingProxyType(
    {
        **_MEMORY_REMEDIES,
        errno.EINVAL: "this kernel does not have KVM_MEM_NON_COHERENT_DMA, or the slot is live"
        " without it: the flag can't be changed then",
    }
)
_IOEVENTFD_REMEDIES: Final[Remedies] = MappingProxyType(
    {
        **_VM_REMEDIES,
        errno.EEXIST: "another eventfd is bound to this address and value",
        errno.ENOENT: "no eventfd is bound to this address and value",
        errno.ENOSPC: "the bus has no room for another device",
    }
)


class Kvm(Owned):
    """The KVM subsystem, /dev/kvm."""

    __slots__ = ()

    @classmethod
    def open(cls, path: str = "/dev/kvm") -> Kvm:
        """Open KVM; raises HostError also if it has another version of its ABI."""
        name = f"open {path}"
        try:
            kvm = cls(io.FileIO(path, "r+"))
        except OSError as error:
            raise _open_error(name, error) from error
        try:
            version = kvm.api_version
            if version != API_VERSION:
                raise _open_error(f"{name}, API {version}", OSError(errno.EPROTONOSUPPORT, ""))
        except BaseException:
            kvm.close()
            raise
        return kvm

    @property
    def api_version(self) -> int:
        """The version of KVM's ABI (KVM_GET_API_VERSION)."""
        return ioctl(self.fileno(), lib.KVM_GET_API_VERSION, name="KVM_GET_API_VERSION")

    @property
    def vcpu_mmap_size(self) -> int:
        """How many bytes of each vCPU's descriptor to map (KVM_GET_VCPU_MMAP_SIZE)."""
        return ioctl(self.fileno(), lib.KVM_GET_VCPU_MMAP_SIZE, name="KVM_GET_VCPU_MMAP_SIZE")

    def check_extension(self, cap: int) -> int:
        """Return 0 if KVM does not have a capability, else 1 or more (KVM_CHECK_EXTENSION)."""
        return _check_extension(self.fileno(), cap)

    def supported_cpuid(self) -> tuple[CpuidEntry, ...]:
        """Return the CPUID that KVM can present to a guest (KVM_GET_SUPPORTED_CPUID)."""
        from vgpud.uapi.vcpu import cpuid_entries  # noqa: PLC0415 - above

        return cpuid_entries(self.fileno())

    def create_vm(self, kind: int = 0) -> Vm:
        """Create a VM of this process, which lasts until its last descriptor (KVM_CREATE_VM)."""
        name = "KVM_CREATE_VM"
        fd = ioctl(self.fileno(), lib.KVM_CREATE_VM, kind, name=name, remedies=_CREATE_REMEDIES)
        return Vm(own(fd), self.vcpu_mmap_size)


class Vm(Owned):
    """A virtual machine: its memory slots, its ioeventfds and its vCPUs.

    Only the process that created it may use it; in any other, each call fails with EIO.
    """

    __slots__ = ("_vcpu_mmap_size",)

    def __init__(self, fd: FdOwner, vcpu_mmap_size: int | None = None) -> None:
        super().__init__(fd)
        self._vcpu_mmap_size = vcpu_mmap_size

    @classmethod
    def from_fd(cls, fd: FdOwner) -> Vm:
        """Return a VM for a descriptor that this process created, and take its ownership."""
        return cls(fd)

    def check_extension(self, cap: int) -> int:
        """Return as `Kvm.check_extension` what this kind of VM has, which may be less."""
        return _check_extension(self.fileno(), cap)

    def enable_cap(self, cap: int, *args: int, flags: int = 0) -> None:
        """Enable a capability with up to four arguments (KVM_ENABLE_CAP)."""
        enable = ffi.new("struct kvm_enable_cap *", {"cap": cap, "flags": flags, "args": args})
        self._ioctl(lib.KVM_ENABLE_CAP, enable, f"KVM_ENABLE_CAP {_cap_name(cap)}")

    def disable_quirks(self, quirks: Quirk) -> None:
        """Disable quirks for the rest of the VM's life: EINVAL for one that this KVM does not have.

        Disable IGNORE_GUEST_PAT before the guest first runs: what KVM mapped before stays as it is.
        """
        self.enable_cap(Cap.DISABLE_QUIRKS2, quirks)

    def set_user_memory_region(
        self, slot: int, flags: int, guest_phys_addr: int, memory_size: int, userspace_addr: int
    ) -> None:
        """Create, change, move or, with size 0, delete a slot (KVM_SET_USER_MEMORY_REGION)."""
        region = ffi.new(
            "struct kvm_userspace_memory_region *",
            (slot, flags, guest_phys_addr, memory_size, userspace_addr),
        )
        self._set_region("KVM_SET_USER_MEMORY_REGION", lib.KVM_SET_USER_MEMORY_REGION, region)

    def ioeventfd(
        self,
        addr: int,
        length: int,
        fd: int,
        datamatch: int | None = None,
        *,
        deassign: bool = False,
        pio: bool = False,
    ) -> None:
        """Have a guest's write of `length` bytes at `addr` signal an eventfd (KVM_IOEVENTFD).

        With `datamatch`, only a write of that value does. Such a write does not end KVM_RUN.
        """
        flags = 0
        if datamatch is not None:
            flags |= lib.KVM_IOEVENTFD_FLAG_DATAMATCH
        if pio:
            flags |= lib.KVM_IOEVENTFD_FLAG_PIO
        if deassign:
            flags |= lib.KVM_IOEVENTFD_FLAG_DEASSIGN
        event = ffi.new(
            "struct kvm_ioeventfd *",
            {"datamatch": datamatch or 0, "addr": addr, "len": length, "fd": fd, "flags": flags},
        )
        name = f"KVM_IOEVENTFD {'port' if pio else 'address'} {addr:#x}"
        self._ioctl(lib.KVM_IOEVENTFD, event, name, _IOEVENTFD_REMEDIES)

    def set_tss_addr(self, addr: int) -> None:
        """Give Intel's KVM three pages of guest-physical space below 4 GiB (KVM_SET_TSS_ADDR)."""
        self._ioctl(lib.KVM_SET_TSS_ADDR, addr, "KVM_SET_TSS_ADDR")

    def has_device(self, kind: DeviceType) -> bool:
        """Return whether KVM has this device, without creating one (KVM_CREATE_DEVICE)."""
        device = ffi.new(
            "struct kvm_create_device *", {"type": kind, "flags": lib.KVM_CREATE_DEVICE_TEST}
        )
        try:
            self._ioctl(lib.KVM_CREATE_DEVICE, device, f"KVM_CREATE_DEVICE {kind.name}")
        except HostError as error:
            if error.errno == errno.ENODEV:
                return False
            raise
        return True

    def create_vcpu(self, vcpu_id: int) -> Vcpu:
        """Create a vCPU (KVM_CREATE_VCPU)."""
        from vgpud.uapi.vcpu import Vcpu  # noqa: PLC0415 - above

        size = self._vcpu_mmap_size
        if size is None:
            with Kvm.open() as kvm:
                size = self._vcpu_mmap_size = kvm.vcpu_mmap_size
        fd = self._ioctl(lib.KVM_CREATE_VCPU, vcpu_id, f"KVM_CREATE_VCPU {vcpu_id}")
        return Vcpu(own(fd), size)

    def _set_region(self, call: str, request: int, region: Any) -> None:
        size = region.memory_size
        name = (
            f"{call} slot={region.slot} flags={region.flags:#x}"
            f" addr={region.guest_phys_addr:#x} size={size:#x}"
        )
        remedies = _MEMORY_REMEDIES
        if (region.guest_phys_addr | region.userspace_addr | size) % PAGE_SIZE:
            remedies = _UNALIGNED_REMEDIES
        elif region.flags & SlotFlag.NON_COHERENT_DMA:
            remedies = _FLAGGED_REMEDIES
        self._ioctl(request, region, name, remedies)

    def _ioctl(
        self, request: int, argument: object, name: str, remedies: Remedies = _VM_REMEDIES
    ) -> int:
        return ioctl(self.fileno(), request, argument, name=name, remedies=remedies)


def _check_extension(fd: int, cap: int) -> int:
    name = f"KVM_CHECK_EXTENSION {_cap_name(cap)}"
    return ioctl(fd, lib.KVM_CHECK_EXTENSION, cap, name=name, remedies=_VM_REMEDIES)


def _cap_name(cap: int) -> str:
    return Cap(cap).name if cap in _CAPS else str(cap)


def _open_error(name: str, error: OSError) -> HostError:
    return HostError(name, error, _OPEN_REMEDIES.get(error.errno or 0, ""))
