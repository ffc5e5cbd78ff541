/*
 * The micro-VM's guest as the driver of a virtio-gpu: it writes blobs in the window without a
 * flush, and has the device work on them.
 *
 * It maps the window with the memory type that RESP_OK_MAP_INFO names, and relies on it. One
 * command is pending at a time.
 *
 * Sources: virtio 1.3, 2.7 "Split Virtqueues" and 5.7 "GPU Device"; the DMA context's packets:
 * vgpud/gpu/wire/dma.py.
 */
#include "guest_cpu.h"

enum {
    DESC_F_NEXT = 1,
    DESC_F_WRITE = 2,

    CMD_RESOURCE_UNREF = 0x0102,
    CMD_RESOURCE_CREATE_BLOB = 0x010c,
    CMD_CTX_CREATE = 0x0200,
    CMD_CTX_DESTROY = 0x0201,
    CMD_CTX_ATTACH_RESOURCE = 0x0202,
    CMD_SUBMIT_3D = 0x0207,
    CMD_RESOURCE_MAP_BLOB = 0x0208,
    CMD_RESOURCE_UNMAP_BLOB = 0x0209,
    CMD_UPDATE_CURSOR = 0x0300,
    RESP_OK_NODATA = 0x1100,
    RESP_OK_MAP_INFO = 0x1106,

    FLAG_FENCE = 1,
    BLOB_MEM_HOST3D = 2,
    BLOB_FLAG_USE_MAPPABLE = 1,
    MAP_INFO_MASK = 0x0f,
    CAPSET_DMA = 30,

    PACKET_FILL = 1 | 8 << 16, /* opcode, and the packet's dwords */
    PACKET_COPY = 2 | 10 << 16,
    PACKET_CRC32 = 4 | 10 << 16,

    CONTEXT = 1,
    CONTROL_QUEUE = 0,
    CURSOR_QUEUE = 1
};

enum { PICTURE = 1, COPY = 2, RESULTS = 3 }; /* resource ids */

typedef struct {
    uint32_t type, flags;
    uint64_t fence_id;
    uint32_t ctx_id, ring_idx;
} header;

typedef struct {
    header header;
    uint32_t words[]; /* all that commands have after the header, in dwords */
} message;

typedef struct {
    uint64_t addr;
    uint32_t len;
    uint16_t flags, next;
} descriptor;

typedef struct {
    volatile uint16_t flags, idx, ring[];
} avail_ring;

typedef struct {
    volatile uint16_t flags, idx;
} used_ring;

typedef struct {
    const vgpud_guest_boot *boot;
    uint16_t used[2]; /* chains that came back so far, per queue */
    uint64_t fence;
    uint32_t picture_crc; /* of the pixels that were written */
    uint32_t crc_table[256];
} guest;

/* -- The device --------------------------------------------------------------------------------- */

GUEST message *begin(guest *g, uint32_t type)
{
    uint64_t *words = (uint64_t *)g->boot->request;
    message *request = (message *)words;

    for (int i = 0; i < 32; i++)
        words[i] = 0;
    request->header.type = type;
    request->header.ctx_id = CONTEXT;
    return request;
}

/* Publishes a chain of a request, and of a response if there is one, and waits for its answer. */
GUEST void transact(guest *g, int queue, uint32_t size, uint32_t response_size)
{
    const vgpud_guest_queue *q = &g->boot->queues[queue];
    descriptor *table = (descriptor *)q->desc;
    avail_ring *avail = (avail_ring *)q->avail;
    const used_ring *used = (const used_ring *)q->used;
    uint16_t idx = g->used[queue]++;

    table[0].addr = g->boot->request;
    table[0].len = size;
    table[0].flags = response_size ? DESC_F_NEXT : 0;
    table[0].next = 1;
    table[1].addr = g->boot->response;
    table[1].len = response_size;
    table[1].flags = DESC_F_WRITE;
    avail->ring[idx % VGPUD_QUEUE_SIZE] = 0;
    store_fence();
    avail->idx = idx + 1;
    store_fence();
    *(volatile uint16_t *)q->doorbell_va = queue;
    /* A halt ends when the device signals, or has signalled before: the VMM polls the eventfds. */
    while (used->idx == idx)
        halt();
    load_fence();
}

