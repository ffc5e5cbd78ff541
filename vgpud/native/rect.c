/*
 * Rectangles of bytes in buffers that are lists of spans: gather, scatter, copy, fill, flush.
 *
 * A rectangle is `rows` runs of `row_bytes`, the first at `offset`, each `stride` after the one
 * before; rows do not overlap. Bounds are checked here once more, before any memory is accessed:
 * these functions get addresses, and an error in a caller must not become a write to other memory.
 * The memory may change at any time (a guest writes to it): each byte is read once, and no decision
 * depends on what was read.
 */
#include <stdbool.h>
#include <string.h>

#include "cache_lines.h"
#include "native.h"
#include "spans.h"

enum action { FLUSH, LOAD, STORE, STREAM };

static void run(struct cursor *at, uint64_t offset, uint64_t length, uint8_t *buffer,
                enum action action)
{
    while (length != 0) {
        uint64_t left;
        uint8_t *bytes = seek(at, offset, &left);
        size_t count = left < length ? left : length;

        switch (action) {
        case FLUSH:
            vgpud_flush_lines(bytes, count);
            break;
        case LOAD:
            memcpy(buffer, bytes, count);
            break;
        case STORE:
            memcpy(bytes, buffer, count);
            break;
        case STREAM:
            vgpud_stream(bytes, buffer, count);
            break;
        }
        if (buffer != NULL)
            buffer += count;
        offset += count;
        length -= count;
    }
}

static void run_rows(struct cursor *at, uint64_t offset, uint64_t stride, uint8_t *buffer,
                     uint64_t buffer_stride, uint64_t row_bytes, uint64_t rows, enum action action)
{
    for (; rows != 0; rows--) {
        run(at, offset, row_bytes, buffer, action);
        offset += stride;
        if (buffer != NULL)
            buffer += buffer_stride;
    }
}

/*
 * Make the next loads of these bytes come from memory.
 *
 * The MFENCE before: CLFLUSHOPT is ordered with fences and with older stores to its own line, not
 * with older loads. Without it the flush may run before the load by which this process knew that
 * the data is ready (a ring index, a fence value); a prefetch may then bring the old line back
 * before the device has written, and the stale line would be read.
 *
 * The MFENCE after: SFENCE would order the flush with later stores only. Loads may be done ahead of
 * an SFENCE and would be served by the line that is about to be flushed. MFENCE holds them until
 * the flushes are done. (clflush_cache_range() in Linux fences on both sides for the same reasons.)
 */
static void flush_for_reading(struct cursor *at, uint64_t offset, uint64_t stride,
                              uint64_t row_bytes, uint64_t rows)
{
    vgpud_mfence();
    run_rows(at, offset, stride, NULL, 0, row_bytes, rows, FLUSH);
    vgpud_mfence();
}

/* Copy directly from one buffer to the other, which are known not to overlap. */
static void move_rows(struct cursor *to, uint64_t to_offset, uint64_t to_stride,
                      struct cursor *from, uint64_t from_offset, uint64_t from_stride,
                      uint64_t row_bytes, uint64_t rows, enum action action)
{
    for (; rows != 0; rows--) {
        for (uint64_t done = 0; done < row_bytes;) {
            uint64_t left;
            uint8_t *bytes = seek(from, from_offset + done, &left);
            uint64_t count = left < row_bytes - done ? left : row_bytes - done;

            run(to, to_offset + done, count, bytes, action);
            done += count;
        }
        to_offset += to_stride;
        from_offset += from_stride;
    }
}

/* A rectangle that is partly done: `rows` are left, the first of them at `offset`, of which
 * `column` bytes are done. */
struct walk {
    struct cursor at;
    uint64_t offset, stride, row_bytes;
    uint64_t column, rows;
};

/* Return the next bytes that are contiguous, at most `most` of them; none at the end. */
static uint8_t *next_run(struct walk *walk, uint64_t most, uint64_t *count)
{
    uint8_t *bytes;

    if (walk->rows == 0) {
        *count = 0;
        return NULL;
    }
    bytes = seek(&walk->at, walk->offset + walk->column, count);
    if (*count > walk->row_bytes - walk->column)
        *count = walk->row_bytes - walk->column;
    if (*count > most)
        *count = most;
    return bytes;
}

static void advance(struct walk *walk, uint64_t count)
{
    walk->column += count;
    if (walk->column == walk->row_bytes) {
        walk->column = 0;
        walk->offset += walk->stride;
        walk->rows--;
    }
}

