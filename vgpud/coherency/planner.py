"""The coherency planner: which memory type a guest is told of a blob, and what the host does so
that guest, host and device see the same bytes.

Its truth is checked against a model of caches, write-combining buffers and memory (tests/model),
row by row of `table()`: a step that it asks for is needed, and no step that is needed is missing.

Sources: Intel SDM vol. 3. 13.5.2.2 with table 13-7 (11-7 in old editions): MTRR and PAT. 30.3.7.2:
EPT, where the EPT entry's type stands for the MTRR's, and PAT counts unless the entry says to
ignore it. 13.3.1: write-combining buffers. 13.12.4: memory that is mapped cacheable here and
write-combining there, which Intel does not support "because WC writes may not check the processor
caches"; hence the flushes, which are that section's own remedy. SDM vol. 1, 10.4.6.2: non-temporal
stores. AMD APM vol. 2, 15.25.8: nested paging and PAT. Linux, arch/x86/kvm/vmx/vmx.c,
vmx_get_mt_mask(): RAM is forced to WB, host MMIO is UC and never ignores the guest's PAT.

A line that is flushed through one mapping is flushed for all of them, as caches know physical
addresses; that carries every plan below.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import Enum, StrEnum, auto
from itertools import product
from typing import Final, assert_never

from vgpud.coherency.plan import Duty, HostRead, HostWrite, Plan, Sync, VmSetup
from vgpud.coherency.slot_policy import Fallback, GuestPat, MemoryType, Rule
from vgpud.errors import GuestError
from vgpud.gpu.wire.protocol import MapInfo, ResponseType
from vgpud.uapi.memslot import SlotFlag

__all__ = [
    "Duty",
    "Facts",
    "GuestMtrr",
    "HostBacking",
    "HostRead",
    "HostWrite",
    "KvmMode",
    "Plan",
    "Row",
    "Sync",
    "VmSetup",
    "facts_of",
    "plan",
    "table",
    "window_slot_flags",
]


class KvmMode(StrEnum):
    """What decides the memory type of a guest's access to a slot of RAM.

    FLAG: the slot's flag KVM_MEM_NON_COHERENT_DMA; the guest's PAT with it. QUIRK_DISABLED: the
    guest's PAT, as KVM_X86_QUIRK_IGNORE_GUEST_PAT is disabled for the VM, or as the operator says.
    VFIO: the guest's PAT, as a device with non-coherent DMA is assigned. SVM: the guest's PAT,
    always. FORCED_WB: nothing, KVM maps RAM as write-back. EMULATED: there is no KVM, an emulator's
    own loads and stores do what the guest does. UNKNOWN: any of these.
    """

    FLAG = "flag"
    QUIRK_DISABLED = "quirk-disabled"
    VFIO = "vfio"
    SVM = "svm"
    FORCED_WB = "forced-wb"
    EMULATED = "emulated"
    UNKNOWN = "unknown"


class HostBacking(StrEnum):
    """What memory a blob is in, and how this process has it mapped.

    RAM_WB: RAM, mapped write-back (memfd, udmabuf). RAM_WC: RAM, mapped write-combining (what GEM
    drivers give). MMIO: memory of the device behind a host BAR, mapped write-combining or uncached.
    """

    RAM_WB = "ram-wb"
    RAM_WC = "ram-wc"
    MMIO = "mmio"


class GuestMtrr(StrEnum):
    """What the guest's own MTRRs say of the BAR.

    SeaBIOS and OVMF leave the PCI hole UC. A guest's kernel then makes UC- of a cached mapping, and
    KVMs up to Linux 6.10 make UC of it in the EPT.
    """

    WB = "wb"
    UC = "uc"


@dataclass(frozen=True, slots=True)
class Facts:
    """What is known of VM, memory and device.

    `device_snoops`: the device's accesses are snooped whatever we do. One that does not snoop can
    be made to, buffer by buffer.
    """

    kvm: KvmMode
    backing: HostBacking = HostBacking.RAM_WB
    mtrr: GuestMtrr = GuestMtrr.UC
    device_snoops: bool = False


@dataclass(frozen=True, slots=True)
class Row:
    """One row of `table()`: `plan` is None where the policy is to refuse, `reason` says why."""

    facts: Facts
    rule: Rule
    plan: Plan | None
    reason: str


class _Guest(Enum):
    """What the guest's accesses do, whatever it believes."""

    CACHED = auto()
    UNCACHED = auto()
    EITHER = auto()


_MAP_INFO: Final = {
    MemoryType.WC: MapInfo.WC,
    MemoryType.UC: MapInfo.UNCACHED,
    MemoryType.WB: MapInfo.CACHED,
}

_HONOURS: Final = {
    KvmMode.FLAG: "the slot's KVM_MEM_NON_COHERENT_DMA has KVM honour the guest's memory type",
    KvmMode.QUIRK_DISABLED: "KVM honours the guest's memory type, as the VM was set up to",
    KvmMode.VFIO: "KVM honours the guest's memory type, for the sake of an assigned device",
    KvmMode.SVM: "AMD's KVM honours the guest's memory type",
}

