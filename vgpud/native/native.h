/*
 * The native part of vgpud: memory accesses that need exact instructions or orderings, which Python
 * can't express, and what is too slow in Python.
 *
 * build.py passes this file to cffi too, with the lines that begin with # and the comments
 * left out: keep to typedefs, enums and prototypes.
 */
#ifndef VGPUD_NATIVE_H
#define VGPUD_NATIVE_H

#include <stddef.h>
#include <stdint.h>

/* A run of bytes in this process's memory. A buffer is a list of them, since a guest's pages are
 * seldom contiguous. */
typedef struct {
    uint64_t address;
    uint64_t length;
} vgpud_span;

enum {
    VGPUD_FLUSH_BEFORE_READ = 1,  /* what is read comes from memory, not from a stale cache line */
    VGPUD_NON_TEMPORAL_WRITE = 2, /* what was written is in memory, and in no cache, at the end */
    VGPUD_BACKWARD = 4            /* vgpud_copy only: the last bytes first */
};

/* What accesses cost, about, in nanoseconds: measured on a machine of 2022, and not the best case.
 * A row and a span cost a cache miss or two, a span also where rows only pass over it. */
enum {
    VGPUD_COST_ROW = 100,
    VGPUD_COST_SPAN = 200,
    VGPUD_COST_PAGE = 500, /* a page that is made now: with rows this far apart, one for each */
    VGPUD_BYTES_PER_NS = 8 /* once they are in memory; a page that is made now costs more */
};

enum {
    VGPUD_CPU_CLFLUSHOPT = 1,
    VGPUD_CPU_CLWB = 2,
    VGPUD_CPU_AVX2 = 4,
    VGPUD_CPU_SELF_SNOOP = 8,
    VGPUD_CPU_HYPERVISOR = 16,
    VGPUD_CPU_AVX512 = 32
};

/* cpu.c: what this CPU can do */
uint32_t vgpud_cpu_features(void);
void vgpud_limit_cpu_features(uint32_t allowed);
uint32_t vgpud_cache_line_size(void);

/* shared_words.c: words that a guest or a front-end accesses at the same time */
uint16_t vgpud_load_acquire_u16(const uint16_t *word);
void vgpud_store_release_u16(uint16_t *word, uint16_t value);
void vgpud_full_fence(void);

/* dirty_log.c: bits that the front-end clears at the same time */
void vgpud_dirty_log_set(uint8_t *bitmap, uint64_t bitmap_bytes, uint64_t first_page,
                         uint64_t pages);
int vgpud_dirty_log_rect(uint8_t *bitmap, uint64_t bitmap_bytes, const vgpud_span *spans,
                         const uint64_t *guests, size_t count, uint64_t offset, uint64_t stride,
                         uint64_t row_bytes, uint64_t rows);

/* rect.c: rectangles of bytes in span lists. They return 0; or -1, with no memory accessed, if the
 * rectangle leaves its buffer. */
int vgpud_gather(const vgpud_span *spans, size_t count, uint64_t offset, uint64_t stride,
                 uint8_t *buffer, uint64_t buffer_stride, uint64_t row_bytes, uint64_t rows,
                 int flags);
int vgpud_scatter(const vgpud_span *spans, size_t count, uint64_t offset, uint64_t stride,
                  const uint8_t *buffer, uint64_t buffer_stride, uint64_t row_bytes, uint64_t rows,
                  int flags);
int vgpud_copy(const vgpud_span *to, size_t to_count, uint64_t to_offset, uint64_t to_stride,
               const vgpud_span *from, size_t from_count, uint64_t from_offset,
               uint64_t from_stride, uint64_t row_bytes, uint64_t rows, uint8_t *scratch,
               uint64_t scratch_size, int flags);
int vgpud_fill(const vgpud_span *spans, size_t count, uint64_t offset, uint64_t length,
               uint32_t pattern, int flags);
int vgpud_flush(const vgpud_span *spans, size_t count, uint64_t offset, uint64_t length);

/* overlap.c: what two buffers share. A place is an extent, its addresses and the position of its
 * first byte in the buffer. Both functions return 0 until they are done. */
