"""x86's effective memory types, and what each hypervisor makes of them: tables from the manuals.

Shares nothing with the planner but the words for facts. Sources: Intel SDM vol. 3, 13.5.2.2 with
table 13-7 "Effective Page-Level Memory Types" (11-7 in old editions) and its notes; 30.3.7.2
"Memory Type Used for Translated Guest-Physical Addresses"; 13.12.4 "Programming the PAT". AMD APM
vol. 2, 15.25.8. Linux, vmx_get_mt_mask(), pat_x_mtrr_type() and l2_has_separate_pat().
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from vgpud.coherency.facts import Facts, GuestMtrr
from vgpud.coherency.kvm_mode import KvmMode
from vgpud.coherency.plan import Plan
from vgpud.coherency.slot_policy import MemoryType
from vgpud.memory.backing import HostBacking
from vgpud.uapi.memslot import SlotFlag


class Type(StrEnum):
    UC = "UC"
    UC_MINUS = "UC-"
    WC = "WC"
    WT = "WT"
    WP = "WP"
    WB = "WB"


UC, UC_MINUS, WC, WT, WP, WB = Type

# Table 13-7: MTRR type (or the EPT entry's), then the effective types for PAT UC, UC-, WC, WT, WB,
# WP. UC1 and UC2 are UC under the table's notes 1 and 2. (Its note 3 marks what older editions had
# left undefined.)
_TABLE_13_7 = """
    UC  UC1 UC1 WC UC1 UC1 UC1
    WC  UC2 WC  WC UC2 WC  UC2
    WT  UC2 UC2 WC WT  WT  WP
    WB  UC2 UC2 WC WT  WB  WP
    WP  UC2 WC  WC WT  WP  WP
"""
_COLUMNS = (UC, UC_MINUS, WC, WT, WB, WP)


@dataclass(frozen=True, order=True)
class Access:
    """What a load or store does.

    `checks`: one that is not cached still looks whether a cache has the line, and has it written
    back and dropped. Meaningless for a cached one, and False.
    """

    type: Type
    checks: bool = False

    @property
    def cached(self) -> bool:
        assert self.type is not UC_MINUS, "that is a PAT entry, of which an access makes UC or WC"
        return self.type in (WB, WT, WP)

    def __str__(self) -> str:
        return f"{self.type}{'+checks' if self.checks else ''}"


def _table() -> dict[tuple[Type, Type], str]:
    found = {}
    for line in _TABLE_13_7.split("\n"):
        if line.strip():
            mtrr, *effective = line.split()
            for pat, entry in zip(_COLUMNS, effective, strict=True):
                found[Type(mtrr), pat] = entry
    return found


EFFECTIVE = _table()


def combine(mtrr: Type, pat: Type, *, self_snoop: bool) -> Access:
    """The access that an MTRR's (or EPT entry's) type and a PAT entry's make.

    Note 1: where UC comes from the MTRRs, "processors are not required to snoop their caches".
    Note 2: where it comes from the page tables, they are "required to check their caches". WC:
    "writes may not check the processor caches" (13.12.4), unless the processor snoops itself.
    """
    match EFFECTIVE[mtrr, pat]:
        case "UC1":
            return Access(UC, checks=False)
        case "UC2":
            return Access(UC, checks=True)
        case "WC":
            return Access(WC, checks=self_snoop)
        case other:
            return Access(Type(other))


class Hypervisor(StrEnum):
    """Who translates the guest's accesses, and how."""

    EPT_FORCED = "EPT, WB, ignoring PAT"
    EPT_PAT = "EPT, WB, not ignoring PAT"
    EPT_MTRR = "EPT, the guest's MTRR type, not ignoring PAT (up to Linux 6.10)"
    NPT = "NPT"
    NPT_SHARED_PAT = "NPT, with this host's PAT for the guest's entries, as by an outer KVM"
    SHADOW = "shadow page tables, in which all is WB"
    EMULATOR = "none: the emulator's own mapping"


H = Hypervisor

