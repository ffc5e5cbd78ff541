"""What a coherency plan says: the memory type that a guest maps a blob with, how VM and slot are
set up for it, and what the host does around every access.

`coherency.planner` decides on plans, `memory` carries them out. Sources: Intel SDM
vol. 1, 10.4.6.2 (non-temporal stores), vol. 2 (CLFLUSH, CLFLUSHOPT, CLWB), vol. 3, 13.3.1
(write-combining buffers).
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from vgpud.coherency.slot_policy import MemoryType
from vgpud.uapi.memslot import SlotFlag


class VmSetup(StrEnum):
    """What a plan takes for granted of the VM, apart from its slots.

    DISABLE_IGNORE_GUEST_PAT: KVM_X86_QUIRK_IGNORE_GUEST_PAT disabled with KVM_CAP_DISABLE_QUIRKS2,
    before the first KVM_RUN. NON_COHERENT_VFIO: a group or file with non-coherent DMA in a kvm-vfio
    device.
    """

    DISABLE_IGNORE_GUEST_PAT = "disable-ignore-guest-pat"
    NON_COHERENT_VFIO = "non-coherent-vfio"


class Duty(StrEnum):
    """What the host does with the cache lines of a range at a certain moment.

    FLUSH: write back and invalidate each (CLFLUSH, CLFLUSHOPT between two MFENCEs; not CLWB, which
    may keep the line). The flush also brings in pages that have not been there, which the kernel
    zeroes through the cache.
    """

    NOTHING = "nothing"
    FLUSH = "flush"


class HostRead(StrEnum):
    """How this process reads through its own mapping.

    FLUSHED: flushes the range, then loads. A load without that may be served from a line that was
    fetched at any time, also by speculation.
    """

    PLAIN = "plain"
    FLUSHED = "flushed"


class HostWrite(StrEnum):
    """How this process writes through its own mapping.

    NON_TEMPORAL: with non-temporal stores, byte for byte what is to be written, then SFENCE; it is
    in memory then, and in no cache. (A plain store and a flush is no substitute: it writes back the
    whole line, old bytes of others in it included.) FLUSHED: flush, non-temporal stores, flush; for
    a mapping that passes by the caches that the guest's may be in. No other party may write to
    these lines meanwhile.
    """

    PLAIN = "plain"
    NON_TEMPORAL = "non-temporal"
    FLUSHED = "flushed"


@dataclass(frozen=True, slots=True)
class Sync:
    """What the host does when a range passes to the device, before it works on it, and when it
    comes back, before any other party reads it."""

    to_device: Duty
    from_device: Duty


@dataclass(frozen=True, slots=True)
class Plan:
    """What a guest is told, and what is set up and done, for one blob.

    `memory_type` is what the guest is told to map it with. `slot_flags` are the memory slot's,
    besides what its owner sets for its own reasons. `before_hand_over`: what is done with a range
    that is made part of the blob, before the guest can touch it. `host_read` and `host_write` are
    for accesses that are not the device's. `device_snoops`: what the device is programmed to do.
    `pinned`: pages must not be swapped, compacted or migrated while the guest has them, since the
    kernel copies them through the cache (udmabuf pins a memfd's pages; GEM pins its own, so it is
    not asked for). `reason` is one sentence, for people.
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
        `sync` would have done, for just the bytes that it touches.
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
