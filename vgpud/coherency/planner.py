"""The coherency planner: it decides on plans by which guest, host and device see the same bytes.

Its plans are checked against a model of caches, write-combining buffers and memory (in
tests/coherency/model), for each row of `table()`: every step of a plan is needed, and no step that
is needed is missing.

Sources: Intel SDM vol. 3. 13.5.2.2 with table 13-7 (11-7 in old editions): MTRR and PAT. 30.3.7.2:
EPT, where the EPT entry's type replaces the MTRR's, and the PAT counts unless the entry says to
ignore it. 13.3.1: write-combining buffers. 13.12.4: memory that has a cacheable and a
write-combining mapping, which Intel does not support "because WC writes may not check the processor
caches"; hence the flushes, which that section recommends. SDM vol. 1, 10.4.6.2: non-temporal
stores. AMD APM vol. 2, 15.25.8: nested paging and PAT. Linux, arch/x86/kvm/vmx/vmx.c,
vmx_get_mt_mask(): RAM is forced to WB, host MMIO is UC and never ignores the guest's PAT;
svm/svm.h, l2_has_separate_pat(): guests of a VM use the VM's PAT in place of their own.

A line that is flushed through one mapping is flushed for all mappings, as caches have physical
addresses; all plans below rest on that.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import Enum, auto
from itertools import product
from typing import Final, assert_never

from vgpud.coherency.facts import Facts, GuestMtrr
from vgpud.coherency.kvm_mode import KvmMode
from vgpud.coherency.plan import Duty, HostRead, HostWrite, Plan, Sync, VmSetup
from vgpud.coherency.slot_policy import Fallback, MemoryType, Rule
from vgpud.errors import Unsupported
from vgpud.memory.backing import HostBacking
from vgpud.uapi.memslot import SlotFlag


@dataclass(frozen=True, slots=True)
class PlanRow:
    """One row of `table()`: `plan` is None if the policy is to refuse; `reason` says why."""

    facts: Facts
    rule: Rule
    plan: Plan | None
    reason: str


class _Guest(Enum):
    """What the guest's accesses really do, whichever type the guest maps."""

    CACHED = auto()
    UNCACHED = auto()
    EITHER = auto()


_HONOURS: Final = {
    KvmMode.FLAG: "KVM honours the guest's memory type in slots with KVM_MEM_NON_COHERENT_DMA",
    KvmMode.QUIRK_DISABLED: "KVM honours the guest's memory type, as the VM was set up so",
    KvmMode.VFIO: "KVM honours the guest's memory type because of an assigned device",
    KvmMode.SVM: "AMD's KVM honours the guest's memory type",
}

_UNDECIDED: Final = {
    KvmMode.NESTED: "the outer hypervisor decides on the guest's memory type",
    KvmMode.UNKNOWN: "nothing shows that KVM honours the guest's memory type",
}
"""The modes in which the guest's entries may be looked up in another PAT than its own."""

_SETUP: Final = {
    KvmMode.QUIRK_DISABLED: (VmSetup.DISABLE_IGNORE_GUEST_PAT,),
    KvmMode.VFIO: (VmSetup.NON_COHERENT_VFIO,),
}


def window_slot_flags(facts: Facts, rules: Sequence[Rule]) -> SlotFlag:
    """Return the flags of one slot that holds blobs under all of these rules.

    The slot is flagged if one rule needs the flag: without it that rule's type could not be had;
    with it a rule that wants write-back still gets a type that is true.
    """
    wanted = any(rule.memory_type is not MemoryType.WB for rule in rules)
    return SlotFlag.NON_COHERENT_DMA if wanted and _takes_flag(facts) else SlotFlag.NONE


