"""The planner's input: facts about a VM, the memory of its blobs, and the device that uses them."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import assert_never

from vgpud.coherency.kvm_mode import KvmMode
from vgpud.coherency.slot_policy import GuestPat
from vgpud.memory.backing import HostBacking


class GuestMtrr(StrEnum):
    """The memory type of the BAR by the guest's own MTRRs.

    SeaBIOS and OVMF leave the PCI hole UC. A cached mapping by the guest's kernel is UC- then, and
    KVM up to Linux 6.10 makes it UC in the EPT.
    """

    WB = "wb"
    UC = "uc"


@dataclass(frozen=True, slots=True)
class Facts:
    """What is known of VM, memory and device.

    `device_snoops`: the device always snoops. A device that need not can be made to snoop for
    single buffers.
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

    AUTO means the mode that was `seen` of the VM. HONORED and IGNORED are the operator's statement
    about the VM's set-up and override it; but HONORED keeps a mode that honours the guest's PAT
    already, since a slot's flag may be the reason.
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
