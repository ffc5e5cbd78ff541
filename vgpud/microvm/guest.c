/*
 * The micro-VM's guest: its entry point, and its code's address and size for the VMM.
 */
#include "guest_cpu.h"

enum { MSR_PAT = 0x277 };

GUEST void write_msr(uint32_t msr, uint64_t value)
{
    __asm__ volatile("wrmsr" ::"c"(msr), "a"((uint32_t)value), "d"((uint32_t)(value >> 32)));
}

GUEST uint64_t read_msr(uint32_t msr)
{
    uint32_t low, high;

    __asm__ volatile("rdmsr" : "=a"(low), "=d"(high) : "c"(msr));
    return (uint64_t)high << 32 | low;
}

__attribute__((noreturn, used)) GUEST void start(const vgpud_guest_boot *boot)
{
    vgpud_guest_pat pat;

    pat.written = boot->pat;
    write_msr(MSR_PAT, pat.written);
    pat.read_back = read_msr(MSR_PAT);
    report(VGPUD_RECORD_PAT, &pat, sizeof(pat));

    if (boot->program == VGPUD_PROGRAM_FRONT_END)
        vgpud_guest_front_end(boot);
    else
        vgpud_guest_measure(boot);
    finish();
}

/* The linker defines these for a section whose name is a C identifier. */
extern const uint8_t section_start[] __asm__("__start_vgpud_guest");
extern const uint8_t section_end[] __asm__("__stop_vgpud_guest");

const uint8_t *vgpud_guest_code(void)
{
    return section_start;
}

size_t vgpud_guest_code_size(void)
{
    return section_end - section_start;
}

size_t vgpud_guest_code_entry(void)
{
    return (const uint8_t *)start - section_start;
}