/* Sends the command with `words` dwords after its header; gives up if the answer is another. */
GUEST const message *command(guest *g, uint32_t words, uint32_t expected)
{
    message *request = (message *)g->boot->request;
    message *response = (message *)g->boot->response;

    request->header.flags = FLAG_FENCE;
    request->header.fence_id = ++g->fence;
    response->header.type = 0;
    transact(g, CONTROL_QUEUE, sizeof(header) + 4 * words, PAGE);
    if (response->header.type != expected || response->header.fence_id != g->fence) {
        vgpud_guest_failed failed;

        failed.command = request->header.type;
        failed.response = response->header.type;
        report(VGPUD_RECORD_FAILED, &failed, sizeof(failed));
        finish();
    }
    return response;
}

GUEST void on_resource(guest *g, uint32_t type, uint32_t resource_id)
{
    begin(g, type)->words[0] = resource_id;
    command(g, 2, RESP_OK_NODATA);
}

/* -- Blobs -------------------------------------------------------------------------------------- */

GUEST uint32_t *create_blob(guest *g, uint32_t resource_id, uint64_t offset, uint64_t size)
{
    message *request = begin(g, CMD_RESOURCE_CREATE_BLOB);
    const message *response;
    vgpud_guest_mapped mapped;

    request->words[0] = resource_id;
    request->words[1] = BLOB_MEM_HOST3D;
    request->words[2] = BLOB_FLAG_USE_MAPPABLE;
    request->words[6] = (uint32_t)size;
    request->words[7] = size >> 32;
    command(g, 8, RESP_OK_NODATA);
    on_resource(g, CMD_CTX_ATTACH_RESOURCE, resource_id);

    request = begin(g, CMD_RESOURCE_MAP_BLOB);
    request->words[0] = resource_id;
    request->words[2] = (uint32_t)offset;
    request->words[3] = offset >> 32;
    response = command(g, 4, RESP_OK_MAP_INFO);

    mapped.resource_id = resource_id;
    mapped.map_info = response->words[0] & MAP_INFO_MASK;
    mapped.offset = offset;
    mapped.size = size;
    mapped.entry = map_pages(g->boot, offset, size, attributes(mapped.map_info));
    report(VGPUD_RECORD_MAPPED, &mapped, sizeof(mapped));
    return (uint32_t *)(g->boot->window_va + offset);
}

GUEST void destroy_blob(guest *g, uint32_t resource_id, uint64_t offset, uint64_t size)
{
    unmap_pages(g->boot, offset, size);
    on_resource(g, CMD_RESOURCE_UNMAP_BLOB, resource_id);
    on_resource(g, CMD_RESOURCE_UNREF, resource_id);
}

/* -- The picture -------------------------------------------------------------------------------- */

GUEST void make_crc_table(guest *g)
{
    for (uint32_t byte = 0; byte < 256; byte++) {
        uint32_t crc = byte;

        for (int bit = 0; bit < 8; bit++)
            crc = crc >> 1 ^ (0xedb88320 & -(crc & 1));
        g->crc_table[byte] = crc;
    }
}

/* Continues zlib's CRC-32 by one little-endian dword; it starts as ~0 and is inverted at the end. */
GUEST uint32_t crc_add(const guest *g, uint32_t crc, uint32_t word)
{
    crc ^= word;
    for (int i = 0; i < 4; i++)
        crc = crc >> 8 ^ g->crc_table[crc & 0xff];
    return crc;
}

/* B, G, R, X: a gradient and a disc, in other colours each round. */
GUEST uint32_t pixel(const vgpud_guest_boot *boot, uint32_t x, uint32_t y, uint32_t round)
{
    uint32_t dx = 2 * x - boot->width, dy = 2 * y - boot->height; /* may wrap, the squares don't */
    uint32_t colour = x << 18 | y << 10 | (x ^ y) << 2;

    if (dx * dx + dy * dy < boot->height * boot->height / 2)
        colour = ~colour;
    return (colour ^ round * 0x00505050) & 0x00ffffff;
}

/* The pattern that the device fills into the copy's last row. */
GUEST uint32_t bar(uint32_t round)
{
    return 0x00208040 + round;
}

GUEST void write_picture(guest *g, volatile uint32_t *to, uint32_t round)
{
    const vgpud_guest_boot *boot = g->boot;
    vgpud_guest_written written;
    uint32_t crc = ~0u;

    for (uint32_t y = 0; y < boot->height; y++)
        for (uint32_t x = 0; x < boot->width; x++) {
            uint32_t value = pixel(boot, x, y, round);

            *to++ = value;
            crc = crc_add(g, crc, value);
        }
    store_fence();
    written.round = round;
    written.crc = ~crc;
    written.offset = 0;
    written.size = 4ull * boot->width * boot->height;
    report(VGPUD_RECORD_WRITTEN, &written, sizeof(written));
    g->picture_crc = ~crc;
}

