"""What KVM makes of guest PAT: every combination of what can be seen, and no claim
without evidence."""

from __future__ import annotations

from dataclasses import dataclass, replace
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
    nested: bool | None = False


@dataclass(frozen=True)
class FrontEndFacts:
    """A front-end, by default a QEMU with a VM."""

    program: str | None = "qemu-system-x86_64"
    is_qemu: bool = True
    kvm_vms: int | None = 1
    honor_guest_pat: HonorGuestPat = HonorGuestPat.UNSAID
    vfio: bool = False
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
NESTED_INTEL = replace(NEW, nested=True)
NESTED_AMD = replace(AMD, nested=True)
NESTED = [
    replace(host, nested=True)
    for host in (OLD, NEW, UNTRIED, PATCHED, AMD, replace(AMD, non_coherent_dma_flag=True))
]


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
        # The DMA of an assigned device may be non-coherent, and then KVM honours it in any case.
        (NEW, FrontEndFacts(honor_guest_pat=HonorGuestPat.OFF, vfio=True), KvmMode.UNKNOWN),
        (NEW, FrontEndFacts(honor_guest_pat=HonorGuestPat.ON, vfio=True), KvmMode.QUIRK_DISABLED),
        (OLD, FrontEndFacts(vfio=True), KvmMode.UNKNOWN),
        (OLD, FrontEndFacts("crosvm", False, vfio=True), KvmMode.UNKNOWN),
        (AMD, FrontEndFacts(vfio=True), KvmMode.SVM),
        (SHADOW_INTEL, FrontEndFacts(vfio=True), KvmMode.FORCED_WB),
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


@pytest.mark.parametrize("host", NESTED)
def test_an_outer_hypervisor_decides_whatever_this_kvm_can_do(host: Host) -> None:
    """Before the flag and the quirk: they change entries that the outer hypervisor does not use."""
    assert of_own_vm(host).mode is KvmMode.NESTED


@pytest.mark.parametrize("host", NESTED)
@pytest.mark.parametrize("told", HonorGuestPat)
@pytest.mark.parametrize("qemu", [True, False])
def test_an_outer_hypervisor_decides_whatever_the_vmm_asks_of_this_kvm(
    host: Host, told: HonorGuestPat, qemu: bool
) -> None:
    """Also before honor-guest-pat=off and a KVM without the quirk, which do not force WB either."""
    assert of_front_end(host, FrontEndFacts("x", qemu, 1, told)).mode is KvmMode.NESTED


@pytest.mark.parametrize("host", NESTED)
@pytest.mark.parametrize("accepted", YES_NO_UNKNOWN)
@pytest.mark.parametrize("setup", [(), *((setup,) for setup in VmSetup)])
def test_an_outer_hypervisor_decides_whatever_an_agent_has_tried_or_says(
    host: Host, accepted: bool | None, setup: tuple[VmSetup, ...]
) -> None:
    found = of_agent(host, flag_accepted=accepted, vm_setup=setup)
    assert found.mode is KvmMode.NESTED


@pytest.mark.parametrize("shadow", [SHADOW_INTEL, SHADOW_AMD])
def test_shadow_page_tables_have_only_wb_entries_for_an_outer_hypervisor_to_use(
    shadow: Host,
) -> None:
    host = replace(shadow, nested=True)
    assert of_own_vm(host) == of_own_vm(shadow)
    assert of_agent(host, flag_accepted=True) == of_agent(shadow, flag_accepted=True)
    assert of_front_end(host, FrontEndFacts()) == of_front_end(shadow, FrontEndFacts())


def test_an_emulator_makes_the_accesses_itself_also_in_a_vm() -> None:
    for host in NESTED:
        assert of_front_end(host, FrontEndFacts(kvm_vms=0)).mode is KvmMode.EMULATED


def test_of_a_kvm_or_a_vmm_that_is_not_known_nothing_more_is_claimed_in_a_vm() -> None:
    other = replace(OTHER, nested=True)
    assert of_own_vm(other) == of_agent(other, flag_accepted=True) == of_own_vm(OTHER)
    assert of_front_end(other, FrontEndFacts()) == of_front_end(OTHER, FrontEndFacts())
    for unknown in (FrontEndFacts("libvirtd", False, 0), FrontEndFacts(kvm_vms=None)):
        assert of_front_end(NESTED_AMD, unknown).mode is KvmMode.UNKNOWN
    # A flagged slot shows that there is a KVM, not whether the outer hypervisor heeds it.
    none = replace(NONE, nested=True)
    for setup in ((), *((setup,) for setup in VmSetup)):
        found = of_agent(none, flag_accepted=True, vm_setup=setup)
        assert found.mode is KvmMode.UNKNOWN


@pytest.mark.parametrize("host", NESTED)
def test_whether_a_host_is_a_vm_must_be_seen_before_its_kvm_is_believed(host: Host) -> None:
    unseen = replace(host, nested=None)
    assert of_own_vm(unseen).mode is KvmMode.UNKNOWN
    assert of_agent(unseen, flag_accepted=True).mode is KvmMode.UNKNOWN
    for told in HonorGuestPat:
        peer = FrontEndFacts(honor_guest_pat=told)
        assert of_front_end(unseen, peer).mode is KvmMode.UNKNOWN


def test_why_an_outer_hypervisor_decides() -> None:
    amd, intel = of_own_vm(NESTED_AMD).reason, of_own_vm(NESTED_INTEL).reason
    assert "KVM_X86_QUIRK_NESTED_SVM_SHARED_PAT" in amd
    assert "EPT" in intel
    assert of_front_end(NESTED_AMD, FrontEndFacts()).reason == amd
    assert of_agent(NESTED_INTEL).reason == intel


HOSTS = [
    Host(vendor, *facts) for vendor in (*Vendor, None) for facts in product(*[YES_NO_UNKNOWN] * 4)
]


def test_nobody_is_believed_to_honour_without_evidence() -> None:
    for host in HOSTS:
        if of_own_vm(host).mode in HONOURS:
            assert host.vendor in {Vendor.VMX, Vendor.SVM}
            assert host.tdp is not False
            assert host.nested is False
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
                assert host.nested is False
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


def test_a_qemu_without_the_option_may_do_either() -> None:
    unsaid = of_front_end(NEW, FrontEndFacts())
    auto = of_front_end(UNTRIED, FrontEndFacts(honor_guest_pat=HonorGuestPat.AUTO))
    assert unsaid.mode is auto.mode is KvmMode.UNKNOWN
    assert "off by default in QEMU 11.1" in unsaid.reason
    assert "honor-guest-pat=auto" in auto.reason


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