# All that may be behind a mode. QUIRK_DISABLED is the operator's word, too, for whatever host; and
# EMULATED may be a KVM that emulates.
HYPERVISORS: dict[KvmMode, set[Hypervisor]] = {
    KvmMode.QUIRK_DISABLED: {H.EPT_PAT, H.EPT_MTRR, H.NPT},
    KvmMode.VFIO: {H.EPT_PAT, H.EPT_MTRR, H.NPT},
    KvmMode.SVM: {H.NPT},
    KvmMode.NESTED: set(Hypervisor) - {H.EMULATOR},
    KvmMode.FORCED_WB: {H.EPT_FORCED, H.SHADOW},
    KvmMode.EMULATED: {H.EMULATOR, H.SHADOW},
    KvmMode.UNKNOWN: set(Hypervisor),
}


def hypervisors(mode: KvmMode, slot_flags: int) -> set[Hypervisor]:
    """Who may translate accesses to a slot: a flagged kernel can be Intel's or AMD's."""
    if mode is KvmMode.FLAG:
        return {H.EPT_PAT if slot_flags & SlotFlag.NON_COHERENT_DMA else H.EPT_FORCED, H.NPT}
    return HYPERVISORS[mode]


def guest_pat(told: MemoryType, mtrr: GuestMtrr) -> set[Type]:
    """What a guest that was told this puts into its page tables.

    Linux makes UC- of a cached mapping of what its MTRRs say is UC; a guest with page tables of its
    own making need not.
    """
    match told:
        case MemoryType.WC:
            return {WC}
        case MemoryType.UC:
            return {UC_MINUS}
        case _:
            return {WB} if mtrr is GuestMtrr.WB else {WB, UC_MINUS}


MAY_BE_NESTED = {KvmMode.NESTED, KvmMode.FORCED_WB, KvmMode.EMULATED, KvmMode.UNKNOWN}
"""The modes of which a host may be itself a VM: shadow paging and emulation are seen there too."""


def host_accesses(
    backing: HostBacking, *, self_snoop: bool, may_be_nested: bool = False
) -> set[Access]:
    """What this process's own mapping makes of its loads and stores.

    An outer hypervisor may ignore the PAT of this host as well.
    """
    match backing:
        case HostBacking.RAM_WB:
            return {combine(WB, WB, self_snoop=self_snoop)}
        case HostBacking.RAM_WC:
            pats = {WC, WB} if may_be_nested else {WC}
            return {combine(WB, pat, self_snoop=self_snoop) for pat in pats}
        case HostBacking.MMIO:
            return {combine(UC, pat, self_snoop=self_snoop) for pat in (WC, UC_MINUS)}


def guest_accesses(
    hypervisor: Hypervisor, facts: Facts, plan: Plan, *, self_snoop: bool
) -> set[Access]:
    """What the guest's loads and stores may do under this hypervisor."""
    mmio = facts.backing is HostBacking.MMIO
    pats = guest_pat(plan.memory_type, facts.mtrr)
    match hypervisor:
        case H.EMULATOR:
            nested = facts.kvm in MAY_BE_NESTED
            return host_accesses(facts.backing, self_snoop=self_snoop, may_be_nested=nested)
        case H.SHADOW:  # the host's own page tables and MTRRs
            return {combine(UC if mmio else WB, WB, self_snoop=self_snoop)}
        case H.EPT_FORCED if (
            not mmio
        ):  # "the memory type used for the access is the EPT memory type"
            return {Access(WB)}
        case H.EPT_MTRR if not mmio:
            ept = Type(facts.mtrr.upper())
            return {combine(ept, pat, self_snoop=self_snoop) for pat in pats}
        case H.NPT | H.NPT_SHARED_PAT:
            if hypervisor is H.NPT_SHARED_PAT:
                # Another PAT may have any type at the index that the guest has chosen by its own.
                pats = set(Type)
            # The manual says of no combination that caches are checked: as for WC above.
            entries = {combine(UC if mmio else WB, pat, self_snoop=self_snoop) for pat in pats}
            return {Access(entry.type, checks=entry.checks and self_snoop) for entry in entries}
        case _:  # EPT that does not ignore PAT, as for host MMIO in any case
            return {combine(UC if mmio else WB, pat, self_snoop=self_snoop) for pat in pats}