GUEST uint32_t *add_packet(uint32_t *at, uint32_t packet, uint32_t src, uint32_t dst,
                           uint64_t src_offset, uint64_t second, uint64_t third)
{
    at[0] = packet;
    at[1] = src;
    at[2] = dst;
    at[3] = 0;
    at[4] = (uint32_t)src_offset;
    at[5] = src_offset >> 32;
    at[6] = (uint32_t)second;
    at[7] = second >> 32;
    at[8] = (uint32_t)third;
    at[9] = third >> 32;
    return at + 10;
}

/* One stream: CRC of the picture, copy, fill the last row of the copy, CRC of the copy. */
GUEST void submit(guest *g, uint32_t round)
{
    const vgpud_guest_boot *boot = g->boot;
    uint32_t row = 4 * boot->width, size = row * boot->height;
    message *request = begin(g, CMD_SUBMIT_3D);
    uint32_t *at = request->words + 2;

    at = add_packet(at, PACKET_CRC32, PICTURE, RESULTS, 0, size, 0);
    at = add_packet(at, PACKET_COPY, PICTURE, COPY, 0, 0, size);
    at[0] = PACKET_FILL;
    at[1] = COPY;
    at[2] = size - row;
    at[3] = 0;
    at[4] = row;
    at[5] = 0;
    at[6] = bar(round);
    at[7] = 0;
    at = add_packet(at + 8, PACKET_CRC32, COPY, RESULTS, 0, size, 4);
    request->words[0] = (uint32_t)((at - request->words - 2) * 4);
    command(g, (uint32_t)(at - request->words), RESP_OK_NODATA);
}

GUEST void check(guest *g, const volatile uint32_t *copy, const volatile uint32_t *results,
                 uint32_t round)
{
    const vgpud_guest_boot *boot = g->boot;
    uint32_t crc = ~0u, wrong = 0;
    vgpud_guest_dma dma;

    for (uint32_t y = 0; y < boot->height; y++)
        for (uint32_t x = 0; x < boot->width; x++) {
            uint32_t value = y == boot->height - 1 ? bar(round) : pixel(boot, x, y, round);

            wrong += *copy++ != value;
            crc = crc_add(g, crc, value);
        }
    dma.round = round;
    dma.picture_crc = results[0];
    dma.own_picture_crc = g->picture_crc;
    dma.copy_crc = results[1];
    dma.own_copy_crc = ~crc;
    dma.wrong_pixels = wrong;
    report(VGPUD_RECORD_DMA, &dma, sizeof(dma));
}

/* -- The program ------------------------------------------------------------------------------ */

GUEST_CODE void vgpud_guest_front_end(const vgpud_guest_boot *boot)
{
    uint64_t size = (4ull * boot->width * boot->height + PAGE - 1) & ~(PAGE - 1ull);
    uint32_t *picture, *copy, *results;
    vgpud_guest_image image;
    guest state, *g = &state;

    g->boot = boot;
    g->used[CONTROL_QUEUE] = g->used[CURSOR_QUEUE] = 0;
    g->fence = 0;
    make_crc_table(g);

    begin(g, CMD_UPDATE_CURSOR); /* resource 0: no cursor */
    transact(g, CURSOR_QUEUE, sizeof(header) + 8 * 4, 0);
    begin(g, CMD_CTX_CREATE)->words[1] = CAPSET_DMA;
    command(g, 18, RESP_OK_NODATA);
    picture = create_blob(g, PICTURE, 0, size);
    copy = create_blob(g, COPY, size, size);
    results = create_blob(g, RESULTS, 2 * size, PAGE);

    /* More than one round: by then each side has accessed what the other writes next, and may have
     * a stale cache line of it. */
    for (uint32_t round = 0; round < boot->rounds; round++) {
        write_picture(g, picture, round);
        submit(g, round);
        check(g, copy, results, round);
    }
    image.offset = size;
    image.width = boot->width;
    image.height = boot->height;
    report(VGPUD_RECORD_IMAGE, &image, sizeof(image));

    destroy_blob(g, RESULTS, 2 * size, PAGE);
    destroy_blob(g, COPY, size, size);
    destroy_blob(g, PICTURE, 0, size);
    begin(g, CMD_CTX_DESTROY);
    command(g, 0, RESP_OK_NODATA);
}