def plan(facts: Facts, rule: Rule, *, slot_flags: SlotFlag | None = None) -> Plan:
    """Return the plan for a blob under `rule`.

    `slot_flags` are those of the slot that the blob goes into, if that slot exists already
    (`window_slot_flags`); None if the plan chooses them. Raises Unsupported if the rule's type
    can't be had and its fallback is to refuse.
    """
    if facts.backing is HostBacking.MMIO:
        return _plan_mmio(facts, rule)
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
            memory_type=rule.memory_type,
            guest=_Guest.UNCACHED,
            slot_flags=slot_flags,
            vm_setup=_SETUP.get(facts.kvm, ()),
            reason=f"{rule.memory_type}: {_HONOURS[facts.kvm]}",
        )
    if honoured is False:
        why = "KVM ignores the guest's memory type"
    elif facts.kvm is KvmMode.FLAG:
        why = "the slot does not have KVM_MEM_NON_COHERENT_DMA"
    else:
        why = _UNDECIDED[facts.kvm]
    why += f", so {rule.memory_type} can't be promised"
    if rule.fallback is Fallback.REFUSE:
        raise _refusal(why)
    return _ram(
        facts,
        memory_type=MemoryType.WB,
        guest=_mapped_cached(facts, honoured),
        slot_flags=slot_flags,
        snoops=rule.fallback is Fallback.SNOOP,
        reason=f"{why}: cached",
    )


def table() -> Iterator[PlanRow]:
    """Yield a row for every combination of facts and policy."""
    for kvm, backing, mtrr, snoops in product(KvmMode, HostBacking, GuestMtrr, (False, True)):
        facts = Facts(kvm, backing, mtrr, snoops)
        for memory_type, fallback in product(MemoryType, Fallback):
            rule = Rule(memory_type=memory_type, fallback=fallback)
            try:
                found = plan(facts, rule)
            except Unsupported as error:
                yield PlanRow(facts, rule, None, str(error))
            else:
                yield PlanRow(facts, rule, found, found.reason)


def _plan_mmio(facts: Facts, rule: Rule) -> Plan:
    """Return the plan for memory that no CPU caches.

    KVM maps host MMIO as UC without ignoring the guest's PAT, so WC is WC; where KVM does ignore
    it, the host's own MTRRs make it UC, which is stronger. Where the guest's entries may be looked
    up in another PAT, a UC entry may be WC, so the guest is told WC. The host must only drain its
    write-combining buffers, which the SFENCE after non-temporal stores does.
    """
    why = "the memory is the device's own and in no CPU's cache"
    memory_type = MemoryType.WC
    if rule.memory_type is MemoryType.WB:
        why += ", so wb can't be had"
    elif rule.memory_type is MemoryType.UC and facts.kvm in _UNDECIDED:
        why = f"{_UNDECIDED[facts.kvm]}, so uc can't be promised"
    else:
        memory_type = rule.memory_type
    if memory_type is not rule.memory_type and rule.fallback is Fallback.REFUSE:
        raise _refusal(why)
    return Plan(
        memory_type=memory_type,
        slot_flags=SlotFlag.NONE,
        vm_setup=(),
        before_hand_over=Duty.NOTHING,
        host_read=HostRead.PLAIN,
        host_write=HostWrite.NON_TEMPORAL,
        device_snoops=False,
        sync=Sync(Duty.NOTHING, Duty.NOTHING),
        pinned=False,
        reason=f"{memory_type}: {why}",
    )


def _plan_emulated(facts: Facts, rule: Rule) -> Plan:
    """Return the plan for a guest in an emulator.

    The guest is told the type that the policy wants, as nothing overrides it. What the emulator's
    accesses do depends on the emulator's own mapping: it is cached for RAM_WB; for RAM_WC it is
    uncached if the emulator maps the memory as this process does.
    """
    return _ram(
        facts,
        memory_type=rule.memory_type,
        guest=_Guest.CACHED if facts.backing is HostBacking.RAM_WB else _Guest.EITHER,
        slot_flags=SlotFlag.NONE,
        reason=f"{rule.memory_type}: no KVM overrides it, but the emulator may cache what it does",
    )


