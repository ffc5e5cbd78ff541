"""The facts of every kind of host on which doctor must be useful."""

from __future__ import annotations

from dataclasses import replace

from vgpud.coherency.kvm_mode import Vendor
from vgpud.coherency.probes.device_access import DeviceAccess
from vgpud.coherency.probes.drm import NON_SNOOPING, GpuFacts, GpuNode
from vgpud.coherency.probes.host import HostFacts
from vgpud.coherency.probes.kvm import KvmFacts
from vgpud.coherency.probes.qemu import QemuFacts
from vgpud.coherency.probes.system import (
    CpuFacts,
    HugePages,
    MemoryFacts,
    SystemFacts,
    UdmabufFacts,
)

TRIXIE = "Debian GNU/Linux 13 (trixie)"


def gpu(driver: str, *, accessible: bool = True) -> GpuFacts:
    """A GPU with two nodes."""
    nodes = tuple(GpuNode(f"/dev/dri/{name}", accessible) for name in ("card0", "renderD128"))
    return GpuFacts("0000:00:02.0", driver, nodes, NON_SNOOPING.get(driver))


INTEL = HostFacts(
    system=SystemFacts("6.18.2-amd64", TRIXIE, "trixie"),
    cpu=CpuFacts(
        vendor="GenuineIntel",
        model="Intel(R) Core(TM) Ultra 7 155H",
        self_snoop=True,
        hypervisor=False,
        flush=("clflushopt", "clwb"),
    ),
    kvm=KvmFacts(
        path="/dev/kvm",
        state=DeviceAccess.USABLE,
        vendor=Vendor.VMX,
        module="kvm_intel",
        tdp=True,
        tdp_mmu=True,
        nested=False,
        api_version=12,
        memslots=32764,
        user_memory2=True,
        quirks=0x7FF,
        ignore_guest_pat_quirk=True,
        non_coherent_dma_flag=False,
        flag_trial="a slot with it is refused (EINVAL)",
        vfio=True,
    ),
    memory=MemoryFacts(
        locked_limit=None,
        huge_pages=(HugePages(2 << 20, 0, 0), HugePages(1 << 30, 0, 0)),
        udmabuf=UdmabufFacts(DeviceAccess.USABLE),
    ),
    gpus=(gpu("xe"),),
    qemu=QemuFacts("/usr/bin/qemu-system-x86_64", "11.1.3", True, "off"),
)
"""A new machine with a new kernel."""

OLD_KVM = replace(INTEL.kvm, quirks=0x1FF, ignore_guest_pat_quirk=False)
OLD_QEMU = QemuFacts("/usr/bin/qemu-system-x86_64", "10.0.2", False)
INTEL_OLD = replace(
    INTEL,
    system=SystemFacts("6.12.43+deb13-amd64", TRIXIE, "trixie"),
    kvm=OLD_KVM,
    gpus=(gpu("i915"),),
    qemu=OLD_QEMU,
)
INTEL_NO_SELF_SNOOP = replace(INTEL, cpu=replace(INTEL.cpu, self_snoop=False), kvm=OLD_KVM)
INTEL_NO_EPT = replace(INTEL, kvm=replace(OLD_KVM, tdp=False, tdp_mmu=False))
FLAGGED = replace(
    INTEL,
    system=SystemFacts("7.3.4", TRIXIE, "trixie"),
    kvm=replace(
        OLD_KVM,
        non_coherent_dma_flag=True,
        flag_trial="by a slot that was made with it, kept it, and was deleted",
    ),
    gpus=(),
)
AMD = replace(
    INTEL,
    cpu=replace(INTEL.cpu, vendor="AuthenticAMD", model="AMD Ryzen 9 9950X 16-Core Processor"),
    kvm=replace(OLD_KVM, vendor=Vendor.SVM, module="kvm_amd"),
    gpus=(gpu("amdgpu"),),
)
AMD_NO_NPT = replace(AMD, kvm=replace(AMD.kvm, tdp=False, tdp_mmu=False))
OTHER = replace(
    AMD,
    cpu=replace(AMD.cpu, hypervisor=True, self_snoop=False),
    kvm=replace(
        OLD_KVM, vendor=Vendor.OTHER, module="kvm_pvm", tdp=None, tdp_mmu=False, nested=True
    ),
    gpus=(),
)


def in_vm(facts: HostFacts) -> HostFacts:
    """The same host as a VM with nested virtualization."""
    return replace(
        facts, cpu=replace(facts.cpu, hypervisor=True), kvm=replace(facts.kvm, nested=True)
    )


NESTED_INTEL = in_vm(INTEL)
NESTED_INTEL_OLD = in_vm(INTEL_OLD)
NESTED_FLAGGED = in_vm(FLAGGED)
NESTED_AMD = in_vm(AMD)
CPU_UNSEEN = replace(AMD, cpu=CpuFacts("", "", False, False, ()), kvm=replace(AMD.kvm, nested=None))
DENIED = replace(
    INTEL,
    kvm=KvmFacts(
        path="/dev/kvm",
        state=DeviceAccess.DENIED,
        problem="open /dev/kvm: Permission denied",
        advice="no permission",
        vendor=Vendor.VMX,
        module="kvm_intel",
        tdp=True,
        tdp_mmu=True,
        nested=False,
    ),
    memory=MemoryFacts(
        8 << 20, (), UdmabufFacts(DeviceAccess.DENIED, "open /dev/udmabuf: Permission denied")
    ),
    gpus=(gpu("xe", accessible=False),),
)
FAILED = replace(
    INTEL,
    kvm=replace(
        DENIED.kvm,
        state=DeviceAccess.FAILED,
        problem="KVM_CREATE_VM: Device or resource busy",
        advice="",
    ),
)
ABSENT = replace(
    INTEL,
    kvm=KvmFacts(
        path="/dev/kvm",
        state=DeviceAccess.ABSENT,
        problem="open /dev/kvm: No such file or directory",
        advice="load it",
        nested=False,
    ),
    memory=replace(INTEL.memory, udmabuf=UdmabufFacts(DeviceAccess.ABSENT, "open: No such file")),
    gpus=(),
    qemu=None,
)
ABSENT_IN_VM = in_vm(replace(ABSENT, cpu=AMD.cpu))
NODE_ABSENT = replace(
    ABSENT, kvm=replace(ABSENT.kvm, vendor=Vendor.VMX, module="kvm_intel", tdp=True)
)
BROKEN = replace(
    FLAGGED,
    cpu=CpuFacts("", "", False, False, ()),
    memory=replace(
        INTEL.memory, huge_pages=(), udmabuf=UdmabufFacts(DeviceAccess.FAILED, "UDMABUF_CREATE")
    ),
    qemu=QemuFacts("/usr/bin/qemu-system-x86_64", problem="no answer in 5 seconds"),
)

HOSTS = {
    name.lower(): value for name, value in list(globals().items()) if isinstance(value, HostFacts)
}
