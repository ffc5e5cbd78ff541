"""A coherency plan: a blob's memory type, the set-up of VM and slot, and the host's cache flushes.

`coherency.planner` makes plans, `memory` follows them. Sources: Intel SDM vol. 1, 10.4.6.2
(non-temporal stores), vol. 2 (CLFLUSH, CLFLUSHOPT, CLWB), vol. 3, 13.3.1 (write-combining buffers).
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from vgpud.coherency.slot_policy import MemoryType
from vgpud.uapi.memslot import SlotFlag


class VmSetup(StrEnum):
    """What a plan requires of the VM, apart from its slots.

    DISABLE_IGNORE_GUEST_PAT: KVM_X86_QUIRK_IGNORE_GUEST_PAT disabled with KVM_CAP_DISABLE_QUIRKS2,
    before the first KVM_RUN. NON_COHERENT_VFIO: a group or file with non-coherent DMA in a kvm-vfio
    device.
    """

    DISABLE_IGNORE_GUEST_PAT = "disable-ignore-guest-pat"
    NON_COHERENT_VFIO = "non-coherent-vfio"


class Duty(StrEnum):
    """What the host does with the cache lines of a range at a certain moment.

    FLUSH: write back and invalidate each (CLFLUSH, CLFLUSHOPT between two MFENCEs; not CLWB, which
    may keep the line). The flush also allocates pages that were not there, which the kernel zeroes
    through the cache.
    """

    NOTHING = "nothing"
    FLUSH = "flush"


class HostRead(StrEnum):
    """How this process reads through its own mapping.

    FLUSHED: flush the range, then load. A load without the flush may be served from a line that was
    fetched at any earlier time, also by speculation.
    """

    PLAIN = "plain"
    FLUSHED = "flushed"


class HostWrite(StrEnum):
    """How this process writes through its own mapping.

    NON_TEMPORAL: non-temporal stores of exactly the bytes to be written, then SFENCE; they are in
    memory then, and in no cache. (An ordinary store and a flush is no substitute: it writes back
    the whole line, with old bytes of others in it.) FLUSHED: flush, non-temporal stores, flush; for
    an uncached mapping of memory that the guest may have in the caches. No other party may write to
    these lines meanwhile.
    """

    PLAIN = "plain"
    NON_TEMPORAL = "non-temporal"
    FLUSHED = "flushed"


@dataclass(frozen=True, slots=True)
class Sync:
    """What the host does at the sync points before and after the device uses a range."""

    to_device: Duty
    from_device: Duty


@dataclass(frozen=True, slots=True)
class Plan:
    """What is set up and done for one blob.

    `memory_type` is the type that the guest is told to map the blob with. `slot_flags` are the
    memory slot's, besides those that its owner sets for its own reasons. `before_hand_over`: what
    is done with a range that becomes part of the blob, before the guest can access it. `host_read`
    and `host_write` are for accesses that are not the device's. `device_snoops`: whether the device
    is programmed to snoop. `pinned`: pages must not be swapped, compacted or migrated while the
    guest has them, since the kernel copies them through the cache (udmabuf pins a memfd's pages;
    GEM pins its own, so it is not requested). `reason` is one sentence for people.
    """

    memory_type: MemoryType
    slot_flags: SlotFlag
    vm_setup: tuple[VmSetup, ...]
    before_hand_over: Duty
    host_read: HostRead
    host_write: HostWrite
    device_snoops: bool
    sync: Sync
    pinned: bool
    reason: str

    @property
    def flush_before_read(self) -> bool:
        """Whether the engine flushes what it reads.

        The engine is a program that acts for the device and for the host: its accesses do what
        `sync` requires, for just the bytes that it accesses.
        """
        return self.host_read is HostRead.FLUSHED or self.sync.to_device is Duty.FLUSH

    @property
    def non_temporal_write(self) -> bool:
        """Whether the engine writes past the caches."""
        return self.host_write is not HostWrite.PLAIN or self.sync.from_device is Duty.FLUSH

    @property
    def flush_around_write(self) -> bool:
        """Whether the engine flushes what it writes, before and after."""
        return self.host_write is HostWrite.FLUSHED