/*
 * Flush and read a rectangle, both at the same time: a flush waits until the line has reached
 * memory, a load until the line comes from there, and the CPU can have many of both outstanding. So
 * the rectangle is read in blocks, and while a block is read the lines of the next one are flushed.
 * The MFENCE between two blocks has the reason of the second one in flush_for_reading(): no line of
 * a block is read before all of them have been flushed. A prefetch that brings lines of the next
 * block back in between does no harm: after the first MFENCE it finds in memory what the device had
 * written before this call, or newer data.
 *
 * The sizes: there is a fence between two blocks, so they must not be too small; and two blocks
 * must be small compared with the caches that their lines leave and enter. Compared with flushing
 * all and then reading, 8 MiB take four fifths of the time. Where the target is written with
 * streaming stores, these alternate with the flushes, a PART at a time.
 */
enum { BLOCK = 128 * 1024, PART = 1024 };

static void move_flushing(uint8_t *to, const uint8_t *from, uint64_t length, const uint8_t *ahead,
                          enum action action)
{
    if (action == STORE && ahead != NULL) {
        vgpud_fetch_flushing(to, from, length, ahead);
    } else if (action == STORE) {
        vgpud_fetch(to, from, length);
    } else {
        for (uint64_t done = 0; done < length; done += PART) {
            uint64_t part = length - done < PART ? length - done : PART;

            if (ahead != NULL)
                vgpud_flush_lines(ahead + done, part);
            vgpud_stream(to + done, from + done, part);
        }
    }
}

static void read_flushed(struct walk from, struct walk to, enum action action)
{
    struct walk ahead = from;
    uint64_t count, left = BLOCK;
    uint8_t *next;

    if (from.row_bytes < BLOCK && from.rows > 1) {
        /* Short rows get no faster by it: flush all of them, then copy. */
        flush_for_reading(&from.at, from.offset, from.stride, from.row_bytes, from.rows);
        move_rows(&to.at, to.offset, to.stride, &from.at, from.offset, from.stride, from.row_bytes,
                  from.rows, action);
        return;
    }
    vgpud_mfence();
    while (left != 0 && (next = next_run(&ahead, left, &count)) != NULL) {
        vgpud_flush_lines(next, count);
        advance(&ahead, count);
        left -= count;
    }
    while (from.rows != 0) {
        vgpud_mfence();
        left = BLOCK;
        while (left != 0 && from.rows != 0) {
            uint64_t further;
            uint8_t *source = next_run(&from, left, &count);
            uint8_t *target = next_run(&to, count, &count);

            next = next_run(&ahead, count, &further);
            if (next != NULL) {
                count = further;
                advance(&ahead, count);
            }
            move_flushing(target, source, count, next, action);
            advance(&from, count);
            advance(&to, count);
            left -= count;
        }
    }
}

int vgpud_gather(const vgpud_span *spans, size_t count, uint64_t offset, uint64_t stride,
                 uint8_t *buffer, uint64_t buffer_stride, uint64_t row_bytes, uint64_t rows,
                 int flags)
{
    struct cursor at = {spans, 0};

    if (row_bytes == 0 || rows == 0)
        return 0;
    if (!inside(spans, count, offset, stride, row_bytes, rows))
        return -1;
    if (flags & VGPUD_FLUSH_BEFORE_READ) {
        vgpud_span out = {(uintptr_t)buffer, buffer_stride * (rows - 1) + row_bytes};

        read_flushed((struct walk){at, offset, stride, row_bytes, 0, rows},
                     (struct walk){{&out, 0}, 0, buffer_stride, row_bytes, 0, rows}, STORE);
        return 0;
    }
    run_rows(&at, offset, stride, buffer, buffer_stride, row_bytes, rows, LOAD);
    return 0;
}

/*
 * The SFENCE after non-temporal stores: they are weakly ordered, also with the ordinary store that
 * will tell the other side "done" (a used index, a fence value). After it they are globally
 * visible.
 */
int vgpud_scatter(const vgpud_span *spans, size_t count, uint64_t offset, uint64_t stride,
                  const uint8_t *buffer, uint64_t buffer_stride, uint64_t row_bytes, uint64_t rows,
                  int flags)
{
    bool stream = flags & VGPUD_NON_TEMPORAL_WRITE;
    struct cursor at = {spans, 0};

    if (row_bytes == 0 || rows == 0)
        return 0;
    if (!inside(spans, count, offset, stride, row_bytes, rows))
        return -1;
    run_rows(&at, offset, stride, (uint8_t *)(uintptr_t)buffer, buffer_stride, row_bytes, rows,
             stream ? STREAM : STORE);
    if (stream)
        vgpud_sfence();
    return 0;
}

