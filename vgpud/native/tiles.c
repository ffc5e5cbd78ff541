/*
 * What has changed in a picture since the last comparison: tile by tile, against a copy.
 *
 * The copy (the shadow) is what a display was sent. A tile that equals it need not be sent again;
 * one that does not is copied to the shadow and sent from there, so that what was compared, what is
 * remembered and what is sent are the same bytes even if the guest writes meanwhile.
 */
#include <stdbool.h>
#include <string.h>

#include "native.h"

enum { PIXEL = 4 };

/* The part of a tile row that is compared: `columns` tiles, `width` pixels from `x` on. */
struct strip {
    uint32_t x, width, columns;
};

/* Return where a tile's pixels begin in the strip, in bytes; for `columns`, where the strip
 * ends. */
static size_t edge(const struct strip *strip, uint32_t column)
{
    uint32_t first = strip->x / VGPUD_TILE_WIDTH;

    if (column == 0)
        return 0;
    if (column == strip->columns)
        return (size_t)strip->width * PIXEL;
    return ((size_t)(first + column) * VGPUD_TILE_WIDTH - strip->x) * PIXEL;
}

/* Return the first tile from `column` on whose flag is `set`. */
static uint32_t find(const struct strip *strip, const uint8_t *changed, uint32_t column, bool set)
{
    while (column != strip->columns && (changed[column] != 0) != set)
        column++;
    return column;
}

/* Mark the tiles in which one row differs; return how many were marked. Neighbours that are
 * equal so far are compared in one memcmp: nearly always they still are. */
static uint32_t compare_row(const struct strip *strip, const uint8_t *row, const uint8_t *old,
                            uint8_t *changed)
{
    uint32_t begin = find(strip, changed, 0, false), marked = 0;

    while (begin != strip->columns) {
        uint32_t end = find(strip, changed, begin, true);
        size_t at = edge(strip, begin);

        if (memcmp(row + at, old + at, edge(strip, end) - at) != 0)
            for (; begin != end; begin++) {
                at = edge(strip, begin);
                if (memcmp(row + at, old + at, edge(strip, begin + 1) - at) != 0) {
                    changed[begin] = 1;
                    marked++;
                }
            }
        begin = find(strip, changed, end, false);
    }
    return marked;
}

static void copy_row(const struct strip *strip, const uint8_t *row, uint8_t *old,
                     const uint8_t *changed)
{
    uint32_t begin = find(strip, changed, 0, true);

    while (begin != strip->columns) {
        uint32_t end = find(strip, changed, begin, false);
        size_t at = edge(strip, begin);

        memcpy(old + at, row + at, edge(strip, end) - at);
        begin = find(strip, changed, end, true);
    }
}

typedef uint32_t four_pixels __attribute__((vector_size(16)));

/* Reorder the bytes of pixels: byte n of a pixel becomes its former byte number `order`[n]. */
static void reorder(uint8_t *bytes, size_t pixels, uint32_t order)
{
    const int b = (order & 3) * 8, g = (order >> 8 & 3) * 8, r = (order >> 16 & 3) * 8;
    const int x = (order >> 24 & 3) * 8;

    for (size_t count; pixels != 0; pixels -= count, bytes += count * PIXEL) {
        four_pixels four = {0};

        count = pixels < 4 ? pixels : 4;
        /* Of constant size nearly always: that is one instruction, a variable size is a call. */
        if (count == 4)
            memcpy(&four, bytes, sizeof(four));
        else
            memcpy(&four, bytes, count * PIXEL);
        four = (four >> b & 255) | (four >> g & 255) << 8 | (four >> r & 255) << 16 |
               (four >> x & 255) << 24;
        if (count == 4)
            memcpy(bytes, &four, sizeof(four));
        else
            memcpy(bytes, &four, count * PIXEL);
    }
}

/*
 * Update one row of tiles: `rows` rows, `stride` apart. A tile that is not known counts as changed;
 * the caller marks it as known if all of it was compared.
 */
