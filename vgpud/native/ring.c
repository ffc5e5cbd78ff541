/*
 * Split rings: many chains in one call, each checked as vhost/split_ring.py checks it, and single
 * chains of any length for that.
 *
 * Only usual chains are taken here: few descriptors, direct or indirect, each descriptor's buffer
 * in one region of guest memory, a short request, and at most one buffer for the response. Any
 * other chain (malformed, long, across regions) ends the batch before it and is left to
 * vhost/split_ring.py, which alone decides what is an error, and which.
 *
 * Source: virtio 1.3, 2.7 "Split Virtqueues".
 */
#include "native.h"

#include <stdatomic.h>
#include <string.h>
#include <time.h>

enum { DESC_F_NEXT = 1, DESC_F_WRITE = 2, DESC_F_INDIRECT = 4 };
enum { AVAIL_F_NO_INTERRUPT = 1 };
enum { FLAGS = 0, IDX = 2, RING = 4 }; /* byte offsets in both the available and the used ring */
enum { MAX_INDIRECT = 4096 };          /* as in vhost/split_ring.py */
/* A command of a driver has two descriptors, or a few more where its data is not contiguous. */
enum { FEW = 32, SHORT = 4096 };

struct desc {
    uint64_t addr;
    uint32_t len;
    uint16_t flags, next;
};

_Static_assert(sizeof(struct desc) == 16, "virtio 1.3, 2.7.5");

/*
 * The driver may write to a descriptor at any time: it is copied once, and the barrier keeps the
 * compiler from reading the original again instead of the copy.
 */
static struct desc fetch(const uint8_t *table, uint32_t index)
{
    struct desc copy;

    memcpy(&copy, table + (size_t)index * sizeof(copy), sizeof(copy));
    __asm__ volatile("" : : "r"(&copy) : "memory");
    return copy;
}

/* Return where a range of guest memory is mapped; NULL if it is empty or not wholly in one
 * region. */
static uint8_t *inside(const vgpud_region *regions, size_t count, uint64_t gpa, uint64_t length)
{
    for (size_t i = 0; i < count; i++) {
        uint64_t offset = gpa - regions[i].start;

        if (gpa >= regions[i].start && offset < regions[i].size)
            return length != 0 && length <= regions[i].size - offset
                       ? (uint8_t *)(uintptr_t)(regions[i].address + offset)
                       : NULL;
    }
    return NULL;
}

static uint16_t *word(uint64_t part, uint64_t offset)
{
    return (uint16_t *)(uintptr_t)(part + offset);
}

static uint16_t load(uint64_t part, uint64_t offset)
{
    return __atomic_load_n(word(part, offset), __ATOMIC_ACQUIRE);
}

static void store(uint64_t part, uint64_t offset, uint16_t value)
{
    __atomic_store_n(word(part, offset), value, __ATOMIC_RELEASE);
}

static uint8_t *in_flight(const vgpud_ring *ring, uint32_t head)
{
    return (uint8_t *)(uintptr_t)ring->in_flight + head;
}

/*
 * Follow a chain through a table of descriptors, from walk->index on, and add its buffers to those
 * that were found before; `room` is for how many. Return one of the VGPUD_CHAIN_ values.
 */
int vgpud_ring_walk(const uint8_t *table, uint32_t entries, int indirect, vgpud_walk *walk,
                    vgpud_span *buffers, uint32_t room)
{
    /* No chain visits a descriptor twice. */
    for (uint32_t visited = 0; visited < entries; visited++) {
        struct desc desc = fetch(table, walk->index);

        walk->following = desc.next;
        if (desc.flags & DESC_F_INDIRECT) {
            /* 2.7.5.3.2: a table may come after normal descriptors, but nothing after it. */
            if (indirect || desc.flags & DESC_F_NEXT)
                return VGPUD_CHAIN_BAD_INDIRECT;
            walk->table = desc.addr;
            walk->table_bytes = desc.len;
            return VGPUD_CHAIN_TABLE;
        }
        if (!(desc.flags & DESC_F_WRITE) && walk->writable)
            return VGPUD_CHAIN_ORDER;
        if (walk->readable + walk->writable >= room)
            return VGPUD_CHAIN_LOOP;
        buffers[walk->readable + walk->writable].address = desc.addr;
        buffers[walk->readable + walk->writable].length = desc.len;
        if (desc.flags & DESC_F_WRITE)
            walk->writable++;
        else
            walk->readable++;
        if (!(desc.flags & DESC_F_NEXT))
            return VGPUD_CHAIN_END;
        if (desc.next >= entries)
            return VGPUD_CHAIN_NEXT;
        walk->index = desc.next;
    }
    return VGPUD_CHAIN_LOOP;
}

/* Take one chain and copy its request, of `size` bytes at most; return 0 if the chain is
 * unusual. */
