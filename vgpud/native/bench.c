/*
 * For `vgpud bench` only: the copies that the copy engine is compared with, and the timing of all
 * of them. The device uses none of this.
 *
 * The timing is in C because a Python call takes longer than a copy of a page.
 */
#include <immintrin.h>
#include <stdbool.h>
#include <string.h>
#include <time.h>

#include "cache_lines.h"
#include "native.h"

struct rows {
    uint8_t *start;
    uint64_t stride;
};

static uint64_t nanoseconds(void)
{
    struct timespec time;

    clock_gettime(CLOCK_MONOTONIC, &time);
    return (uint64_t)time.tv_sec * 1000000000 + (uint64_t)time.tv_nsec;
}

static void copy_rows(struct rows to, struct rows from, uint64_t row_bytes, uint64_t rows)
{
    for (uint64_t row = 0; row < rows; row++)
        memcpy(to.start + row * to.stride, from.start + row * from.stride, row_bytes);
}

static void flush(struct rows at, uint64_t row_bytes, uint64_t rows)
{
    for (uint64_t row = 0; row < rows; row++)
        vgpud_flush_lines(at.start + row * at.stride, row_bytes);
}

/* Write lines back and keep them: the least that a device which reads memory without snooping
 * needs. */
__attribute__((target("clwb"))) static void write_back(struct rows at, uint64_t row_bytes,
                                                       uint64_t rows)
{
    uintptr_t line_size = vgpud_cache_line_size();

    for (uint64_t row = 0; row < rows; row++) {
        uintptr_t start = (uintptr_t)(at.start + row * at.stride);

        for (uintptr_t line = start & ~(line_size - 1); line < start + row_bytes; line += line_size)
            _mm_clwb((void *)line);
    }
}

/* Load the lines into the caches, as far as they fit. */
static void touch(struct rows at, uint64_t row_bytes, uint64_t rows)
{
    for (uint64_t row = 0; row < rows; row++)
        for (uint64_t done = 0; done < row_bytes; done += 64)
            *(volatile const uint8_t *)(at.start + row * at.stride + done);
}

static bool copy_once(int way, struct rows to, struct rows from, uint64_t row_bytes, uint64_t rows)
{
    vgpud_span span;
    uint64_t size;

    switch (way) {
    case VGPUD_BENCH_MEMCPY:
        copy_rows(to, from, row_bytes, rows);
        return true;
    case VGPUD_BENCH_MEMCPY_CLWB:
        copy_rows(to, from, row_bytes, rows);
        write_back(to, row_bytes, rows);
        vgpud_sfence();
        return true;
    case VGPUD_BENCH_MEMCPY_FLUSH:
        copy_rows(to, from, row_bytes, rows);
        flush(to, row_bytes, rows);
        vgpud_sfence();
        return true;
    case VGPUD_BENCH_FLUSH_MEMCPY:
        vgpud_mfence();
        flush(from, row_bytes, rows);
        vgpud_mfence();
        copy_rows(to, from, row_bytes, rows);
        return true;
    case VGPUD_BENCH_WRITE:
        size = (rows - 1) * to.stride + row_bytes;
        span = (vgpud_span){(uintptr_t)to.start, size};
        return vgpud_scatter(&span, 1, 0, to.stride, from.start, from.stride, row_bytes, rows,
                             VGPUD_NON_TEMPORAL_WRITE) == 0;
    case VGPUD_BENCH_READ:
        size = (rows - 1) * from.stride + row_bytes;
        span = (vgpud_span){(uintptr_t)from.start, size};
        return vgpud_gather(&span, 1, 0, from.stride, to.start, to.stride, row_bytes, rows,
                            VGPUD_FLUSH_BEFORE_READ) == 0;
    default:
        return false;
    }
}

/* Return the nanoseconds that reading the clock twice takes. */
static uint64_t clock_cost(void)
{
    uint64_t least = UINT64_MAX;

    for (int n = 0; n < 100; n++) {
        uint64_t start = nanoseconds(), cost = nanoseconds() - start;

        least = cost < least ? cost : least;
    }
    return least;
}

/*
 * Return the nanoseconds that `times` copies take, or -1 for an invalid `way` or for rows that
 * overlap. The source's bytes are brought into the caches, or flushed from them, as `source` says,
 * before the first copy; or before each, where a copy would change that: then the clock runs for
 * the copies only, and the time that reading it takes is subtracted.
 */
int64_t vgpud_bench_copies(int way, int source, uint8_t *to, uint64_t to_stride, uint8_t *from,
                           uint64_t from_stride, uint64_t row_bytes, uint64_t rows, uint32_t times)
{
    struct rows target = {to, to_stride}, origin = {from, from_stride};
    bool stays = source == VGPUD_BENCH_FROM_CACHE && way != VGPUD_BENCH_READ &&
                 way != VGPUD_BENCH_FLUSH_MEMCPY;
    uint32_t rounds = stays ? 1 : times, copies = stays ? times : 1;
    uint64_t spent = 0, unspent = clock_cost() * rounds;

    for (; rounds != 0; rounds--) {
        uint64_t start;

        if (source == VGPUD_BENCH_FROM_MEMORY)
            flush(origin, row_bytes, rows);
        else
            touch(origin, row_bytes, rows);
        vgpud_mfence();
        start = nanoseconds();
        for (uint32_t n = 0; n < copies; n++)
            if (!copy_once(way, target, origin, row_bytes, rows))
                return -1;
        spent += nanoseconds() - start;
    }
    return (int64_t)(spent > unspent ? spent - unspent : 0);
}