_SETUP: Final = {
    KvmMode.QUIRK_DISABLED: (VmSetup.DISABLE_IGNORE_GUEST_PAT,),
    KvmMode.VFIO: (VmSetup.NON_COHERENT_VFIO,),
}


def facts_of(
    guest_pat: GuestPat,
    *,
    seen: KvmMode = KvmMode.UNKNOWN,
    backing: HostBacking = HostBacking.RAM_WB,
    mtrr: GuestMtrr = GuestMtrr.UC,
    device_snoops: bool = False,
) -> Facts:
    """The facts of a device whose configuration says `guest_pat`.

    AUTO stands for what was `seen` of the VM. HONORED and IGNORED are the operator's word and
    override that, but they are about a VM's set-up: a flagged slot is beside the question, so
    HONORED leaves `seen` alone where that honours the guest's PAT anyway.
    """
    match guest_pat:
        case GuestPat.AUTO:
            mode = seen
        case GuestPat.HONORED:
            mode = seen if seen in _HONOURS else KvmMode.QUIRK_DISABLED
        case GuestPat.IGNORED:
            mode = KvmMode.FORCED_WB
        case _ as unreachable:
            assert_never(unreachable)
    return Facts(mode, backing, mtrr, device_snoops)


def window_slot_flags(facts: Facts, rules: Sequence[Rule]) -> SlotFlag:
    """The flags of one slot that holds blobs under all of these rules.

    It is flagged if some rule asks for it: without the flag that rule's type could not be had, with
    it a rule that wants write-back still gets a type that is true.
    """
    wanted = any(rule.memory_type is not MemoryType.WB for rule in rules)
    return SlotFlag.NON_COHERENT_DMA if wanted and _takes_flag(facts) else SlotFlag.NONE


def plan(facts: Facts | GuestPat, rule: Rule, *, slot_flags: SlotFlag | None = None) -> Plan:
    """Decides for a blob under `rule`.

    `slot_flags` are those of the slot that the blob goes into, where it is there already
    (`window_slot_flags`); None if the plan is to choose. A `GuestPat` stands for `facts_of` it.
    Raises `GuestError` (UNSPEC) if the rule's type can't be had and it says to refuse.
    """
    if isinstance(facts, GuestPat):
        facts = facts_of(facts)
    if facts.backing is HostBacking.MMIO:
        return _plan_mmio(rule)
    if facts.kvm is KvmMode.EMULATED:
        return _plan_emulated(facts, rule)
    if slot_flags is None:
        slot_flags = window_slot_flags(facts, [rule])
    honoured = _honoured(facts.kvm, slot_flags)
    if rule.memory_type is MemoryType.WB:
        return _plan_cached(facts, rule, slot_flags, honoured)
    if honoured:
        return _ram(
            facts,
            told=_MAP_INFO[rule.memory_type],
            guest=_Guest.UNCACHED,
            slot_flags=slot_flags,
            vm_setup=_SETUP.get(facts.kvm, ()),
            reason=f"{rule.memory_type}: {_HONOURS[facts.kvm]}",
        )
    if honoured is False:
        why = "KVM ignores the guest's memory type"
    elif facts.kvm is KvmMode.FLAG:
        why = "the slot is without KVM_MEM_NON_COHERENT_DMA"
    else:
        why = "nothing shows that KVM honours the guest's memory type"
    why += f", so {rule.memory_type} can't be promised"
    if rule.fallback is Fallback.REFUSE:
        raise _refusal(why)
    return _ram(
        facts,
        told=MapInfo.CACHED,
        guest=_told_cached(facts, honoured),
        slot_flags=slot_flags,
        snoops=rule.fallback is Fallback.SNOOP,
        reason=f"{why}: cached",
    )


def table() -> Iterator[Row]:
    """Every combination of facts and policy, with its plan."""
    for kvm, backing, mtrr, snoops in product(KvmMode, HostBacking, GuestMtrr, (False, True)):
        facts = Facts(kvm, backing, mtrr, snoops)
        for memory_type, fallback in product(MemoryType, Fallback):
            rule = Rule(memory_type=memory_type, fallback=fallback)
            try:
                found = plan(facts, rule)
            except GuestError as error:
                yield Row(facts, rule, None, str(error))
            else:
                yield Row(facts, rule, found, found.reason)


def _plan_mmio(rule: Rule) -> Plan:
    """For memory that no CPU caches: KVM maps host MMIO as UC without ignoring the guest's PAT, so
    that WC is WC; where it does ignore it, the host's own MTRRs make it UC, which is stronger.

    The one thing left to do is to empty the host's write-combining buffers, which comes with
    non-temporal stores.
    """
    why = "the memory is the device's own and in no CPU's cache"
    told = rule.memory_type
    if told is MemoryType.WB:
        why += ", so wb can't be had"
        if rule.fallback is Fallback.REFUSE:
            raise _refusal(why)
        told = MemoryType.WC
    return Plan(
        map_info=_MAP_INFO[told],
        slot_flags=SlotFlag.NONE,
        vm_setup=(),
        before_hand_over=Duty.NOTHING,
        host_read=HostRead.PLAIN,
        host_write=HostWrite.NON_TEMPORAL,
        device_snoops=False,
        sync=Sync(Duty.NOTHING, Duty.NOTHING),
        pinned=False,
        reason=f"{told}: {why}",
    )