static int take_one(const vgpud_ring *ring, const vgpud_region *regions, size_t count,
                    uint32_t head, vgpud_chain *chain, uint8_t *buffer, uint32_t size)
{
    const uint8_t *table = (const uint8_t *)(uintptr_t)ring->descriptors;
    uint32_t entries = ring->num, index = head;
    int indirect = 0;

    memset(chain, 0, sizeof(*chain));
    chain->head = head;
    if (head >= ring->num || *in_flight(ring, head))
        return 0;
    for (int visited = 0; visited < FEW; visited++) {
        struct desc desc = fetch(table, index);
        const uint8_t *bytes;

        if (desc.flags & DESC_F_INDIRECT) {
            if (!ring->indirect || indirect || desc.flags & DESC_F_NEXT ||
                desc.len % sizeof(desc) != 0 || desc.len > MAX_INDIRECT * sizeof(desc))
                return 0;
            table = inside(regions, count, desc.addr, desc.len);
            if (table == NULL)
                return 0;
            entries = desc.len / sizeof(desc);
            index = 0;
            indirect = 1;
            continue;
        }
        bytes = inside(regions, count, desc.addr, desc.len);
        if (bytes == NULL || chain->writable)
            return 0; /* also for a readable descriptor after a writable one */
        if (desc.flags & DESC_F_WRITE) {
            chain->writable = 1;
            chain->response = desc.addr;
            chain->room = desc.len;
        } else {
            if (desc.len > size - chain->length)
                return 0;
            memcpy(buffer + chain->length, bytes, desc.len);
            chain->length += desc.len;
        }
        if (!(desc.flags & DESC_F_NEXT))
            return 1;
        if (desc.next >= entries)
            return 0;
        index = desc.next;
    }
    return 0; /* long, or a loop */
}

/*
 * Write a response, as much of it as there is room for, and the used element at index `next`, which
 * the driver does not read before vgpud_ring_publish(). Return the bytes written; -1, with nothing
 * written, if the response's buffer is not in one region.
 */
int64_t vgpud_ring_answer(const vgpud_ring *ring, const vgpud_region *regions, size_t count,
                          uint16_t next, uint32_t head, uint64_t address, uint32_t room,
                          const uint8_t *response, uint32_t length)
{
    uint32_t written = length < room ? length : room;
    uint32_t element[2] = {head, written};
    uint8_t *used = (uint8_t *)(uintptr_t)ring->used;

    if (written != 0) {
        uint8_t *to = inside(regions, count, address, written);

        if (to == NULL)
            return -1;
        memcpy(to, response, written);
    }
    memcpy(used + RING + 8u * (next & (ring->num - 1)), element, sizeof(element));
    if (head < ring->num)
        *in_flight(ring, head) = 0;
    return written;
}

/*
 * Take up to `most` chains from `next` on and copy their requests into the buffer, one after the
 * other. Return their number, with VGPUD_RING_UNUSUAL set if the chain after them is unusual and
 * must be read by vhost/split_ring.py.
 *
 * With `fast_path`, the chains at the beginning that it executes, up to `most`, are answered at
 * once, from the used index `next_used` on; their number is stored in fast_path->served. Only those
 * at the beginning: no chain is executed before one that was made available earlier.
 */
uint32_t vgpud_ring_take(const vgpud_ring *ring, const vgpud_region *regions, size_t count,
                         uint16_t next, vgpud_chain *chains, uint32_t most, uint8_t *buffer,
                         uint32_t size, uint16_t next_used, vgpud_fast_path *fast_path)
{
    uint16_t waiting = load(ring->available, IDX) - next;
    uint32_t taken = 0, served = 0, at = 0;

    if (fast_path != NULL)
        fast_path->served = 0;
    if (waiting > ring->num)
        return VGPUD_RING_UNUSUAL;
    while (served + taken < waiting && served < most && taken < most && size - at >= SHORT) {
        uint32_t slot = (next + served + taken) & (ring->num - 1);
        uint16_t head = __atomic_load_n(word(ring->available, RING + 2u * slot), __ATOMIC_RELAXED);
        vgpud_chain *chain = &chains[taken];
        uint8_t response[VGPUD_FAST_RESPONSE];
        uint32_t length;

        if (!take_one(ring, regions, count, head, chain, buffer + at, SHORT))
            return taken | VGPUD_RING_UNUSUAL;
        if (fast_path != NULL && taken == 0 && chain->writable &&
            (length = fast_path->execute(fast_path->device, buffer, chain->length, response))) {
            /* This does not fail: take_one() has found the response's buffer in one region. */
            vgpud_ring_answer(ring, regions, count, (uint16_t)(next_used + served), head,
                              chain->response, chain->room, response, length);
            fast_path->served = ++served;
            continue;
        }
        *in_flight(ring, head) = 1;
        chain->request = at;
        at += chain->length;
        taken++;
    }
    return taken;
}

/* Publish the used elements before `next`. Return whether the driver wants an interrupt for those
 * since `signalled`. */
int vgpud_ring_publish(const vgpud_ring *ring, uint16_t signalled, uint16_t next)
{
    store(ring->used, IDX, next);
    /* The index must be visible before the driver's flags or event index are read, or both sides
     * could wait. */
    atomic_thread_fence(memory_order_seq_cst);
    if (signalled == next)
        return 0;
    if (!ring->event_idx)
        return !(load(ring->available, FLAGS) & AVAIL_F_NO_INTERRUPT);
    return (uint16_t)(next - load(ring->available, RING + 2u * ring->num) - 1) <
           (uint16_t)(next - signalled);
}

/* Enable notifications of chains. Return whether some arrived meanwhile. */
int vgpud_ring_enable_notifications(const vgpud_ring *ring, uint16_t next)
{
    if (ring->event_idx)
        store(ring->used, RING + 8u * ring->num, next);
    else
        store(ring->used, FLAGS, 0);
    /* A driver that missed the request has its index visible after this fence. */
    atomic_thread_fence(memory_order_seq_cst);
    return load(ring->available, IDX) != next;
}

/* Poll: sleep for a time, unless a chain is available already. Return whether one is then. */
int vgpud_ring_poll(const vgpud_ring *ring, uint16_t next, uint32_t nanoseconds)
{
    struct timespec interval = {0, nanoseconds};

    if (load(ring->available, IDX) == next)
        nanosleep(&interval, NULL);
    return load(ring->available, IDX) != next;
}
