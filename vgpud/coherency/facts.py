"""What the planner knows of a VM, of the memory of its blobs, and of the device that uses them."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import assert_never

from vgpud.coherency.kvm_mode import KvmMode
from vgpud.coherency.slot_policy import GuestPat
from vgpud.memory.backing import HostBacking


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


def facts_of(
    guest_pat: GuestPat,
    *,
    seen: KvmMode = KvmMode.UNKNOWN,
    backing: HostBacking = HostBacking.RAM_WB,
    mtrr: GuestMtrr = GuestMtrr.UC,
    device_snoops: bool = False,
) -> Facts:
    """Return the facts of a device whose configuration says `guest_pat`.

    AUTO stands for what was `seen` of the VM. HONORED and IGNORED are the operator's statement and
    override that, but they are about a VM's set-up: a flagged slot is another matter, so HONORED
    leaves `seen` alone where that honours the guest's PAT anyway.
    """
    match guest_pat:
        case GuestPat.AUTO:
            mode = seen
        case GuestPat.HONORED:
            mode = seen if seen.honours_guest_pat else KvmMode.QUIRK_DISABLED
        case GuestPat.IGNORED:
            mode = KvmMode.FORCED_WB
        case _ as unreachable:
            assert_never(unreachable)
    return Facts(mode, backing, mtrr, device_snoops)
