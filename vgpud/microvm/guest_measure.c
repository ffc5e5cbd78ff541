/*
 * The micro-VM's guest that times loads: through a write-back mapping of the window, and through
 * one that asks for write-combining.
 */
#include "guest_cpu.h"

/* Reads the time stamp counter: earlier loads are done before it, later ones start after it. */
GUEST uint32_t time_stamp(void)
{
    uint32_t low;

    __asm__ volatile("mfence; lfence; rdtsc; lfence" : "=a"(low)::"rdx", "memory");
    return low;
}

/* Each line of the page holds the offset of the next one, in an order that no prefetcher guesses.
 */
GUEST void lay_chase(volatile uint64_t *page)
{
    uint32_t line = 0;

    for (int i = 0; i < VGPUD_CHASE_LINES; i++) {
        uint32_t next = (line * 5 + 17) % VGPUD_CHASE_LINES; /* one cycle through all 64 */

        page[line * LINE / 8] = (uint64_t)next * LINE;
        line = next;
    }
    store_fence();
}

GUEST uint32_t time_chase(uint64_t page)
{
    uint32_t start = time_stamp();
    uint64_t offset = 0;

    for (int i = 0; i < VGPUD_CHASE_LINES; i++)
        offset = *(volatile uint64_t *)(page + offset);
    return time_stamp() - start;
}

GUEST void flush_page(uint64_t page)
{
    for (uint64_t line = page; line < page + PAGE; line += LINE)
        __asm__ volatile("clflush (%0)" ::"r"(line) : "memory");
}

/* It also measures hits and misses, as the control: if a load of a flushed line takes no longer
 * than a hit, this machine shows no caches, and nothing follows from the third number. */
GUEST_CODE void vgpud_guest_measure(const vgpud_guest_boot *boot)
{
    uint64_t cached = boot->window_va, combining = cached + PAGE;
    vgpud_guest_samples samples;

    map_pages(boot, 0, PAGE, attributes(MAP_CACHE_CACHED));
    map_pages(boot, PAGE, PAGE, attributes(MAP_CACHE_WC));
    lay_chase((volatile uint64_t *)cached);
    lay_chase((volatile uint64_t *)combining);
    for (int i = 0; i < VGPUD_SAMPLES; i++) {
        time_chase(cached);
        samples.hit[i] = time_chase(cached);
        flush_page(cached);
        samples.miss[i] = time_chase(cached);
        time_chase(combining);
        samples.wc[i] = time_chase(combining);
    }
    report(VGPUD_RECORD_SAMPLES, &samples, sizeof(samples));
}
