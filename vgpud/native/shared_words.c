/*
 * Words that another program reads and writes at the same time: ring indices.
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
