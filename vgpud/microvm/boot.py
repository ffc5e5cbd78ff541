"""The micro-VM's memory layout, and the state in which its CPU starts.

That is the guest-physical layout, page tables, descriptor table and registers of a guest that
starts in 64-bit mode: paging on, ring 0, no interrupts. Source: Intel SDM vol. 3, "4-Level Paging"
and "Segment Descriptors"; AMD APM vol. 2, chapter 5.
"""

from __future__ import annotations

from dataclasses import replace
from struct import Struct
from typing import Final

from vgpud.microvm.guest_code import LINUX_PAT, QUEUE_SIZE, Boot, Program, Queue
from vgpud.uapi.page import PAGE_SIZE
from vgpud.uapi.registers import DescriptorTable, Registers, Segment, SpecialRegisters

RAM_SIZE: Final = 2 << 20
"""Bytes, from address 0: one large page maps all of it."""

WINDOW_GPA: Final = 1 << 32
"""The default address of the host-visible window: above all 32-bit addresses."""
WINDOW_LIMIT: Final = 2 << 20
"""Bytes that the one page table for the window can map."""
DOORBELL_GPA: Final = 0xFE00_0000
DOORBELL_STRIDE: Final = 4
"""Bytes from one queue's doorbell to the next, each 16 bits wide."""

_PML4, _PDPT, _RAM_DIRECTORY, _DEVICE_DIRECTORY = 0x1000, 0x2000, 0x3000, 0x4000
_WINDOW_TABLE, _DOORBELL_TABLE = 0x5000, 0x6000
_GDT, _BOOT = 0x7000, 0x8000
_REQUEST, _RESPONSE = 0x9000, 0xA000
_RINGS: Final = 0xB000  # a page for each queue
_CODE, _CODE_END = 0x1_0000, 0x2_0000
_STACK_TOP: Final = 0x4_0000

_WINDOW_VA: Final = 1 << 30
_DOORBELL_VA: Final = _WINDOW_VA + WINDOW_LIMIT

_PRESENT, _WRITABLE, _LARGE = 1 << 0, 1 << 1, 1 << 7
_UNCACHED: Final = 1 << 3 | 1 << 4  # entry 3 of the PAT, also before the guest sets it
_TABLE: Final = _PRESENT | _WRITABLE
_ENTRY = Struct("<Q")

_CODE_SELECTOR, _DATA_SELECTOR, _TASK_SELECTOR = 0x08, 0x10, 0x18
# Flat 64-bit code and flat data, in the SDM's format of descriptors; the task state segment takes
# two entries. Nothing loads them, but the selectors should refer to what they claim.
_GDT_ENTRIES: Final = (0, 0x00AF9B000000FFFF, 0x00CF93000000FFFF, 0x00008B0000000067, 0)

_CR0: Final = 0x8001_0033  # PG, WP, NE, ET, MP, PE
_CR4: Final = 0x20  # PAE
_EFER: Final = 0x500  # LMA, LME

MTRR_DEF_TYPE: Final = 0x2FF
MTRR_ALL_WB: Final = 0x806
"""MTRRs on, with write-back as the default type: the guest's PAT alone decides the memory type."""


def boot_block(
    program: Program, *, window_gpa: int, window_size: int, width: int, height: int, rounds: int
) -> Boot:
    """Return the guest's boot block, with the addresses of this layout.

    Raises ValueError if the one page table can't map the window, or the pictures don't fit.
    """
    picture = -(-width * height * 4 // PAGE_SIZE) * PAGE_SIZE
    if window_size > WINDOW_LIMIT:
        raise ValueError(f"a window of {window_size:#x} bytes; {WINDOW_LIMIT:#x} can be mapped")
    if width < 1 or height < 1 or 2 * picture + PAGE_SIZE > window_size:
        raise ValueError(f"{width} x {height} pixels twice in a window of {window_size:#x} bytes")
    return Boot(
        program=program,
        rounds=rounds,
        width=width,
        height=height,
        pat=LINUX_PAT,
        window_gpa=window_gpa,
        window_va=_WINDOW_VA,
        window_size=window_size,
        window_table=_WINDOW_TABLE,
        request=_REQUEST,
        response=_RESPONSE,
        queues=(queue(0), queue(1)),
    )


def queue(index: int) -> Queue:
    """Return the addresses of a queue, which has a page of its own: a stray write shows."""
    desc = _RINGS + index * PAGE_SIZE
    avail = desc + 16 * QUEUE_SIZE
    used = -(-(avail + 6 + 2 * QUEUE_SIZE) // 4) * 4
    return Queue(desc, avail, used, _DOORBELL_VA + index * DOORBELL_STRIDE)


def image(boot: Boot, code: bytes) -> bytes:
    """Return guest RAM from address 0 to the end of the code; all RAM after it is zero."""
    if len(code) > _CODE_END - _CODE:
        raise ValueError(f"{len(code)} bytes of guest code; there is room for {_CODE_END - _CODE}")
    ram = bytearray(_CODE + len(code))

    def put(table: int, entry: int, value: int) -> None:
        _ENTRY.pack_into(ram, table + entry * _ENTRY.size, value)

    put(_PML4, 0, _PDPT | _TABLE)
    put(_PDPT, 0, _RAM_DIRECTORY | _TABLE)
    put(_PDPT, _WINDOW_VA >> 30, _DEVICE_DIRECTORY | _TABLE)
    put(_RAM_DIRECTORY, 0, _TABLE | _LARGE)
    put(_DEVICE_DIRECTORY, 0, _WINDOW_TABLE | _TABLE)
    put(_DEVICE_DIRECTORY, 1, _DOORBELL_TABLE | _TABLE)
    put(_DOORBELL_TABLE, 0, DOORBELL_GPA | _TABLE | _UNCACHED)
    for index, value in enumerate(_GDT_ENTRIES):
        put(_GDT, index, value)
    block = boot.pack()
    ram[_BOOT : _BOOT + len(block)] = block
    ram[_CODE:] = code
    return bytes(ram)


def registers(entry: int) -> Registers:
    """Return the registers of a CPU at the guest's entry point, with its boot block in rdi."""
    # As after a call instruction: 8 bytes below an alignment of 16, for an unused return address.
    return Registers(rip=_CODE + entry, rsp=_STACK_TOP - 8, rdi=_BOOT)


def special_registers(reset: SpecialRegisters) -> SpecialRegisters:
    """Return `reset`, the state that KVM gives a new CPU, changed to long mode with paging."""
    data = Segment(limit=0xFFFF_FFFF, selector=_DATA_SELECTOR, type=3, present=1, db=1, s=1, g=1)
    code = replace(data, selector=_CODE_SELECTOR, type=11, db=0, l=1)
    # A VM entry to a 64-bit guest fails without a busy task state segment.
    task = Segment(limit=0x67, selector=_TASK_SELECTOR, type=11, present=1)
    return replace(
        reset,
        cs=code,
        ds=data,
        es=data,
        fs=data,
        gs=data,
        ss=data,
        tr=task,
        ldt=Segment(type=2, unusable=1),
        gdt=DescriptorTable(_GDT, len(_GDT_ENTRIES) * _ENTRY.size - 1),
        idt=DescriptorTable(),  # empty: any exception is a triple fault
        cr0=_CR0,
        cr3=_PML4,
        cr4=_CR4,
        efer=_EFER,
    )
