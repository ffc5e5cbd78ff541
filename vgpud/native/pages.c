/*
 * Zeroed memory of this process in small pages.
 *
 * The kernel makes a page when it is first touched. A huge one takes 0.1 to several milliseconds to
 * zero, and a guest can touch one byte in each: so these pages are small, whatever the host's
 * setting of transparent huge pages, and wherever the C library would have huge ones.
 *
 * They are freed in steps, because munmap holds the lock of the address space, which other threads
 * wait for that map something.
 */
#define _GNU_SOURCE
#include "native.h"

#include <stddef.h>
#include <sys/mman.h>

enum { STEP = 4 << 20 };

void *vgpud_map_pages(uint64_t length)
{
    void *pages = mmap(NULL, length, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

    if (pages == MAP_FAILED)
        return NULL;
    /* It fails where the kernel has no huge pages at all. */
    (void)madvise(pages, length, MADV_NOHUGEPAGE);
    return pages;
}

void vgpud_unmap_pages(void *pages, uint64_t length)
{
    for (uint64_t at = 0; at < length; at += STEP)
        (void)madvise((char *)pages + at, length - at < STEP ? length - at : STEP, MADV_DONTNEED);
    (void)munmap(pages, length);
}
