/*
 * For `vgpud bench` only: the copies that the copy engine is compared with, and a clock around all
 * of them. Nothing of the device calls this.
 *
 * The clock is here because a Python call costs more than a copy of a page does.
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

static void copy_plainly(struct rows to, struct rows from, uint64_t row_bytes, uint64_t rows)
{
    for (uint64_t row = 0; row < rows; row++)
        memcpy(to.start + row * to.stride, from.start + row * from.stride, row_bytes);
}

static void flush(struct rows at, uint64_t row_bytes, uint64_t rows)
{
    for (uint64_t row = 0; row < rows; row++)
        vgpud_flush_lines(at.start + row * at.stride, row_bytes);
}

/* Write back, and keep: what a device that reads memory asks for at least. */
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

/* Have the lines in the caches, as far as they fit. */
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
        copy_plainly(to, from, row_bytes, rows);
        return true;
    case VGPUD_BENCH_MEMCPY_CLWB:
        copy_plainly(to, from, row_bytes, rows);
        write_back(to, row_bytes, rows);
        vgpud_sfence();
        return true;
    case VGPUD_BENCH_MEMCPY_FLUSH:
        copy_plainly(to, from, row_bytes, rows);
        flush(to, row_bytes, rows);
        vgpud_sfence();
        return true;
    case VGPUD_BENCH_FLUSH_MEMCPY:
        vgpud_mfence();
        flush(from, row_bytes, rows);
        vgpud_mfence();
        copy_plainly(to, from, row_bytes, rows);
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

/* What it takes to look at the clock twice. */
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
 * Nanoseconds that `times` copies take, or -1 for a way or rows that there are not. `source` is
 * brought into its state before the first; before each, where a copy leaves it in another: then the
 * clock runs for the copies only, and what it takes itself is left out.
 */
int64_t vgpud_bench_copies(int way, int source, uint8_t *to, uint64_t to_stride, uint8_t *from,
                           uint64_t from_stride, uint64_t row_bytes, uint64_t rows, uint32_t times)
{
    struct rows target = {to, to_stride}, origin = {from, from_stride};
    bool stays = source == VGPUD_BENCH_FROM_CACHE && way != VGPUD_BENCH_READ &&
                 way != VGPUD_BENCH_FLUSH_MEMCPY;
    uint32_t turns = stays ? 1 : times, copies = stays ? times : 1;
    uint64_t spent = 0, unspent = clock_cost() * turns;

    for (; turns != 0; turns--) {
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
