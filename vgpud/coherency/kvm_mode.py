"""Whether KVM honours a guest's PAT: its `KvmMode`, by the facts that `coherency.probes` finds.

There are two cases: a VM into which this process or an agent puts slots, and a VMM that is only a
vhost-user front-end. The mode is UNKNOWN if the facts don't tell it, and the planner then assumes
that the PAT may be ignored. Source: Linux, arch/x86/kvm (vmx_get_mt_mask,
KVM_X86_QUIRK_IGNORE_GUEST_PAT, l2_has_separate_pat); QEMU, accel/kvm.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from vgpud.coherency.plan import VmSetup


class KvmMode(StrEnum):
    """What decides the memory type of a guest's access to a slot of RAM.

    FLAG: the guest's PAT in slots with KVM_MEM_NON_COHERENT_DMA. QUIRK_DISABLED: the guest's PAT,
    as KVM_X86_QUIRK_IGNORE_GUEST_PAT is disabled for the VM, or as the operator says. VFIO: the
    guest's PAT, as a device with non-coherent DMA is assigned. SVM: the guest's PAT, always.
    NESTED: the outer hypervisor, as the host is itself a VM. On AMD it may look up the guest's page
    table entries in the host's PAT; on Intel it chooses the memory types of the EPT entries.
    FORCED_WB: KVM maps RAM as write-back. EMULATED: there is no KVM, and the emulator's loads and
    stores make the accesses. UNKNOWN: any of these.
    """

    FLAG = "flag"
    QUIRK_DISABLED = "quirk-disabled"
    VFIO = "vfio"
    SVM = "svm"
    NESTED = "nested"
    FORCED_WB = "forced-wb"
    EMULATED = "emulated"
    UNKNOWN = "unknown"

    @property
    def honours_guest_pat(self) -> bool:
        """Whether the guest's PAT decides; for FLAG, in the slots that have the flag."""
        return self in {KvmMode.FLAG, KvmMode.QUIRK_DISABLED, KvmMode.VFIO, KvmMode.SVM}


class Vendor(StrEnum):
    """The processor module of KVM that is in use: Intel's, AMD's or another."""

    VMX = "vmx"
    SVM = "svm"
    OTHER = "other"


class HonorGuestPat(StrEnum):
    """The value of honor-guest-pat on QEMU's command line.

    AUTO disables the quirk where KVM can. The default is off in QEMU 11.1, although that describes
    it as auto; of other versions it is not known.
    """

    ON = "on"
    OFF = "off"
    AUTO = "auto"
    UNSAID = "unsaid"


class HostKvm(Protocol):
    """What is known of the host's KVM; a fact that could not be tried is None."""

    @property
    def vendor(self) -> Vendor | None:
        """The processor module; None if none is loaded."""

    @property
    def tdp(self) -> bool | None:
        """Whether two-dimensional paging is on (EPT, NPT)."""

    @property
    def non_coherent_dma_flag(self) -> bool | None:
        """Whether a slot may have KVM_MEM_NON_COHERENT_DMA."""

    @property
    def ignore_guest_pat_quirk(self) -> bool | None:
        """Whether KVM_X86_QUIRK_IGNORE_GUEST_PAT of Intel's KVM can be disabled."""

    @property
    def nested(self) -> bool | None:
        """Whether the host is itself a VM."""


class FrontEndProcess(Protocol):
    """What is known of the process at the other end of a vhost-user socket."""

    @property
    def program(self) -> str | None:
        """The file name of its executable."""

    @property
    def is_qemu(self) -> bool:
        """Whether the program is QEMU's system emulator."""

    @property
    def kvm_vms(self) -> int | None:
        """How many KVM VMs the process has open."""

    @property
    def vfio(self) -> bool:
        """Whether KVM has been told of a device that is assigned to a VM of the process."""

    @property
    def honor_guest_pat(self) -> HonorGuestPat:
        """The value of that option on its command line."""

    @property
    def problem(self) -> str:
        """Why some of these facts are not known; empty if all are."""


