/*
 * Inside the native part: cache lines, and stores that bypass the caches. No function here fences
 * unless its name says so.
 */
#ifndef VGPUD_CACHE_LINES_H
#define VGPUD_CACHE_LINES_H

#include <stddef.h>
#include <stdint.h>

/* Write back and invalidate every line that holds a byte of [start, start + length). */
void vgpud_flush_lines(const uint8_t *start, size_t length);

/* memcpy with non-temporal stores only, to any alignment; no byte outside [to, to + length) is
 * written, not even with its own value. */
void vgpud_stream(uint8_t *to, const uint8_t *from, size_t length);

/* memcpy for bytes that are in no cache: in order, so that the prefetcher follows. */
void vgpud_fetch(uint8_t *to, const uint8_t *from, size_t length);

/* memcpy for bytes that are in no cache, which flushes the `length` bytes from `ahead` on at the
 * same time. */
void vgpud_fetch_flushing(uint8_t *to, const uint8_t *from, size_t length, const uint8_t *ahead);

/* Fill with a 32-bit little-endian pattern, beginning with its byte `phase` & 3. */
void vgpud_fill_bytes(uint8_t *to, size_t length, uint32_t pattern, unsigned phase);
void vgpud_fill_stream(uint8_t *to, size_t length, uint32_t pattern, unsigned phase);

/* MFENCE and SFENCE; the reasons are at their callers. */
void vgpud_mfence(void);
void vgpud_sfence(void);

#endif
