/*
 * The interface between the micro-VM and its guest: the boot block, the ports and the records.
 *
 * native/build.py also passes this file to cffi, without comments and lines that begin with #: it
 * may have structs, enums and prototypes only. Sizes are in bytes; gpa is a guest-physical
 * address, va one in the guest's page tables. All guest RAM is mapped one to one.
 */
#ifndef VGPUD_GUEST_H
#define VGPUD_GUEST_H

#include <stddef.h>
#include <stdint.h>

enum {
    VGPUD_QUEUES = 2,
    VGPUD_QUEUE_SIZE = 8,
    VGPUD_RECORD_PORT = 0x5100,  /* 32 bits wide: records, one dword after the other */
    VGPUD_RECORD_DWORDS = 64,    /* of a record, its header not counted */
    VGPUD_CHASE_LINES = 64,      /* loads in a sample: a page's cache lines, one each */
    VGPUD_SAMPLES = 16
};

enum { VGPUD_PROGRAM_FRONT_END = 1, VGPUD_PROGRAM_MEASURE = 2 };

/* A split virtqueue, virtio 1.3, 2.7; all three parts in guest RAM, zeroed. `doorbell_va`: a 16-bit
 * store there is the kick. */
typedef struct {
    uint64_t desc;
    uint64_t avail;
    uint64_t used;
    uint64_t doorbell_va;
} vgpud_guest_queue;

/* The boot block, which the VMM writes; its address is in rdi at the start. */
typedef struct {
    uint32_t program;
    uint32_t rounds; /* of writing, DMA and reading back, each with another picture */
    uint32_t width, height;
    uint64_t pat; /* for the PAT MSR */
    uint64_t window_gpa, window_va, window_size;
    uint64_t window_table; /* the page table of window_va: 512 entries, none present */
    uint64_t request, response; /* a page each, in guest RAM */
    vgpud_guest_queue queues[2];
} vgpud_guest_boot;

/* A record is a dword `kind | dwords << 16`, then as many dwords: one of the structs below. */
enum {
    VGPUD_RECORD_PAT = 1,
    VGPUD_RECORD_MAPPED = 2,
    VGPUD_RECORD_WRITTEN = 3,
    VGPUD_RECORD_DMA = 4,
    VGPUD_RECORD_IMAGE = 5,
    VGPUD_RECORD_SAMPLES = 6,
    VGPUD_RECORD_FAILED = 7,
    VGPUD_RECORD_DONE = 8
};

/* The PAT MSR as it was written, and as it reads back. */
typedef struct {
    uint64_t written;
    uint64_t read_back;
} vgpud_guest_pat;

/* A blob is mapped: what the device answered, and the page table entry made of it. */
typedef struct {
    uint32_t resource_id;
    uint32_t map_info;
    uint64_t offset;
    uint64_t size;
    uint64_t entry; /* of the blob's first page */
} vgpud_guest_mapped;

/* A picture was written through the window, and nothing was flushed. `crc` is computed from the
 * values that were written, not read back. */
typedef struct {
    uint32_t round;
    uint32_t crc;
    uint64_t offset;
    uint64_t size;
} vgpud_guest_written;

/* The device's work is done: its CRCs (of the picture, and of the copy with a bar filled into it),
 * the guest's own of what they should be, and the pixels of the copy that read back as something
 * else. */
typedef struct {
    uint32_t round;
    uint32_t picture_crc, own_picture_crc;
    uint32_t copy_crc, own_copy_crc;
    uint32_t wrong_pixels;
} vgpud_guest_dma;

/* The copy's offset in the window: rows of `width` pixels of B, G, R, X without gaps. */
typedef struct {
    uint64_t offset;
    uint32_t width, height;
} vgpud_guest_image;

/* Time stamp counts of VGPUD_CHASE_LINES loads, each of which needs the one before it. */
typedef struct {
    uint32_t hit[16];  /* write-back, and in the cache */
    uint32_t miss[16]; /* write-back, just flushed */
    uint32_t wc[16];   /* through the mapping that asks for write-combining, after a first pass */
} vgpud_guest_samples;

/* The guest gave up: the command, and the response's type. */
typedef struct {
    uint32_t command;
    uint32_t response;
} vgpud_guest_failed;

/* guest.c: the guest's code, which runs at any address. */
const uint8_t *vgpud_guest_code(void);
size_t vgpud_guest_code_size(void);
size_t vgpud_guest_code_entry(void);

#endif
