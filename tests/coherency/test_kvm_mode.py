"""What KVM makes of guest PAT: every combination of what can be seen, and no claim
without evidence."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

import pytest

from vgpud.coherency.kvm_mode import (
    HonorGuestPat,
    KvmMode,
    Vendor,
    of_agent,
    of_front_end,
    of_own_vm,
)
from vgpud.coherency.plan import VmSetup

YES_NO_UNKNOWN = (True, False, None)
HONOURS = {KvmMode.FLAG, KvmMode.QUIRK_DISABLED, KvmMode.VFIO, KvmMode.SVM, KvmMode.EMULATED}

HONOURING = {HonorGuestPat.ON, HonorGuestPat.AUTO}


@dataclass(frozen=True)
class Host:
    """A host's KVM, by default Intel's of a new kernel."""

    vendor: Vendor | None = Vendor.VMX
    tdp: bool | None = True
    non_coherent_dma_flag: bool | None = False
    ignore_guest_pat_quirk: bool | None = True


@dataclass(frozen=True)
class FrontEndFacts:
    """A front-end, by default a QEMU with a VM."""

    program: str | None = "qemu-system-x86_64"
    is_qemu: bool = True
    kvm_vms: int | None = 1
    honor_guest_pat: HonorGuestPat = HonorGuestPat.UNSAID
    problem: str = ""


OLD = Host(ignore_guest_pat_quirk=False)
NEW = Host()
UNTRIED = Host(non_coherent_dma_flag=None, ignore_guest_pat_quirk=None)
PATCHED = Host(non_coherent_dma_flag=True, ignore_guest_pat_quirk=False)
AMD = Host(Vendor.SVM, ignore_guest_pat_quirk=False)
SHADOW_INTEL = Host(tdp=False, non_coherent_dma_flag=True)
SHADOW_AMD = Host(Vendor.SVM, tdp=False)
OTHER = Host(Vendor.OTHER, tdp=None, non_coherent_dma_flag=True)
NONE = Host(None, None, None, None)


@pytest.mark.parametrize(
    ("host", "mode"),
    [
        (NONE, KvmMode.UNKNOWN),
        (OLD, KvmMode.FORCED_WB),
        (NEW, KvmMode.QUIRK_DISABLED),
        (UNTRIED, KvmMode.UNKNOWN),
        (PATCHED, KvmMode.FLAG),
        (Host(non_coherent_dma_flag=True), KvmMode.FLAG),
        (AMD, KvmMode.SVM),
        (Host(Vendor.SVM, non_coherent_dma_flag=True), KvmMode.FLAG),
        (Host(Vendor.SVM, None, None, None), KvmMode.UNKNOWN),
        (Host(Vendor.SVM, True, None, None), KvmMode.SVM),
        (SHADOW_INTEL, KvmMode.FORCED_WB),
        (SHADOW_AMD, KvmMode.FORCED_WB),
        (OTHER, KvmMode.UNKNOWN),
    ],
)
def test_a_vm_in_our_hands(host: Host, mode: KvmMode) -> None:
    assert of_own_vm(host).mode is mode


@pytest.mark.parametrize(
    ("host", "peer", "mode"),
    [
        # No KVM, or a VM that somebody else has.
        (NEW, FrontEndFacts(kvm_vms=0), KvmMode.EMULATED),
        (NONE, FrontEndFacts(kvm_vms=0), KvmMode.EMULATED),
        (NEW, FrontEndFacts("libvirtd", False, 0), KvmMode.UNKNOWN),
        (NEW, FrontEndFacts(None, False, None, problem="x"), KvmMode.UNKNOWN),
        (NEW, FrontEndFacts(kvm_vms=None), KvmMode.UNKNOWN),
        # QEMU on Intel.
        (NEW, FrontEndFacts(), KvmMode.UNKNOWN),
        (NEW, FrontEndFacts(honor_guest_pat=HonorGuestPat.ON), KvmMode.QUIRK_DISABLED),
        (NEW, FrontEndFacts(honor_guest_pat=HonorGuestPat.AUTO), KvmMode.QUIRK_DISABLED),
        (NEW, FrontEndFacts(honor_guest_pat=HonorGuestPat.OFF), KvmMode.FORCED_WB),
        (OLD, FrontEndFacts(), KvmMode.FORCED_WB),
        (OLD, FrontEndFacts(honor_guest_pat=HonorGuestPat.AUTO), KvmMode.FORCED_WB),
        (UNTRIED, FrontEndFacts(), KvmMode.UNKNOWN),
        (UNTRIED, FrontEndFacts(honor_guest_pat=HonorGuestPat.AUTO), KvmMode.UNKNOWN),
        (UNTRIED, FrontEndFacts(honor_guest_pat=HonorGuestPat.ON), KvmMode.QUIRK_DISABLED),
        # A stock VMM sets no flag.
        (PATCHED, FrontEndFacts(), KvmMode.FORCED_WB),
        # Other VMMs, which have ways of their own.
        (NEW, FrontEndFacts("crosvm", False), KvmMode.UNKNOWN),
        (NEW, FrontEndFacts("crosvm", False, honor_guest_pat=HonorGuestPat.ON), KvmMode.UNKNOWN),
        (PATCHED, FrontEndFacts("crosvm", False), KvmMode.UNKNOWN),
        (OLD, FrontEndFacts("crosvm", False), KvmMode.FORCED_WB),
        # Whatever the VMM does.
        (AMD, FrontEndFacts(), KvmMode.SVM),
        (AMD, FrontEndFacts("crosvm", False), KvmMode.SVM),
        (SHADOW_AMD, FrontEndFacts(), KvmMode.FORCED_WB),
        (SHADOW_INTEL, FrontEndFacts(honor_guest_pat=HonorGuestPat.ON), KvmMode.FORCED_WB),
        (OTHER, FrontEndFacts(honor_guest_pat=HonorGuestPat.ON), KvmMode.UNKNOWN),
        (NONE, FrontEndFacts(), KvmMode.UNKNOWN),
    ],
)
def test_a_front_end(host: Host, peer: FrontEndFacts, mode: KvmMode) -> None:
    assert of_front_end(host, peer).mode is mode


HOSTS = [
    Host(vendor, *facts) for vendor in (*Vendor, None) for facts in product(*[YES_NO_UNKNOWN] * 3)
]


def test_nobody_is_believed_to_honour_without_evidence() -> None:
    for host in HOSTS:
        if of_own_vm(host).mode in HONOURS:
            assert host.vendor in {Vendor.VMX, Vendor.SVM}
            assert host.tdp is not False
            assert (
                host.vendor is Vendor.SVM
                or host.non_coherent_dma_flag
                or host.ignore_guest_pat_quirk
            )
        for qemu, vms, told in product((True, False), (0, 1, None), HonorGuestPat):
            mode = of_front_end(host, FrontEndFacts("x", qemu, vms, told)).mode
            if mode is KvmMode.EMULATED:
                assert (qemu, vms) == (True, 0)
            elif mode in HONOURS:
                assert vms
                assert host.tdp is not False
                assert host.vendor is Vendor.SVM or (
                    host.vendor is Vendor.VMX and qemu and told in HONOURING
                )
            # Only an own VM's slots can be flagged.
            assert mode is not KvmMode.FLAG


def test_every_finding_has_a_reason() -> None:
    for host in HOSTS:
        assert of_own_vm(host).reason
        for vms in (0, 1, None):
            assert of_front_end(host, FrontEndFacts(kvm_vms=vms, problem="hidden")).reason
    assert "hidden" in of_front_end(NEW, FrontEndFacts(kvm_vms=None, problem="hidden")).reason
    assert "crosvm" in of_front_end(NEW, FrontEndFacts("crosvm", False)).reason


def test_what_an_agent_s_vmm_did_to_its_vm_is_not_seen() -> None:
    assert of_agent(NEW).mode is KvmMode.UNKNOWN
    for host in (NONE, OLD, PATCHED, AMD, SHADOW_AMD, OTHER):
        assert of_agent(host) == of_own_vm(host)


@pytest.mark.parametrize(
    ("host", "accepted", "setup", "mode"),
    [
        # What was tried in the agent's own VM counts, also where nothing of KVM is to be seen.
        (OLD, True, (), KvmMode.FLAG),
        (NONE, True, (), KvmMode.FLAG),
        (UNTRIED, True, (), KvmMode.FLAG),
        (PATCHED, False, (), KvmMode.FORCED_WB),
        (PATCHED, None, (), KvmMode.FLAG),
        (NONE, False, (), KvmMode.UNKNOWN),
        (AMD, False, (), KvmMode.SVM),
        # What the VMM says of its VM, as far as it can be true.
        (NEW, False, (VmSetup.DISABLE_IGNORE_GUEST_PAT,), KvmMode.QUIRK_DISABLED),
        (NONE, None, (VmSetup.DISABLE_IGNORE_GUEST_PAT,), KvmMode.QUIRK_DISABLED),
        (OLD, False, (VmSetup.DISABLE_IGNORE_GUEST_PAT,), KvmMode.FORCED_WB),
        (OLD, False, (VmSetup.NON_COHERENT_VFIO,), KvmMode.VFIO),
        (NEW, True, (VmSetup.DISABLE_IGNORE_GUEST_PAT,), KvmMode.FLAG),
        (AMD, False, (VmSetup.NON_COHERENT_VFIO,), KvmMode.SVM),
        # Where page tables are shadowed, or KVM is another, neither helps.
        (SHADOW_INTEL, True, (VmSetup.NON_COHERENT_VFIO,), KvmMode.FORCED_WB),
        (SHADOW_AMD, True, (), KvmMode.FORCED_WB),
        (OTHER, True, (VmSetup.DISABLE_IGNORE_GUEST_PAT,), KvmMode.UNKNOWN),
    ],
)
def test_what_an_agent_has_tried_and_says(
    host: Host, accepted: bool | None, setup: tuple[VmSetup, ...], mode: KvmMode
) -> None:
    found = of_agent(host, flag_accepted=accepted, vm_setup=setup)
    assert found.mode is mode
    assert found.reason