typedef struct {
    int64_t start, end, position;
} vgpud_place;
typedef struct {
    uint64_t width, low, left, right, out;
    uint32_t swapped;
} vgpud_sort;
typedef struct {
    uint64_t at, other_at;
    int64_t last, other_last; /* how far each list has reached; INT64_MIN at first */
    uint32_t twice;           /* a byte is twice in one list */
    uint32_t shared;          /* a byte is in both lists */
    uint32_t later, earlier;  /* a byte of both has another position in the second list */
} vgpud_sweep;
int vgpud_sort_places(vgpud_place *places, vgpud_place *spare, uint64_t count, vgpud_sort *state,
                      uint64_t most);
int vgpud_sweep_places(const vgpud_place *places, uint64_t count, const vgpud_place *others,
                       uint64_t other_count, vgpud_sweep *state, uint64_t most);

/* tiles.c: which tiles of a picture differ from a copy of it, the shadow, which is updated. A
 * shadow's rows have no gaps; `known` is a byte for each tile, `scratch` holds VGPUD_TILE_HEIGHT
 * rows. */
enum {
    VGPUD_TILE_WIDTH = 64,
    VGPUD_TILE_HEIGHT = 16,
    VGPUD_ORDER_AS_IS = 0x03020100
};
typedef struct {
    uint8_t *pixels, *known, *scratch;
    uint32_t width, height; /* in pixels of four bytes */
} vgpud_shadow;
int64_t vgpud_update_tiles(const vgpud_span *spans, size_t count, uint64_t offset, uint64_t stride,
                           const vgpud_shadow *shadow, uint32_t x, uint32_t y, uint32_t width,
                           uint32_t height, uint32_t order, uint8_t *changed, int flags);

/* ring.c: split rings, several chains a call. `descriptors`, `available` and `used` are the
 * addresses at which the ring's parts are mapped; the caller has checked that all of each is. */
typedef struct {
    uint64_t descriptors, available, used;
    uint64_t in_flight; /* where a byte for each descriptor is: whether it heads a chain that was
                           taken and is not answered */
    uint32_t num;
    uint32_t event_idx; /* VIRTIO_F_EVENT_IDX is in force */
    uint32_t indirect;  /* VIRTIO_F_INDIRECT_DESC is in force */
    uint32_t zero;
} vgpud_ring;

typedef struct {
    uint64_t start, size; /* guest-physical */
    uint64_t address;
} vgpud_region;

/* A chain that was taken. Its request has been copied into the caller's buffer; its response
 * goes to `room` bytes at a guest-physical address. */
typedef struct {
    uint64_t response; /* guest-physical */
    uint32_t head;
    uint32_t room;
    uint32_t writable;        /* device-writable descriptors: 0 or 1 */
    uint32_t request, length; /* the request's offset in the buffer, and its bytes */
    uint32_t zero;
} vgpud_chain;

/*
 * How far a chain has been followed: its buffers so far, device-readable ones first, and the
 * descriptor that comes next or, at the end, the one that ended it.
 */
typedef struct {
    uint32_t readable, writable;
    uint32_t index;
    uint32_t following;   /* next of that descriptor */
    uint64_t table;       /* VGPUD_CHAIN_TABLE: guest-physical, of an indirect table */
    uint32_t table_bytes;
    uint32_t zero;
} vgpud_walk;

enum {
    VGPUD_CHAIN_END,
    VGPUD_CHAIN_TABLE,       /* the chain continues in an indirect table */
    VGPUD_CHAIN_LOOP,        /* it has more descriptors than there are */
    VGPUD_CHAIN_NEXT,        /* next is not in the table */
    VGPUD_CHAIN_ORDER,       /* a device-readable buffer after a device-writable one */
    VGPUD_CHAIN_BAD_INDIRECT /* INDIRECT in an indirect table, or not the last of the chain */
};

/*
 * The fast path of a queue: requests that a device executes in C, with no Python between the ring
 * and the answer. `execute` executes one request, writes its response, of VGPUD_FAST_RESPONSE bytes
 * at most, and returns the response's length. It returns 0, with nothing done, for a request that
 * must take the slow path.
 */
enum { VGPUD_FAST_RESPONSE = 64 };
typedef uint32_t (*vgpud_execute)(void *device, const uint8_t *request, uint32_t length,
                                  uint8_t *response);
typedef struct {
    vgpud_execute execute;
    void *device;
    uint32_t served; /* chains, by the last vgpud_ring_take() */
} vgpud_fast_path;

