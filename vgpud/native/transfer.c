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
/* Bytes of a rectangle. The event loop runs nothing else during a call: 64 of these, a batch,
 * take a millisecond or less. */
enum { SMALL = 64 * 1024 };

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

static int copy(const vgpud_transfers *transfers, uint32_t resource, uint32_t x, uint32_t y,
                uint32_t width, uint32_t height, uint64_t offset, uint32_t stride)
{
    const vgpud_image *image = (const vgpud_image *)(uintptr_t)transfers->images;
    const vgpud_image *end = image + transfers->count;
    uint64_t row;

    while (image != end && image->resource != resource)
        image++;
    if (image == end || width == 0 || height == 0 || (uint64_t)x + width > image->width ||
        (uint64_t)y + height > image->height ||
        (uint64_t)width * height > SMALL / BYTES_PER_PIXEL)
        return 0;
    row = (uint64_t)image->width * BYTES_PER_PIXEL;
    return vgpud_copy((const vgpud_span *)(uintptr_t)image->pixels, image->pixels_count,
                      y * row + (uint64_t)x * BYTES_PER_PIXEL, row,
                      (const vgpud_span *)(uintptr_t)image->backing, image->backing_count, offset,
                      stride != 0 ? stride : row, (uint64_t)width * BYTES_PER_PIXEL, height, NULL,
                      0, 0) == 0;
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
