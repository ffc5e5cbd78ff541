"""The flags of KVM's memory slots as plain numbers, for code that makes no ioctl of its own.

Source: include/uapi/linux/kvm.h and arch/x86/include/uapi/asm/kvm.h of the kernel, `KVM_MEM_*`.
"""

from __future__ import annotations

from enum import IntFlag


class SlotFlag(IntFlag):
    """Flags of a memory slot: `KVM_MEM_*`.

    NON_COHERENT_DMA is in no mainline kernel (EINVAL). Where it is, the guest's page attributes
    decide the memory type in the slot; it holds for the life of a slot.
    """

    NONE = 0
    LOG_DIRTY_PAGES = 1 << 0
    READONLY = 1 << 1
    NON_COHERENT_DMA = 1 << 3
