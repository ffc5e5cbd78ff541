/*
 * Inside the native part: rectangles in span lists, their bounds and a position that walks them.
 */
#ifndef VGPUD_SPANS_H
#define VGPUD_SPANS_H

#include <stdbool.h>

#include "native.h"

/* Whether a rectangle that is not empty lies inside its buffer. No sum wraps. */
static inline bool inside(const vgpud_span *spans, size_t count, uint64_t offset, uint64_t stride,
                          uint64_t row_bytes, uint64_t rows)
{
    uint64_t end, length = 0;

    if (rows > 1 && stride < row_bytes)
        return false;
    if (__builtin_mul_overflow(stride, rows - 1, &end) ||
        __builtin_add_overflow(end, row_bytes, &end) || __builtin_add_overflow(end, offset, &end))
        return false;
    for (; count != 0 && length < end; count--, spans++)
        if (__builtin_add_overflow(length, spans->length, &length))
            return false;
    return length >= end;
}

/* A position in a span list. Rectangles are walked in order, so the next span is nearly always this
 * one or its neighbour. */
struct cursor {
    const vgpud_span *span;
    uint64_t start; /* the buffer offset of span's first byte */
};

/* Return the address of a buffer offset that is known to be inside, and how many bytes follow it in
 * its span. */
static inline uint8_t *seek(struct cursor *at, uint64_t offset, uint64_t *left)
{
    while (offset < at->start) {
        at->span--;
        at->start -= at->span->length;
    }
    while (offset - at->start >= at->span->length) {
        at->start += at->span->length;
        at->span++;
    }
    *left = at->span->length - (offset - at->start);
    return (uint8_t *)(uintptr_t)(at->span->address + (offset - at->start));
}

#endif
