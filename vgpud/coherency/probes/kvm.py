"""What KVM can do on this host, each found by trying in a VM made for that and closed at once.

Never asks for a capability number where one kernel means this by it and another that: the memory
slot flag is tried on a slot. Source: Documentation/virt/kvm/api.rst of the kernel.
"""

from __future__ import annotations

import errno
import mmap
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import numpy as np

from vgpud.coherency.kvm_mode import Vendor
from vgpud.coherency.probes.device_access import DeviceAccess
from vgpud.errors import HostError
from vgpud.native.arrays import address_of
from vgpud.uapi import kernel_files as files
from vgpud.uapi.kvm import Cap, DeviceType, Kvm, Quirk, Vm
from vgpud.uapi.memslot import SlotFlag
from vgpud.uapi.page import PAGE_SIZE

_PATH: Final = "/dev/kvm"

# Where the scratch slot goes: clear of everything that KVM puts somewhere of itself.
_GPA: Final = 1 << 30
_SLOT: Final = 0

# Which parameter of a processor module tells whether the processor walks the guest's page tables.
_MODULES: Final[dict[Vendor, tuple[str, str]]] = {
    Vendor.VMX: ("kvm_intel", "ept"),
    Vendor.SVM: ("kvm_amd", "npt"),
}


@dataclass(frozen=True, slots=True)
class KvmFacts:
    """KVM as found; None is what could not be tried or seen.

    `problem` and `advice` say why it is not usable. `vendor` is None if no processor module is
    loaded; `module` is the one that is. `quirks` is the mask of KVM_CAP_DISABLE_QUIRKS2.
    `flag_trial` is, in words, what became of the flagged slot. `tdp` is two-dimensional paging (EPT
    or NPT), `tdp_mmu` whether its lock-free page fault handling is on.
    """

    path: str
    state: DeviceAccess
    problem: str = ""
    advice: str = ""
    vendor: Vendor | None = None
    module: str | None = None
    tdp: bool | None = None
    tdp_mmu: bool | None = None
    api_version: int | None = None
    memslots: int | None = None
    user_memory2: bool | None = None
    quirks: int | None = None
    ignore_guest_pat_quirk: bool | None = None
    non_coherent_dma_flag: bool | None = None
    flag_trial: str = ""
    vfio: bool | None = None


def probe(root: Path = files.ROOT) -> KvmFacts:
    """Look at /sys and /dev/kvm below `root`, and try what can be tried. Raises nothing."""
    seen = _seen(root)
    try:
        return _tried(seen, root / _PATH.lstrip("/"))
    except HostError as error:
        problem = str(error).removesuffix(f"; {error.advice}")
        return replace(
            seen, state=DeviceAccess.after(error.errno), problem=problem, advice=error.advice
        )


def _seen(root: Path) -> KvmFacts:
    """What needs no permission: which processor module serves /dev/kvm, and its parameters.

    Only one can serve, but both have a directory in /sys where they are built into the kernel: then
    the processor's own flags decide.
    """
    seen = KvmFacts(path=_PATH, state=DeviceAccess.USABLE)
    modules = root / "sys/module"
    mmu = files.switch(modules / "kvm/parameters/tdp_mmu")
    loaded = [name for name, _ in _MODULES.values() if (modules / name).is_dir()]
    flags = files.cpu_flags(root)
    for vendor, (name, parameter) in _MODULES.items():
        if name in loaded and (len(loaded) == 1 or vendor in flags):
            tdp = files.switch(modules / name / "parameters" / parameter)
            return replace(seen, vendor=vendor, module=name, tdp=tdp, tdp_mmu=mmu if tdp else tdp)
    others = sorted({other.name for other in modules.glob("kvm_*")} - set(loaded))
    if others:
        return replace(seen, vendor=Vendor.OTHER, module=others[0], tdp_mmu=mmu)
    return seen


def _tried(seen: KvmFacts, path: Path) -> KvmFacts:
    with Kvm.open(str(path)) as kvm:
        with kvm.create_vm() as vm:
            accepted, words = _flag(vm)
        # Another VM, as a quirk that is off stays off.
        with kvm.create_vm() as vm:
            return replace(
                seen,
                vendor=seen.vendor or Vendor.OTHER,
                api_version=kvm.api_version,
                memslots=kvm.check_extension(Cap.NR_MEMSLOTS),
                user_memory2=bool(kvm.check_extension(Cap.USER_MEMORY2)),
                quirks=kvm.check_extension(Cap.DISABLE_QUIRKS2),
                ignore_guest_pat_quirk=_quirk(vm),
                non_coherent_dma_flag=accepted,
                flag_trial=words,
                vfio=vm.has_device(DeviceType.VFIO),
            )


def _quirk(vm: Vm) -> bool:
    try:
        vm.disable_quirks(Quirk.IGNORE_GUEST_PAT)
    except HostError as error:
        if error.errno == errno.EINVAL:
            return False
        raise
    return True


def _flag(vm: Vm) -> tuple[bool, str]:
    """Set a flagged slot, toggle the flag, delete the slot; whether it is the flag that we mean."""
    size = PAGE_SIZE
    # The pages are there until the slot is gone, whatever happens in between.
    memory = np.frombuffer(mmap.mmap(-1, size), np.uint8)
    address = address_of(memory)

    def refused(flags: int, length: int = size) -> bool:
        try:
            vm.set_user_memory_region(_SLOT, flags, _GPA, length, address)
        except HostError as error:
            if error.errno == errno.EINVAL:
                return True
            raise
        return False

    # A plain slot first: else a refusal of the flagged one would tell nothing about the flag.
    if refused(SlotFlag.NONE) or refused(SlotFlag.NONE, 0):
        return False, "but a plain slot is refused as well"
    if refused(SlotFlag.NON_COHERENT_DMA):
        return False, "a slot with it is refused (EINVAL)"
    # Fixed for the life of a slot: where it can be toggled, the bit means something else.
    fixed = refused(SlotFlag.NONE)
    if refused(SlotFlag.NONE, 0):
        return False, "a slot with it was made, but can't be deleted"
    if not fixed:
        return False, "its bit can be toggled on a live slot, so it is another flag"
    return True, "by a slot that was made with it, kept it, and was deleted"