/* transfer.c: the images to which small rectangles may be transferred at once. */
typedef struct {
    uint32_t resource;
    uint32_t width, height; /* pixels */
    uint32_t zero;
    uint64_t pixels, pixels_count, backing, backing_count; /* vgpud_span lists */
    uint64_t pixels_ends, backing_ends; /* int64_t: the buffer offset of each span's end */
} vgpud_image;

typedef struct {
    uint64_t images;
    uint32_t count;
    uint32_t with_3d; /* whether TRANSFER_TO_HOST_3D is executed, too */
    uint64_t left;    /* what the commands that follow may cost, in nanoseconds */
    uint64_t done_2d, done_3d, done_fences; /* commands executed so far */
} vgpud_transfers;

/* A vgpud_execute, on a vgpud_transfers. */
uint32_t vgpud_transfer(void *transfers, const uint8_t *request, uint32_t length,
                        uint8_t *response);

enum { VGPUD_RING_UNUSUAL = 1 << 16 };

int vgpud_ring_walk(const uint8_t *table, uint32_t entries, int indirect, vgpud_walk *walk,
                    vgpud_span *buffers, uint32_t room);
uint32_t vgpud_ring_take(const vgpud_ring *ring, const vgpud_region *regions, size_t count,
                         uint16_t next, vgpud_chain *chains, uint32_t most, uint8_t *buffer,
                         uint32_t size, uint16_t next_used, vgpud_fast_path *fast_path);
int64_t vgpud_ring_answer(const vgpud_ring *ring, const vgpud_region *regions, size_t count,
                          uint16_t next, uint32_t head, uint64_t address, uint32_t room,
                          const uint8_t *response, uint32_t length);
int vgpud_ring_publish(const vgpud_ring *ring, uint16_t signalled, uint16_t next);
int vgpud_ring_enable_notifications(const vgpud_ring *ring, uint16_t next);
int vgpud_ring_poll(const vgpud_ring *ring, uint16_t next, uint32_t nanoseconds);

/* mapping.c: shared file mappings that survive a file that shrinks. They return NULL or -1 with
 * errno set if a system call fails. */
typedef struct vgpud_mapping vgpud_mapping;
vgpud_mapping *vgpud_map_shared(int fd, uint64_t offset, uint64_t length, uint64_t page_size,
                                int writable);
void vgpud_unmap(vgpud_mapping *mapping);
uint64_t vgpud_mapping_address(const vgpud_mapping *mapping);
int vgpud_mapping_faulted(const vgpud_mapping *mapping);
int vgpud_fault_event(void); /* an eventfd: its count rises when a mapping has faulted; or -1 */
int vgpud_punch_hole(int fd, uint64_t offset, uint64_t length);

/* pages.c: zeroed memory in small pages; NULL with errno set if there is none */
void *vgpud_map_pages(uint64_t length);
void vgpud_unmap_pages(void *pages, uint64_t length);

/* eventfd.c: a signal that never waits. It returns 0 or a negative errno. */
int vgpud_eventfd_signal(int fd);

/* unix_socket.c: options of sockets. They return a negative errno if a system call fails. */
int vgpud_is_unix_stream(int fd); /* 1 if it is, or 0 */
int vgpud_set_send_buffer(int fd, int size); /* 0 */

/* bench.c: for `vgpud bench` only */
enum {
    VGPUD_BENCH_MEMCPY,       /* and nothing else */
    VGPUD_BENCH_MEMCPY_CLWB,  /* then write the target's lines back */
    VGPUD_BENCH_MEMCPY_FLUSH, /* then write them back and invalidate them */
    VGPUD_BENCH_FLUSH_MEMCPY, /* invalidate the source's lines, then copy */
    VGPUD_BENCH_WRITE,        /* as the copy engine writes, past the caches */
    VGPUD_BENCH_READ          /* as the copy engine reads, from memory */
};
enum { VGPUD_BENCH_FROM_CACHE, VGPUD_BENCH_FROM_MEMORY }; /* where the source is before a copy */
int64_t vgpud_bench_copies(int way, int source, uint8_t *to, uint64_t to_stride, uint8_t *from,
                           uint64_t from_stride, uint64_t row_bytes, uint64_t rows, uint32_t times);

#endif
