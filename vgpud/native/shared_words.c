/*
 * Words and bits that another program reads and writes at the same time: ring indices and the dirty
 * log.
 *
 * Only these operations may access a shared index: the compiler would be free to read it twice
 * otherwise. On x86 an aligned load is an acquire and a store a release; what the CPU does reorder
 * is a store with a later load of another word, which is what a ring does when it publishes
 * avail_event and then checks for buffers once more (virtio 1.3, 2.7.7.2): that needs
 * vgpud_full_fence() between the two.
 *
 * Sources: virtio 1.3, 2.7.13 and 2.7.14; Intel SDM vol. 3, 8.2 "Memory Ordering" (9.2 in editions
 * since 2022).
 */
#include "native.h"

#include <stdatomic.h>

uint16_t vgpud_load_acquire_u16(const uint16_t *word)
{
    return __atomic_load_n(word, __ATOMIC_ACQUIRE);
}

void vgpud_store_release_u16(uint16_t *word, uint16_t value)
{
    __atomic_store_n(word, value, __ATOMIC_RELEASE);
}

void vgpud_full_fence(void)
{
    atomic_thread_fence(memory_order_seq_cst);
}

/*
 * VHOST_F_LOG_ALL: bit n % 8 of byte n / 8 says that page n was written. The front-end fetches and
 * clears bytes with an atomic exchange while this process sets bits. Each byte is or'ed even if its
 * bits are set already: to skip it then would need a load that may be done before this process's
 * own stores to the page (TSO), may see the bit just before the front-end takes it, and so may lose
 * those stores from the migration. The locked OR is a full barrier: data first, bit second. Pages
 * beyond the bitmap are left out.
 */
void vgpud_dirty_log_set(uint8_t *bitmap, uint64_t bitmap_bytes, uint64_t first_page,
                         uint64_t pages)
{
    uint64_t limit = bitmap_bytes > UINT64_MAX / 8 ? UINT64_MAX : bitmap_bytes * 8;
    uint64_t end;

    if (first_page >= limit)
        return;
    end = pages > limit - first_page ? limit : first_page + pages;
    while (first_page < end) {
        uint64_t byte = first_page / 8;
        unsigned low = first_page % 8;
        unsigned high = end - byte * 8 < 8 ? (unsigned)(end - byte * 8) : 8;

        __atomic_fetch_or(&bitmap[byte], (uint8_t)((0xffu << low) & (0xffu >> (8 - high))),
                          __ATOMIC_SEQ_CST);
        first_page = byte * 8 + high;
    }
}
