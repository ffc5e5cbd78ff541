"""The state of an x86 vCPU, as values of KVM_GET_REGS, KVM_SET_REGS and similar ioctls.

Source: arch/x86/include/uapi/asm/kvm.h of the kernel.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Registers:
    """General registers, struct kvm_regs.

    Bit 1 of rflags is always set: KVM refuses to enter a guest without it.
    """

    rax: int = 0
    rbx: int = 0
    rcx: int = 0
    rdx: int = 0
    rsi: int = 0
    rdi: int = 0
    rsp: int = 0
    rbp: int = 0
    r8: int = 0
    r9: int = 0
    r10: int = 0
    r11: int = 0
    r12: int = 0
    r13: int = 0
    r14: int = 0
    r15: int = 0
    rip: int = 0
    rflags: int = 2


@dataclass(frozen=True, slots=True)
class Segment:
    """A segment register, struct kvm_segment."""

    base: int = 0
    limit: int = 0
    selector: int = 0
    type: int = 0
    present: int = 0
    dpl: int = 0
    db: int = 0
    s: int = 0
    l: int = 0  # noqa: E741 - the kernel's and the manual's name
    g: int = 0
    avl: int = 0
    unusable: int = 0


@dataclass(frozen=True, slots=True)
class DescriptorTable:
    """A descriptor table register, struct kvm_dtable."""

    base: int = 0
    limit: int = 0


@dataclass(frozen=True, slots=True)
class SpecialRegisters:
    """Special registers, struct kvm_sregs without the bitmap of pending interrupts."""

    cs: Segment
    ds: Segment
    es: Segment
    fs: Segment
    gs: Segment
    ss: Segment
    tr: Segment
    ldt: Segment
    gdt: DescriptorTable
    idt: DescriptorTable
    cr0: int
    cr2: int
    cr3: int
    cr4: int
    cr8: int
    efer: int
    apic_base: int


@dataclass(frozen=True, slots=True)
class CpuidEntry:
    """One leaf of CPUID, struct kvm_cpuid_entry2."""

    function: int
    index: int
    flags: int
    eax: int
    ebx: int
    ecx: int
    edx: int