@dataclass(frozen=True, slots=True)
class Finding:
    """A mode, and the reason for it in one sentence."""

    mode: KvmMode
    reason: str


def of_own_vm(host: HostKvm) -> Finding:
    """Return the best mode for a VM that this process or an agent sets up and puts slots into."""
    if host.vendor is None:
        return Finding(KvmMode.UNKNOWN, "there is no KVM here")
    if host.vendor is Vendor.OTHER:
        return _other()
    if host.tdp is False:
        return _shadow()
    if host.nested is not False:
        return _nested(host)
    if host.non_coherent_dma_flag:
        return Finding(KvmMode.FLAG, "this kernel takes KVM_MEM_NON_COHERENT_DMA on a slot")
    if host.vendor is Vendor.SVM:
        return _svm(host.tdp)
    if host.ignore_guest_pat_quirk:
        return Finding(
            KvmMode.QUIRK_DISABLED, "Intel's KVM ignores guest PAT, but that quirk can be disabled"
        )
    if host.ignore_guest_pat_quirk is None or host.non_coherent_dma_flag is None:
        return Finding(KvmMode.UNKNOWN, "Intel's KVM, but what it can do could not be tried")
    return _forced()


@dataclass(frozen=True, slots=True)
class _KvmOfAgent:
    """The host's KVM, with what an agent has tried."""

    vendor: Vendor | None
    tdp: bool | None
    non_coherent_dma_flag: bool | None
    ignore_guest_pat_quirk: bool | None
    nested: bool | None


def of_agent(
    host: HostKvm, *, flag_accepted: bool | None = None, vm_setup: Collection[VmSetup] = ()
) -> Finding:
    """Return the mode of a VM that its VMM sets up and in which an agent sets slots.

    `flag_accepted` is whether that VM has taken a flagged slot, None if none was tried; `vm_setup`
    is what the agent says was done to the VM.
    """
    flag = host.non_coherent_dma_flag if flag_accepted is None else flag_accepted
    seen = _KvmOfAgent(host.vendor, host.tdp, flag, host.ignore_guest_pat_quirk, host.nested)
    if host.vendor is Vendor.OTHER or host.tdp is False or host.nested is not False:
        return of_own_vm(seen)  # the agent's set-up makes no difference
    if flag_accepted:
        return Finding(
            KvmMode.FLAG, "the agent's VM has taken a slot with KVM_MEM_NON_COHERENT_DMA"
        )
    if host.vendor is not Vendor.SVM:
        if (
            VmSetup.DISABLE_IGNORE_GUEST_PAT in vm_setup
            and host.ignore_guest_pat_quirk is not False
        ):
            return Finding(
                KvmMode.QUIRK_DISABLED,
                "the agent says that the quirk was disabled, so KVM honours guest PAT",
            )
        if VmSetup.NON_COHERENT_VFIO in vm_setup:
            return Finding(
                KvmMode.VFIO, "the agent says that a device with non-coherent DMA is assigned"
            )
    found = of_own_vm(seen)
    if found.mode is KvmMode.QUIRK_DISABLED:
        return Finding(
            KvmMode.UNKNOWN,
            "Intel's KVM can honour guest PAT, but nothing shows that the VMM has set it up so",
        )
    return found