def _plan_cached(facts: Facts, rule: Rule, slot_flags: SlotFlag, honoured: bool | None) -> Plan:
    """Return the plan for a rule that wants write-back.

    Write-back can't be had where PAT is honoured and the guest's MTRRs leave the BAR uncached,
    since a cached mapping is UC- then. WC is the fastest type there.
    """
    if honoured and facts.mtrr is GuestMtrr.UC:
        why = f"{_HONOURS[facts.kvm]}; its MTRRs leave the BAR uncached, so wb would be UC-"
        if rule.fallback is Fallback.REFUSE:
            raise _refusal(why)
        return _ram(
            facts,
            memory_type=MemoryType.WC,
            guest=_Guest.UNCACHED,
            slot_flags=slot_flags,
            vm_setup=_SETUP.get(facts.kvm, ()),
            reason=f"wc: {why}",
        )
    return _ram(
        facts,
        memory_type=MemoryType.WB,
        guest=_mapped_cached(facts, honoured),
        slot_flags=slot_flags,
        reason="cached by policy",
    )


def _ram(
    facts: Facts,
    *,
    memory_type: MemoryType,
    guest: _Guest,
    slot_flags: SlotFlag,
    reason: str,
    vm_setup: tuple[VmSetup, ...] = (),
    snoops: bool = False,
) -> Plan:
    """Return the plan for RAM.

    Between two parties that both use the caches, or both bypass them, nothing is needed; between
    one that uses them and one that does not, or may not, a flush is.
    """
    snoops = snoops or facts.device_snoops
    device_agrees = guest is (_Guest.CACHED if snoops else _Guest.UNCACHED)
    sync = Duty.NOTHING if device_agrees else Duty.FLUSH
    if facts.backing is HostBacking.RAM_WB:
        host_agrees = guest is _Guest.CACHED
        host_write = HostWrite.PLAIN if host_agrees else HostWrite.NON_TEMPORAL
    else:
        host_agrees = guest is _Guest.UNCACHED
        host_write = HostWrite.NON_TEMPORAL if host_agrees else HostWrite.FLUSHED
    # The kernel zeroes pages through the cache. A guest that bypasses the caches does not see these
    # lines, and they overwrite what it has written to memory when they are evicted.
    uncached = guest is not _Guest.CACHED
    if snoops:
        reason += ", the device snoops"
    if sync is Duty.FLUSH:
        reason += ", flushed at sync points"
    return Plan(
        memory_type=memory_type,
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
    """Return whether the guest's PAT decides for RAM in a slot; None if that is not known."""
    match kvm:
        case KvmMode.QUIRK_DISABLED | KvmMode.VFIO | KvmMode.SVM:
            return True
        case KvmMode.FORCED_WB:
            return False
        case KvmMode.FLAG:
            # Without the flag Intel's KVM forces write-back; a flagged kernel on AMD does not.
            return True if slot_flags & SlotFlag.NON_COHERENT_DMA else None
        case KvmMode.NESTED | KvmMode.UNKNOWN | KvmMode.EMULATED:
            return None
        case _ as unreachable:
            assert_never(unreachable)


def _mapped_cached(facts: Facts, honoured: bool | None) -> _Guest:
    """Return what the accesses of a guest that maps the blob cached really are."""
    if honoured is False:
        return _Guest.CACHED
    if facts.kvm in _UNDECIDED:
        return _Guest.EITHER  # also where the guest's MTRRs leave the BAR cached
    return _Guest.CACHED if facts.mtrr is GuestMtrr.WB else _Guest.EITHER


def _takes_flag(facts: Facts) -> bool:
    return facts.kvm is KvmMode.FLAG and facts.backing is not HostBacking.MMIO


def _refusal(why: str) -> Unsupported:
    return Unsupported(f"{why}, and the policy is to refuse")