static uint32_t update_band(const struct strip *strip, const uint8_t *pixels, uint64_t stride,
                            uint32_t rows, uint8_t *old, uint64_t old_stride, uint8_t *changed,
                            uint8_t *known)
{
    uint32_t count = 0;

    for (uint32_t column = 0; column < strip->columns; column++)
        count += changed[column] = !known[column];
    for (uint32_t row = 0; row < rows && count != strip->columns; row++)
        count += compare_row(strip, pixels + row * stride, old + row * old_stride, changed);
    if (count != 0)
        for (uint32_t row = 0; row < rows; row++)
            copy_row(strip, pixels + row * stride, old + row * old_stride, changed);
    return count;
}

static uint32_t least(uint32_t a, uint32_t b)
{
    return a < b ? a : b;
}

int64_t vgpud_update_tiles(const vgpud_span *spans, size_t count, uint64_t offset, uint64_t stride,
                           const vgpud_shadow *shadow, uint32_t x, uint32_t y, uint32_t width,
                           uint32_t height, uint32_t order, uint8_t *changed, int flags)
{
    const uint32_t tiles_across = (shadow->width + VGPUD_TILE_WIDTH - 1) / VGPUD_TILE_WIDTH;
    const uint64_t shadow_stride = (uint64_t)shadow->width * PIXEL;
    const uint64_t row_bytes = (uint64_t)width * PIXEL;
    const uint32_t first = x / VGPUD_TILE_WIDTH;
    struct strip strip = {x, width, 0};
    const uint8_t *pixels = NULL;
    uint64_t end, length = 0;
    int64_t found = 0;

    if (width == 0 || height == 0)
        return 0;
    if (x > shadow->width || width > shadow->width - x || y > shadow->height ||
        height > shadow->height - y)
        return -1;
    if (__builtin_mul_overflow(stride, (uint64_t)height - 1, &end) ||
        __builtin_add_overflow(end, row_bytes, &end) || __builtin_add_overflow(end, offset, &end))
        return -1;
    for (size_t i = 0; i < count; i++)
        length += spans[i].length;
    if (end > length)
        return -1;
    strip.columns = (x + width - 1) / VGPUD_TILE_WIDTH - first + 1;
    /* Contiguous memory in the right byte order is compared in place. Other memory is read into the
     * scratch buffer, a row of tiles at a time, which stays in the cache. */
    if (count == 1 && order == VGPUD_ORDER_AS_IS && !(flags & VGPUD_FLUSH_BEFORE_READ))
        pixels = (const uint8_t *)(uintptr_t)(spans->address + offset);

    for (uint32_t top = y, rows; top != y + height; top += rows) {
        uint8_t *known = shadow->known + (uint64_t)(top / VGPUD_TILE_HEIGHT) * tiles_across + first;
        uint8_t *old = shadow->pixels + top * shadow_stride + (uint64_t)x * PIXEL;
        uint32_t bottom = (top / VGPUD_TILE_HEIGHT + 1) * VGPUD_TILE_HEIGHT;

        rows = least(bottom, y + height) - top;
        if (pixels != NULL) {
            found += update_band(&strip, pixels, stride, rows, old, shadow_stride, changed, known);
            pixels += rows * stride;
        } else {
            /* Skip the spans before this row of tiles, also for the rows after it. */
            for (; count != 0 && offset >= spans->length; count--, spans++)
                offset -= spans->length;
            if (vgpud_gather(spans, count, offset, stride, shadow->scratch, row_bytes, row_bytes,
                             rows, flags) != 0)
                return -1;
            if (order != VGPUD_ORDER_AS_IS)
                reorder(shadow->scratch, (size_t)width * rows, order);
            found += update_band(&strip, shadow->scratch, row_bytes, rows, old, shadow_stride,
                                 changed, known);
            offset += rows * stride;
        }
        /* All that was compared now equals the shadow; a tile is known if that is all of it. */
        if (top % VGPUD_TILE_HEIGHT == 0 &&
            (rows == VGPUD_TILE_HEIGHT || top + rows == shadow->height))
            for (uint32_t column = 0; column < strip.columns; column++) {
                uint32_t left = (first + column) * VGPUD_TILE_WIDTH;
                uint32_t right = least(left + VGPUD_TILE_WIDTH, shadow->width);

                if (x <= left && right <= x + width)
                    known[column] = 1;
            }
        changed += strip.columns;
    }
    return found;
}