def of_front_end(host: HostKvm, front_end: FrontEndProcess) -> Finding:
    """Return the mode of the VM that a vhost-user front-end runs.

    That is known only when the guest runs: QEMU connects its sockets before it opens KVM.

    A QEMU on Intel whose command line does not have honor-guest-pat is UNKNOWN, not FORCED_WB: its
    process does not show its version. So is any that has a device assigned: KVM honours guest PAT,
    whatever it was told, once the DMA of one is non-coherent.
    """
    if front_end.kvm_vms is None:
        return Finding(KvmMode.UNKNOWN, f"the VMM's process can't be examined: {front_end.problem}")
    if front_end.kvm_vms == 0:
        if front_end.is_qemu:
            return Finding(KvmMode.EMULATED, "without KVM nothing overrides guest PAT")
        # Such as libvirt, which connects a socket and passes it to QEMU.
        return Finding(
            KvmMode.UNKNOWN,
            f"{front_end.program} has no KVM VM open, but may have connected for a VMM that has",
        )
    if host.vendor not in {Vendor.VMX, Vendor.SVM}:
        return _other()
    if host.tdp is False:
        return _shadow()
    if host.nested is not False:
        return _nested(host)
    if host.vendor is Vendor.SVM:
        return _svm(host.tdp)
    # Before the host's facts: QEMU does not start with this option where KVM can't do it.
    if front_end.is_qemu and front_end.honor_guest_pat is HonorGuestPat.ON:
        return Finding(KvmMode.QUIRK_DISABLED, "QEMU was started with honor-guest-pat=on")
    if front_end.vfio:
        return Finding(
            KvmMode.UNKNOWN,
            "a device is assigned to the VM, and Intel's KVM honours guest PAT if that device's DMA"
            " is non-coherent",
        )
    if front_end.is_qemu and front_end.honor_guest_pat is HonorGuestPat.OFF:
        return Finding(KvmMode.FORCED_WB, "QEMU was started with honor-guest-pat=off")
    if host.ignore_guest_pat_quirk is False and (
        front_end.is_qemu or host.non_coherent_dma_flag is False
    ):
        return _forced()
    if not front_end.is_qemu:
        return Finding(KvmMode.UNKNOWN, f"how {front_end.program} sets up its VM can't be seen")
    if front_end.honor_guest_pat is HonorGuestPat.AUTO:
        if host.ignore_guest_pat_quirk:
            return Finding(KvmMode.QUIRK_DISABLED, "QEMU was started with honor-guest-pat=auto")
        return Finding(
            KvmMode.UNKNOWN,
            "QEMU was started with honor-guest-pat=auto, but what Intel's KVM can do could not be"
            " tried",
        )
    return Finding(
        KvmMode.UNKNOWN,
        "QEMU's command line does not settle honor-guest-pat, which is off by default in QEMU 11.1"
        " and not known of other versions",
    )


def _other() -> Finding:
    return Finding(
        KvmMode.UNKNOWN, "this KVM is neither Intel's nor AMD's, and what it does is not known"
    )


def _forced() -> Finding:
    return Finding(
        KvmMode.FORCED_WB,
        "Intel's KVM forces guest memory to write-back, and the quirk can't be disabled",
    )


def _svm(tdp: bool | None) -> Finding:
    if tdp:
        return Finding(KvmMode.SVM, "AMD's KVM always honours the guest's PAT")
    return Finding(KvmMode.UNKNOWN, "AMD's KVM, but whether with nested paging can't be seen")


def _nested(host: HostKvm) -> Finding:
    """Return the mode of VMs on a host that is itself a VM, as far as that can be seen.

    On AMD, an outer KVM uses the PAT of this host for its guests too, unless its VMM has disabled
    that quirk. On Intel, the processor uses the EPT entries of the outer hypervisor, and an outer
    KVM does not copy memory type or "ignore PAT" from the entries that KVM has made here.
    """
    if host.nested is None:
        return Finding(KvmMode.UNKNOWN, "whether this host is itself a VM can't be seen")
    if host.vendor is Vendor.SVM:
        return Finding(
            KvmMode.NESTED,
            "this host is itself a VM, and an outer KVM uses its PAT in place of its guests' unless"
            " KVM_X86_QUIRK_NESTED_SVM_SHARED_PAT is disabled there",
        )
    return Finding(
        KvmMode.NESTED,
        "this host is itself a VM, and its hypervisor, not the KVM here, chooses the memory types"
        " of the EPT entries",
    )


def _shadow() -> Finding:
    return Finding(KvmMode.FORCED_WB, "without two-dimensional paging KVM maps all memory as WB")
