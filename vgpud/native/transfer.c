/*
 * TRANSFER_TO_HOST_2D and _3D of small rectangles, of which a guest may send thousands a second.
 *
 * Which images there are, where their bytes and their backing pages are mapped, and whether they
 * may be accessed now, is decided in gpu/fast_path.py. What is not the usual case is refused here
 * and takes the slow path: another command, an image that is not in the table, a rectangle that is
 * empty, large or does not fit, a fence that may have to wait. So a command is one copy and one
 * answer here.
 *
 * Source: virtio 1.3, 5.7.6.7 "struct virtio_gpu_ctrl_hdr", 5.7.6.8 and 5.7.6.9.
 */
#include "native.h"

#include <string.h>

enum { TRANSFER_TO_HOST_2D = 0x0105, TRANSFER_TO_HOST_3D = 0x0205, OK_NODATA = 0x1100 };
enum { FLAG_FENCE = 1, FLAG_INFO_RING_IDX = 2 };
enum { BYTES_PER_PIXEL = 4 };
enum { SMALL = 64 * 1024 }; /* bytes of a rectangle */
enum { PAGE = 4096 };

struct header {
    uint32_t type, flags;
    uint64_t fence_id;
    uint32_t ctx_id;
    uint8_t ring_idx, padding[3];
};

struct transfer_2d {
    struct header header;
    uint32_t x, y, width, height;
    uint64_t offset;
    uint32_t resource, padding;
};

struct transfer_3d {
    struct header header;
    uint32_t x, y, z, width, height, depth;
    uint64_t offset;
    uint32_t resource, level, stride, layer_stride;
};

_Static_assert(sizeof(struct header) == 24, "virtio 1.3, 5.7.6.7");
_Static_assert(sizeof(struct transfer_2d) == 56 && sizeof(struct transfer_3d) == 72, "5.7.6.8");

/* A list of spans from the one at some offset on. */
struct tail {
    const vgpud_span *spans;
    uint64_t count, offset;
};

/* Return the number of the span that has a byte, `count` if none has. */
static uint64_t find(const int64_t *ends, uint64_t count, uint64_t offset)
{
    uint64_t low = 0, high = count;

    while (low < high) {
        uint64_t middle = low + (high - low) / 2;

        if ((uint64_t)ends[middle] <= offset)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

/* Find the spans of a range: from its first byte on, so that those before it cost nothing. Return
 * how many the range covers, 0 if it leaves the buffer. */
static uint64_t find_range(struct tail *tail, uint64_t spans, uint64_t ends, uint64_t count,
                           uint64_t offset, uint64_t length)
{
    const int64_t *end = (const int64_t *)(uintptr_t)ends;
    uint64_t last, first;

    if (__builtin_add_overflow(offset, length - 1, &last) || (last = find(end, count, last)) == count)
        return 0;
    first = find(end, last, offset);
    tail->spans = (const vgpud_span *)(uintptr_t)spans + first;
    tail->count = last - first + 1;
    tail->offset = offset - (first != 0 ? (uint64_t)end[first - 1] : 0);
    return tail->count;
}

static int copy(vgpud_transfers *transfers, uint32_t resource, uint32_t x, uint32_t y,
                uint32_t width, uint32_t height, uint64_t offset, uint32_t stride)
{
    const vgpud_image *image = (const vgpud_image *)(uintptr_t)transfers->images;
    const vgpud_image *end = image + transfers->count;
    uint64_t row, bytes, gaps, spans, backing_spans, row_cost, cost;
    struct tail pixels, backing;

    while (image != end && image->resource != resource)
        image++;
    if (image == end || width == 0 || height == 0 || (uint64_t)x + width > image->width ||
        (uint64_t)y + height > image->height ||
        (uint64_t)width * height > SMALL / BYTES_PER_PIXEL)
        return 0;
    row = (uint64_t)image->width * BYTES_PER_PIXEL;
    bytes = (uint64_t)width * BYTES_PER_PIXEL;
    gaps = height - 1;
    spans = find_range(&pixels, image->pixels, image->pixels_ends, image->pixels_count,
                       y * row + (uint64_t)x * BYTES_PER_PIXEL, gaps * row + bytes);
    backing_spans = find_range(&backing, image->backing, image->backing_ends, image->backing_count,
                               offset, gaps * (stride != 0 ? stride : row) + bytes);
    row_cost = bytes / VGPUD_BYTES_PER_NS + VGPUD_COST_ROW;
    if (row >= PAGE && row_cost < VGPUD_COST_PAGE)
        row_cost = VGPUD_COST_PAGE;
    cost = height * row_cost + (spans + backing_spans) * VGPUD_COST_SPAN;
    if (spans == 0 || backing_spans == 0 || cost > transfers->left ||
        vgpud_copy(pixels.spans, pixels.count, pixels.offset, row, backing.spans, backing.count,
                   backing.offset, stride != 0 ? stride : row, bytes, height, NULL, 0, 0) != 0)
        return 0;
    transfers->left -= cost;
    return 1;
}

/* Execute a command of the usual case and write its response; return 0 with nothing done for any
 * other. The request is a copy that the guest can't change. */
uint32_t vgpud_transfer(void *device, const uint8_t *request, uint32_t length, uint8_t *response)
{
    vgpud_transfers *transfers = device;
    struct header header, answer;

    if (length < sizeof(header))
        return 0;
    memcpy(&header, request, sizeof(header));
    if (header.flags & FLAG_FENCE && header.flags & FLAG_INFO_RING_IDX)
        return 0;
    if (header.type == TRANSFER_TO_HOST_2D && length >= sizeof(struct transfer_2d)) {
        struct transfer_2d it;

        memcpy(&it, request, sizeof(it));
        if (!copy(transfers, it.resource, it.x, it.y, it.width, it.height, it.offset, 0))
            return 0;
        transfers->done_2d++;
    } else if (header.type == TRANSFER_TO_HOST_3D && transfers->with_3d &&
               length >= sizeof(struct transfer_3d)) {
        struct transfer_3d it;

        memcpy(&it, request, sizeof(it));
        if (it.z != 0 || it.depth != 1 || it.level != 0 ||
            !copy(transfers, it.resource, it.x, it.y, it.width, it.height, it.offset, it.stride))
            return 0;
        transfers->done_3d++;
    } else {
        return 0;
    }
    memset(&answer, 0, sizeof(answer));
    answer.type = OK_NODATA;
    if (header.flags & FLAG_FENCE) {
        answer.flags = FLAG_FENCE;
        answer.fence_id = header.fence_id;
        answer.ctx_id = header.ctx_id;
        transfers->done_fences++;
    }
    memcpy(response, &answer, sizeof(answer));
    return sizeof(answer);
}