def _plan_emulated(facts: Facts, rule: Rule) -> Plan:
    """For a guest without a CPU: it is told what the policy wants, since nothing overrides that,
    and what the emulator's accesses do is up to the emulator's own mapping.

    A cached one of RAM_WB. Of RAM_WC an uncached one, as far as the emulator maps it as we do.
    """
    return _ram(
        facts,
        told=_MAP_INFO[rule.memory_type],
        guest=_Guest.CACHED if facts.backing is HostBacking.RAM_WB else _Guest.EITHER,
        slot_flags=SlotFlag.NONE,
        reason=f"{rule.memory_type}: no KVM overrides it, but the emulator may cache what it does",
    )


def _plan_cached(facts: Facts, rule: Rule, slot_flags: SlotFlag, honoured: bool | None) -> Plan:
    """For a rule that wants write-back: not to be had where PAT is honoured and the guest's MTRRs
    leave the BAR uncached, since a cached mapping is UC- then. WC is the fastest type there."""
    if honoured and facts.mtrr is GuestMtrr.UC:
        why = f"{_HONOURS[facts.kvm]}; its MTRRs leave the BAR uncached, so wb would be UC-"
        if rule.fallback is Fallback.REFUSE:
            raise _refusal(why)
        return _ram(
            facts,
            told=MapInfo.WC,
            guest=_Guest.UNCACHED,
            slot_flags=slot_flags,
            vm_setup=_SETUP.get(facts.kvm, ()),
            reason=f"wc: {why}",
        )
    return _ram(
        facts,
        told=MapInfo.CACHED,
        guest=_told_cached(facts, honoured),
        slot_flags=slot_flags,
        reason="cached by policy",
    )


def _ram(
    facts: Facts,
    *,
    told: MapInfo,
    guest: _Guest,
    slot_flags: SlotFlag,
    reason: str,
    vm_setup: tuple[VmSetup, ...] = (),
    snoops: bool = False,
) -> Plan:
    """The steps for RAM: nothing between two parties that both go through the caches, or both past
    them; a flush wherever one that does meets one that does not, or may not."""
    snoops = snoops or facts.device_snoops
    device_agrees = guest is (_Guest.CACHED if snoops else _Guest.UNCACHED)
    sync = Duty.NOTHING if device_agrees else Duty.FLUSH
    if facts.backing is HostBacking.RAM_WB:
        host_agrees = guest is _Guest.CACHED
        host_write = HostWrite.PLAIN if host_agrees else HostWrite.NON_TEMPORAL
    else:
        host_agrees = guest is _Guest.UNCACHED
        host_write = HostWrite.NON_TEMPORAL if host_agrees else HostWrite.FLUSHED
    # The kernel zeroes pages through its cache. For a guest that goes past it, these lines hide
    # what is in memory, and are written over it when they leave.
    uncached = guest is not _Guest.CACHED
    if snoops:
        reason += ", the device snoops"
    if sync is Duty.FLUSH:
        reason += ", flushed at sync points"
    return Plan(
        map_info=told,
        slot_flags=slot_flags,
        vm_setup=vm_setup,
        before_hand_over=Duty.FLUSH if uncached else Duty.NOTHING,
        host_read=HostRead.PLAIN if host_agrees else HostRead.FLUSHED,
        host_write=host_write,
        device_snoops=snoops,
        sync=Sync(sync, sync),
        pinned=uncached and facts.backing is HostBacking.RAM_WB,
        reason=reason,
    )


def _honoured(kvm: KvmMode, slot_flags: SlotFlag) -> bool | None:
    """Whether the guest's PAT decides over RAM in a slot; None if that is not known."""
    match kvm:
        case KvmMode.QUIRK_DISABLED | KvmMode.VFIO | KvmMode.SVM:
            return True
        case KvmMode.FORCED_WB:
            return False
        case KvmMode.FLAG:
            # Without the flag Intel's KVM forces write-back; a flagged kernel on AMD does not.
            return True if slot_flags & SlotFlag.NON_COHERENT_DMA else None
        case KvmMode.UNKNOWN | KvmMode.EMULATED:
            return None
        case _ as unreachable:
            assert_never(unreachable)


def _told_cached(facts: Facts, honoured: bool | None) -> _Guest:
    """What comes of a mapping that the guest was told is cached."""
    if honoured is False:
        return _Guest.CACHED
    if facts.kvm is KvmMode.UNKNOWN and facts.backing is HostBacking.RAM_WC:
        return _Guest.EITHER  # it may be an emulator that has the memory mapped as we have
    return _Guest.CACHED if facts.mtrr is GuestMtrr.WB else _Guest.EITHER


def _takes_flag(facts: Facts) -> bool:
    return facts.kvm is KvmMode.FLAG and facts.backing is not HostBacking.MMIO


def _refusal(why: str) -> GuestError:
    return GuestError(ResponseType.ERR_UNSPEC, f"{why}, and the policy is to refuse")
