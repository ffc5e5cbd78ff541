/*
 * The dirty log: a bit for each page of the guest's memory that this process has written.
 *
 * Source: the vhost-user specification, "Migration".
 */
#include "native.h"
#include "spans.h"

enum { PAGE_SHIFT = 12 }; /* VHOST_LOG_PAGE, whatever the page size of either side */

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

/*
 * Set the bits of the pages of a rectangle that has been written. `guests` are the guest-physical
 * addresses of the spans, one for each. Return -1, with no bit set, if the rectangle leaves its
 * buffer. A page that follows itself is marked once: all of the rectangle has been written before.
 */
int vgpud_dirty_log_rect(uint8_t *bitmap, uint64_t bitmap_bytes, const vgpud_span *spans,
                         const uint64_t *guests, size_t count, uint64_t offset, uint64_t stride,
                         uint64_t row_bytes, uint64_t rows)
{
    struct cursor at = {spans, 0};
    uint64_t last = UINT64_MAX;

    if (row_bytes == 0 || rows == 0)
        return 0;
    if (!inside(spans, count, offset, stride, row_bytes, rows))
        return -1;
    for (; rows != 0; rows--, offset += stride)
        for (uint64_t done = 0, left; done < row_bytes; done += left) {
            uint64_t address, first, end;

            seek(&at, offset + done, &left);
            if (left > row_bytes - done)
                left = row_bytes - done;
            address = guests[at.span - spans] + (offset + done - at.start);
            first = address >> PAGE_SHIFT;
            end = ((address + left - 1) >> PAGE_SHIFT) + 1;
            if (first == last)
                first++;
            vgpud_dirty_log_set(bitmap, bitmap_bytes, first, end - first);
            last = end - 1;
        }
    return 0;
}
