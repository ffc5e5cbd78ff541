"""The coherency planner: which memory type a guest is told, and what host accesses must do to go
with it.

A pure function of facts; no I/O. The guest is never told a type that KVM would not let it have. Two
rules carry every plan: a flush by cache line reaches the lines that the guest dirtied through its
own mapping too (the caches are physically indexed), and a line that nobody holds in a cache can be
read from memory by a device that does not snoop. Source: Intel SDM vol. 3, 13.3 "Methods of Caching
Available" and 30.3.7.2 (EPT and guest PAT).
"""

from __future__ import annotations

from dataclasses import dataclass

from vgpud.errors import GuestError
from vgpud.policy.slot_policy import Fallback, GuestPat, MemoryType, Rule
from vgpud.wire.gpu.protocol import MapInfo, ResponseType


@dataclass(frozen=True, slots=True)
class Plan:
    """What is told and done for one blob.

    `map_info` goes to the guest. `flush_before_read`: the engine writes back and drops the lines it
    is about to read. `non_temporal_write`: it writes past the caches. `reason` is one sentence, for
    people.
    """

    map_info: MapInfo
    flush_before_read: bool
    non_temporal_write: bool
    reason: str


_MAP_INFO = {
    MemoryType.WC: MapInfo.WC,
    MemoryType.UC: MapInfo.UNCACHED,
    MemoryType.WB: MapInfo.CACHED,
}


def plan(guest_pat: GuestPat, rule: Rule) -> Plan:
    """Decides for a blob under `rule` on a host that honours the guest's PAT or not.

    `GuestPat.AUTO` stands for "not known", which is planned for as ignored: what is then told,
    holds either way. Raises `GuestError` (UNSPEC) if the rule's type can't be had and it says to
    refuse.
    """
    wanted = rule.memory_type
    if wanted is MemoryType.WB:
        return Plan(MapInfo.CACHED, True, True, "cached by policy: flushed at sync points")
    if guest_pat is GuestPat.HONORED:
        # The host's own alias is write-back, and a speculative load may fill a line at any time:
        # hence the flush.
        return Plan(_MAP_INFO[wanted], True, True, f"{wanted}: KVM honours the guest's memory type")
    why = "KVM ignores" if guest_pat is GuestPat.IGNORED else "nothing shows that KVM honours"
    why += f" the guest's memory type, so {wanted} can't be promised"
    match rule.fallback:
        case Fallback.FLUSH:
            return Plan(MapInfo.CACHED, True, True, f"{why}: cached, flushed at sync points")
        case Fallback.SNOOP:
            return Plan(MapInfo.CACHED, False, False, f"{why}: cached, the device snoops")
        case Fallback.REFUSE:
            raise GuestError(ResponseType.ERR_UNSPEC, f"{why}, and the policy is to refuse")
