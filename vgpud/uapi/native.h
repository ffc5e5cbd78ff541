/*
 * The native part of vgpud: what must be exact about memory and can't be said in Python.
 *
 * build_native.py hands this file to cffi too, with the lines that begin with # and the comments
 * left out: keep to typedefs, enums and prototypes.
 */
#ifndef VGPUD_NATIVE_H
#define VGPUD_NATIVE_H

#include <stddef.h>
#include <stdint.h>

/* A run of bytes in this process's memory. A buffer is a list of them: guest pages are seldom
 * neighbours. */
typedef struct {
    uint64_t address;
    uint64_t length;
} vgpud_span;

enum {
    VGPUD_FLUSH_BEFORE_READ = 1,  /* what is read comes from memory, not from an old cache line */
    VGPUD_NON_TEMPORAL_WRITE = 2, /* what was written is in memory, and in no cache, at the end */
    VGPUD_BACKWARD = 4            /* vgpud_copy only: the last bytes first */
};

enum {
    VGPUD_CPU_CLFLUSHOPT = 1,
    VGPUD_CPU_CLWB = 2,
    VGPUD_CPU_AVX2 = 4,
    VGPUD_CPU_SELF_SNOOP = 8,
    VGPUD_CPU_HYPERVISOR = 16
};

/* native.c: the CPU */
uint32_t vgpud_cpu_features(void);
void vgpud_limit_cpu_features(uint32_t allowed);
uint32_t vgpud_cache_line_size(void);

/* native.c: words that a guest or a front-end shares with us */
uint16_t vgpud_load_acquire_u16(const uint16_t *word);
void vgpud_store_release_u16(uint16_t *word, uint16_t value);
void vgpud_full_fence(void);
void vgpud_dirty_log_set(uint8_t *bitmap, uint64_t bitmap_bytes, uint64_t first_page,
                         uint64_t pages);

/* rect.c: rectangles of bytes in span lists. 0, or -1 before anything is touched: the rectangle
 * leaves its buffer. */
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

/* mapping.c: shared file mappings that survive a file that shrinks. NULL or -1 with errno set where
 * the system refuses. */
typedef struct vgpud_mapping vgpud_mapping;
vgpud_mapping *vgpud_map_shared(int fd, uint64_t offset, uint64_t length, uint64_t page_size,
                                int writable);
void vgpud_unmap(vgpud_mapping *mapping);
uint64_t vgpud_mapping_address(const vgpud_mapping *mapping);
int vgpud_mapping_faulted(const vgpud_mapping *mapping);
int vgpud_punch_hole(int fd, uint64_t offset, uint64_t length);

#endif
