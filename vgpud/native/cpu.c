/*
 * What this CPU can do: found by CPUID when the module is loaded.
 *
 * Source: Intel SDM vol. 2, CPUID.
 */
#include "cpu.h"

#include <cpuid.h>

#include "native.h"

#if !defined(__x86_64__)
#error "vgpud knows the cache and fence instructions of x86-64 only"
#endif

static uint32_t detected;
uint32_t vgpud_cpu;
uint32_t vgpud_cache_line = 64;

/* Runs when the module is loaded, before any other function of it can be called. */
__attribute__((constructor)) static void detect_cpu(void)
{
    unsigned a, b, c, d;

    __builtin_cpu_init();
    if (__get_cpuid(1, &a, &b, &c, &d)) {
        if ((b >> 8 & 0xff) != 0)
            vgpud_cache_line = (b >> 8 & 0xff) * 8; /* CLFLUSH line size, in quadwords */
        if (d & 1u << 27)
            detected |= VGPUD_CPU_SELF_SNOOP;
        if (c & 1u << 31)
            detected |= VGPUD_CPU_HYPERVISOR;
    }
    if (__get_cpuid_count(7, 0, &a, &b, &c, &d)) {
        if (b & 1u << 23)
            detected |= VGPUD_CPU_CLFLUSHOPT;
        if (b & 1u << 24)
            detected |= VGPUD_CPU_CLWB;
    }
    if (__builtin_cpu_supports("avx2")) /* checks XCR0 too: the kernel must save the registers */
        detected |= VGPUD_CPU_AVX2;
    if (__builtin_cpu_supports("avx512f"))
        detected |= VGPUD_CPU_AVX512;
    vgpud_cpu = detected;
}

uint32_t vgpud_cpu_features(void)
{
    return vgpud_cpu;
}

/* Act as a CPU with fewer features: so that the fallbacks can be tested on any machine. */
void vgpud_limit_cpu_features(uint32_t allowed)
{
    vgpud_cpu = detected & allowed;
}

uint32_t vgpud_cache_line_size(void)
{
    return vgpud_cache_line;
}
