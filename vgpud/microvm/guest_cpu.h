/*
 * Inside the guest: the CPU, the record port and the window's page table.
 *
 * All of the guest's code is in the section vgpud_guest, which the VMM copies into guest RAM:
 * nothing in it may refer to anything outside of it, not even to a constant. So there are no
 * tables, no strings and no C library, and compiler options prevent others (native/build.py).
 *
 * Source: Intel SDM vol. 3, "Page Attribute Table (PAT)" and "Memory Ordering".
 */
#ifndef VGPUD_GUEST_CPU_H
#define VGPUD_GUEST_CPU_H

#include "guest.h"

#if !defined(__x86_64__)
#error "the guest is for x86-64 only"
#endif

/* General registers only: others are neither enabled nor saved. */
#pragma GCC target("general-regs-only")

#define GUEST_CODE __attribute__((section("vgpud_guest")))
/* Not everything in this file is used in every other. */
#define GUEST __attribute__((unused)) static GUEST_CODE

enum {
    PAGE = 4096,
    LINE = 64,
    PTE_PRESENT = 1 << 0,
    PTE_WRITABLE = 1 << 1,
    PTE_PWT = 1 << 3, /* bit 0 of the index into the PAT */
    PTE_PCD = 1 << 4, /* bit 1 */
    MAP_CACHE_CACHED = 1,
    MAP_CACHE_UNCACHED = 2,
    MAP_CACHE_WC = 3
};

/* The two programs. */
__attribute__((visibility("hidden"))) void vgpud_guest_front_end(const vgpud_guest_boot *boot);
__attribute__((visibility("hidden"))) void vgpud_guest_measure(const vgpud_guest_boot *boot);

GUEST void halt(void)
{
    __asm__ volatile("hlt" ::: "memory");
}

/* Drains the write-combining buffers: WC stores are not ordered with others (SDM vol. 3, "Memory
 * Ordering"). It touches no cache line. */
GUEST void store_fence(void)
{
    __asm__ volatile("sfence" ::: "memory");
}

GUEST void load_fence(void)
{
    __asm__ volatile("lfence" ::: "memory");
}

GUEST void write_port(uint32_t value)
{
    __asm__ volatile("outl %0, %1" ::"a"(value), "d"((uint16_t)VGPUD_RECORD_PORT));
}

GUEST void report(uint32_t kind, const void *record, uint32_t size)
{
    const uint32_t *words = record;

    write_port(kind | size / 4 << 16);
    for (uint32_t i = 0; i < size / 4; i++)
        write_port(words[i]);
}

/* The end of the guest, after success or failure. */
__attribute__((noreturn)) GUEST void finish(void)
{
    report(VGPUD_RECORD_DONE, 0, 0);
    for (;;)
        halt();
}

/* The PAT that the boot block has is the one that Linux uses: entry 0 is WB, 1 is WC, 2 is UC-. */
GUEST uint64_t attributes(uint32_t map_info)
{
    if (map_info == MAP_CACHE_WC)
        return PTE_PWT;
    if (map_info == MAP_CACHE_UNCACHED)
        return PTE_PCD;
    return 0;
}

/* The first page's entry, as it reads back. No entry was present before, so there is nothing to
 * invalidate. */
GUEST uint64_t map_pages(const vgpud_guest_boot *boot, uint64_t offset, uint64_t size,
                         uint64_t bits)
{
    volatile uint64_t *table = (volatile uint64_t *)boot->window_table;

    for (uint64_t at = offset; at < offset + size; at += PAGE)
        table[at / PAGE] = (boot->window_gpa + at) | bits | PTE_PRESENT | PTE_WRITABLE;
    return table[offset / PAGE];
}

GUEST void unmap_pages(const vgpud_guest_boot *boot, uint64_t offset, uint64_t size)
{
    volatile uint64_t *table = (volatile uint64_t *)boot->window_table;

    for (uint64_t at = offset; at < offset + size; at += PAGE) {
        table[at / PAGE] = 0;
        __asm__ volatile("invlpg (%0)" ::"r"(boot->window_va + at) : "memory");
    }
}

#endif
