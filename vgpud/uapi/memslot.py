"""The flags of KVM's memory slots, for code that makes no ioctl and so needs no compiled module.

Source: include/uapi/linux/kvm.h and arch/x86/include/uapi/asm/kvm.h of the kernel, `KVM_MEM_*`.
"""

from __future__ import annotations

from enum import IntFlag


class SlotFlag(IntFlag):
    """Flags of a memory slot: `KVM_MEM_*`.

    NON_COHERENT_DMA is in no mainline kernel (EINVAL). Where a kernel has it, the guest's PAT
    decides the memory type in the slot; it is fixed for the life of a slot.
    """

    NONE = 0
    LOG_DIRTY_PAGES = 1 << 0
    READONLY = 1 << 1
    NON_COHERENT_DMA = 1 << 3
