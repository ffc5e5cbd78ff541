"""What KVM can do on this host, found by trying it in a scratch VM.

The memory slot flag is tried on a slot: its capability number means different things to different
kernels. Source: Documentation/virt/kvm/api.rst of the kernel.
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

# The address of the scratch slot: away from all that KVM itself puts into a guest's memory.
_GPA: Final = 1 << 30
_SLOT: Final = 0

# The parameter of each processor module that says whether two-dimensional paging is on.
_MODULES: Final[dict[Vendor, tuple[str, str]]] = {
    Vendor.VMX: ("kvm_intel", "ept"),
    Vendor.SVM: ("kvm_amd", "npt"),
}


@dataclass(frozen=True, slots=True)
class KvmFacts:
    """KVM as found; a fact that could not be tried or seen is None.

    `problem` and `advice` say why KVM is not usable. `vendor` and `module` are of the processor
    module that is loaded, None if there is none. `quirks` is the mask of KVM_CAP_DISABLE_QUIRKS2.
    `flag_trial` is the result of the flagged slot in words. `tdp` is two-dimensional paging (EPT or
    NPT), `tdp_mmu` whether its lock-free page fault handling is on. `nested` is whether this host
    is itself a VM, by the processor's flags.
    """

    path: str
    state: DeviceAccess
    problem: str = ""
    advice: str = ""
    vendor: Vendor | None = None
    module: str | None = None
    tdp: bool | None = None
    tdp_mmu: bool | None = None
    nested: bool | None = None
    api_version: int | None = None
    memslots: int | None = None
    user_memory2: bool | None = None
    quirks: int | None = None
    ignore_guest_pat_quirk: bool | None = None
    non_coherent_dma_flag: bool | None = None
    flag_trial: str = ""
    vfio: bool | None = None


def probe(root: Path = files.ROOT) -> KvmFacts:
    """Read /sys, and try what /dev/kvm can do, both below `root`. Raises nothing."""
    seen = _seen(root)
    try:
        return _tried(seen, root / _PATH.lstrip("/"))
    except HostError as error:
        problem = str(error).removesuffix(f"; {error.advice}")
        return replace(
            seen, state=DeviceAccess.after(error.errno), problem=problem, advice=error.advice
        )


def _seen(root: Path) -> KvmFacts:
    """Return the facts that need no permission: the processor module and its parameters.

    Only one module can be in use, but both have a directory in /sys if they are built into the
    kernel: then the processor's own flags decide.
    """
    flags = files.cpu_flags(root)
    nested = "hypervisor" in flags if flags else None
    seen = KvmFacts(path=_PATH, state=DeviceAccess.USABLE, nested=nested)
    modules = root / "sys/module"
    mmu = files.switch(modules / "kvm/parameters/tdp_mmu")
    loaded = [name for name, _ in _MODULES.values() if (modules / name).is_dir()]
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
        # In another VM, as a quirk that is disabled stays so.
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
    """Try a flagged slot; return whether KVM_MEM_NON_COHERENT_DMA works, and why in words."""
    size = PAGE_SIZE
    # The pages must stay mapped until the slot is deleted.
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

    # A slot without the flag first: else a refusal would not be because of the flag.
    if refused(SlotFlag.NONE) or refused(SlotFlag.NONE, 0):
        return False, "but a slot without it is refused as well"
    if refused(SlotFlag.NON_COHERENT_DMA):
        return False, "a slot with it is refused (EINVAL)"
    # The flag is fixed for the life of a slot: a bit that can be toggled means something else.
    fixed = refused(SlotFlag.NONE)
    if refused(SlotFlag.NONE, 0):
        return False, "a slot with it was made, but can't be deleted"
    if not fixed:
        return False, "its bit can be toggled on a live slot, so it is another flag"
    return True, "by a slot that was made with it, kept it, and was deleted"