/*
 * Copy rectangle to rectangle, chunk by chunk, so that what was flushed and fetched is still in the
 * first cache when it is written. Without a scratch buffer the two must not overlap. With one, a
 * chunk is read completely before any of it is written: an overlap inside a chunk is harmless, and
 * an overlap between chunks is too if the caller chose the direction (VGPUD_BACKWARD where bytes
 * move up). The fence that begins each chunk's flush also drains the streaming stores of the chunk
 * before, with which it may share a line.
 */
int vgpud_copy(const vgpud_span *to, size_t to_count, uint64_t to_offset, uint64_t to_stride,
               const vgpud_span *from, size_t from_count, uint64_t from_offset,
               uint64_t from_stride, uint64_t row_bytes, uint64_t rows, uint8_t *scratch,
               uint64_t scratch_size, int flags)
{
    enum action write = flags & VGPUD_NON_TEMPORAL_WRITE ? STREAM : STORE;
    struct cursor reader = {from, 0}, writer = {to, 0};
    uint64_t width, height, parts, groups;

    if (row_bytes == 0 || rows == 0)
        return 0;
    if ((scratch != NULL && scratch_size == 0) ||
        !inside(to, to_count, to_offset, to_stride, row_bytes, rows) ||
        !inside(from, from_count, from_offset, from_stride, row_bytes, rows))
        return -1;
    if (scratch == NULL) {
        struct walk source = {reader, from_offset, from_stride, row_bytes, 0, rows};
        struct walk target = {writer, to_offset, to_stride, row_bytes, 0, rows};

        if (flags & VGPUD_FLUSH_BEFORE_READ)
            read_flushed(source, target, write);
        else
            move_rows(&writer, to_offset, to_stride, &reader, from_offset, from_stride, row_bytes,
                      rows, write);
        if (write == STREAM)
            vgpud_sfence();
        return 0;
    }
    /* A chunk is either several whole rows or a part of one row; there are no more chunks than
     * bytes. */
    width = row_bytes < scratch_size ? row_bytes : scratch_size;
    height = row_bytes < scratch_size ? scratch_size / row_bytes : 1;
    parts = row_bytes / width + (row_bytes % width != 0);
    groups = rows / height + (rows % height != 0);

    for (uint64_t n = 0; n < parts * groups; n++) {
        uint64_t chunk = flags & VGPUD_BACKWARD ? parts * groups - 1 - n : n;
        uint64_t row = chunk / parts * height, column = chunk % parts * width;
        uint64_t high = rows - row < height ? rows - row : height;
        uint64_t wide = row_bytes - column < width ? row_bytes - column : width;
        uint64_t source = from_offset + row * from_stride + column;
        uint64_t target = to_offset + row * to_stride + column;

        if (flags & VGPUD_FLUSH_BEFORE_READ)
            flush_for_reading(&reader, source, from_stride, wide, high);
        run_rows(&reader, source, from_stride, scratch, wide, wide, high, LOAD);
        run_rows(&writer, target, to_stride, scratch, wide, wide, high, write);
    }
    if (write == STREAM)
        vgpud_sfence();
    return 0;
}

int vgpud_fill(const vgpud_span *spans, size_t count, uint64_t offset, uint64_t length,
               uint32_t pattern, int flags)
{
    bool stream = flags & VGPUD_NON_TEMPORAL_WRITE;
    struct cursor at = {spans, 0};
    uint64_t done = 0;

    if (length == 0)
        return 0;
    if (!inside(spans, count, offset, length, length, 1))
        return -1;
    while (done < length) {
        uint64_t left;
        uint8_t *bytes = seek(&at, offset + done, &left);
        size_t n = left < length - done ? left : length - done;

        /* The pattern continues across span borders, at whichever of its bytes the border is. */
        if (stream)
            vgpud_fill_stream(bytes, n, pattern, done & 3);
        else
            vgpud_fill_bytes(bytes, n, pattern, done & 3);
        done += n;
    }
    if (stream)
        vgpud_sfence();
    return 0;
}

/* Afterwards what was written through any mapping is in memory, and what is read next comes from
 * there. */
int vgpud_flush(const vgpud_span *spans, size_t count, uint64_t offset, uint64_t length)
{
    struct cursor at = {spans, 0};

    if (length == 0)
        return 0;
    if (!inside(spans, count, offset, length, length, 1))
        return -1;
    flush_for_reading(&at, offset, length, length, 1);
    return 0;
}
