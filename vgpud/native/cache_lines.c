/*
 * Cache lines, and stores that bypass the caches (x86-64).
 *
 * Sources: Intel SDM vol. 1, 10.4.6 "Cacheability Control, Prefetch, and Memory Ordering
 * Instructions"; vol. 2, CLFLUSH, CLFLUSHOPT, CLWB, MASKMOVDQU, MFENCE, SFENCE; vol. 3, chapter 11
 * "Memory Cache Control" (chapter 12 in editions since 2022). AMD APM vol. 2, 7.3-7.5.
 *
 * Why any of this is needed. A guest that maps memory write-combining writes past the caches, and a
 * device that does not snoop reads and writes memory itself, while this process maps the same pages
 * write-back: a mapping of a memfd has no other type to offer. The SDM (vol. 3, 11.12.4) does not
 * recommend two types for one page, since "WC writes may not check the processor caches". Two rules
 * keep it sound. No access through the write-back mapping leaves a dirty line behind: a dirty line
 * may be evicted at any later time, over what others wrote to memory meanwhile. And a line counts
 * as valid only if it was fetched from memory after the sync point. So every write here is
 * non-temporal, and every read flushes first.
 */
#include "cache_lines.h"

#include <immintrin.h>
#include <string.h>

#include "cpu.h"
#include "native.h"

void vgpud_mfence(void)
{
    _mm_mfence();
}

void vgpud_sfence(void)
{
    _mm_sfence();
}

/*
 * Cache lines. CLFLUSHOPT where there is one: CLFLUSH is ordered against other CLFLUSHes, which
 * makes a loop of them run one after another. Neither invalidates by virtual address: they work on
 * the physical line, in every cache of the machine, so a flush through this mapping also writes
 * back what a guest dirtied through its own. Not CLWB: that may keep the line, and a line that is
 * kept is stale later.
 */
__attribute__((target("clflushopt"))) static void flush_lines_opt(uintptr_t line, uintptr_t end)
{
    for (; line < end; line += vgpud_cache_line)
        _mm_clflushopt((void *)line);
}

static void flush_lines_plain(uintptr_t line, uintptr_t end)
{
    for (; line < end; line += vgpud_cache_line)
        _mm_clflush((const void *)line);
}

void vgpud_flush_lines(const uint8_t *start, size_t length)
{
    uintptr_t line = (uintptr_t)start & ~(uintptr_t)(vgpud_cache_line - 1);
    uintptr_t end = (uintptr_t)start + length;

    if (length == 0)
        return;
    if (vgpud_cpu & VGPUD_CPU_CLFLUSHOPT)
        flush_lines_opt(line, end);
    else
        flush_lines_plain(line, end);
}

/*
 * Non-temporal stores. To write-back memory they act as writes to WC memory do (vol. 1, 10.4.6.2):
 * a line that is in a cache is evicted, the data goes to memory through a write-combining buffer,
 * nothing is fetched. They are weakly ordered: an SFENCE must come before the store that says
 * "done".
 *
 * A write-combining buffer that was filled completely is written as one 64-byte burst. One that was
 * not is written in up to eight partial writes, in an order and at a time that the CPU picks
 * (vol. 3, 11.3.1). That is slow, which is why the loops below go line by line in rising order; but
 * it is correct, since a partial write carries byte enables. The other way to write part of a line,
 * an ordinary store and a flush, is a read-modify-write of the whole line: it would fetch the
 * neighbouring bytes, and put them back over what the guest or the device wrote there meanwhile.
 * (The kernel keeps ARCH_DMA_MINALIGN because of this; a guest's packets keep no such rule.) So the
 * ends of a run are written with MASKMOVDQU, which is non-temporal too and writes just the bytes of
 * its mask. An aligned block of 16 never crosses a
 * page, so the masked-out bytes can't fault where the others do not.
 */
static void stream_part(uint8_t *block, unsigned first, unsigned count, const uint8_t bytes[16])
{
    uint8_t mask[16] = {0};

    memset(mask + first, 0xff, count);
    _mm_maskmoveu_si128(_mm_loadu_si128((const __m128i *)bytes),
                        _mm_loadu_si128((const __m128i *)mask), (char *)block);
}

/* `to` is the start of a line for the wide loops, and a multiple of 16 for the narrow one; each
 * writes as many whole vectors as fit and returns how many bytes that were. */
__attribute__((target("avx2"))) static size_t stream_avx2(uint8_t *to, const uint8_t *from,
                                                          size_t length)
{
    size_t done = 0;

    for (; length - done >= 128; done += 128) {
        __m256i a = _mm256_loadu_si256((const __m256i *)(from + done));
        __m256i b = _mm256_loadu_si256((const __m256i *)(from + done + 32));
        __m256i c = _mm256_loadu_si256((const __m256i *)(from + done + 64));
        __m256i d = _mm256_loadu_si256((const __m256i *)(from + done + 96));

        _mm256_stream_si256((__m256i *)(to + done), a);
        _mm256_stream_si256((__m256i *)(to + done + 32), b);
        _mm256_stream_si256((__m256i *)(to + done + 64), c);
        _mm256_stream_si256((__m256i *)(to + done + 96), d);
    }
    return done;
}

/* One store for each line: no write-combining buffer is ever half full, whatever else the CPU does
 * meanwhile. A fifth to a third faster than two stores of half a line (measured). */
__attribute__((target("avx512f"))) static size_t stream_avx512(uint8_t *to, const uint8_t *from,
                                                               size_t length)
{
    size_t done = 0;

    for (; length - done >= 256; done += 256) {
        __m512i a = _mm512_loadu_si512(from + done);
        __m512i b = _mm512_loadu_si512(from + done + 64);
        __m512i c = _mm512_loadu_si512(from + done + 128);
        __m512i d = _mm512_loadu_si512(from + done + 192);

        _mm512_stream_si512((void *)(to + done), a);
        _mm512_stream_si512((void *)(to + done + 64), b);
        _mm512_stream_si512((void *)(to + done + 128), c);
        _mm512_stream_si512((void *)(to + done + 192), d);
    }
    return done;
}

static size_t stream_sse2(uint8_t *to, const uint8_t *from, size_t length)
{
    size_t done = 0;

    for (; length - done >= 16; done += 16)
        _mm_stream_si128((__m128i *)(to + done), _mm_loadu_si128((const __m128i *)(from + done)));
    return done;
}

void vgpud_stream(uint8_t *to, const uint8_t *from, size_t length)
{
    unsigned lead = (unsigned)((uintptr_t)to & 15);
    uint8_t bytes[16] = {0};
    size_t done;

    if (lead != 0 && length != 0) {
        unsigned count = length < 16 - lead ? (unsigned)length : 16 - lead;

        memcpy(bytes + lead, from, count);
        stream_part(to - lead, lead, count, bytes);
        to += count, from += count, length -= count;
    }
    if (vgpud_cpu & (VGPUD_CPU_AVX2 | VGPUD_CPU_AVX512) && length >= 256) {
        /* Up to the next line, so that each iteration fills whole write-combining buffers. */
        done = stream_sse2(to, from, -(uintptr_t)to & 63);
        to += done, from += done, length -= done;
        done = vgpud_cpu & VGPUD_CPU_AVX512 ? stream_avx512(to, from, length)
                                               : stream_avx2(to, from, length);
        to += done, from += done, length -= done;
    }
    done = stream_sse2(to, from, length);
    to += done, from += done, length -= done;
    if (length != 0) {
        memcpy(bytes, from, length);
        stream_part(to, 0, (unsigned)length, bytes);
    }
}

/*
 * Ordinary copies of bytes that are not in a cache, strictly from the first byte to the last:
 * libc's memcpy reads the end of a block first, which the CPU's stream prefetcher does not follow,
 * and where every line comes from memory that costs two thirds of the speed.
 */
__attribute__((target("avx512f"))) static size_t fetch_avx512(uint8_t *to, const uint8_t *from,
                                                              size_t length)
{
    size_t done = 0;

    for (; length - done >= 64; done += 64)
        _mm512_storeu_si512(to + done, _mm512_loadu_si512(from + done));
    return done;
}

__attribute__((target("avx2"))) static size_t fetch_avx2(uint8_t *to, const uint8_t *from,
                                                         size_t length)
{
    size_t done = 0;

    for (; length - done >= 32; done += 32)
        _mm256_storeu_si256((__m256i *)(to + done),
                            _mm256_loadu_si256((const __m256i *)(from + done)));
    return done;
}

static size_t fetch_sse2(uint8_t *to, const uint8_t *from, size_t length)
{
    size_t done = 0;

    for (; length - done >= 16; done += 16)
        _mm_storeu_si128((__m128i *)(to + done), _mm_loadu_si128((const __m128i *)(from + done)));
    return done;
}

/* In one loop: at the end of an inner loop the CPU would mispredict now and then, and each time
 * drain its outstanding loads. */
__attribute__((target("avx512f,clflushopt"))) static size_t
fetch_flushing_avx512(uint8_t *to, const uint8_t *from, size_t length, uintptr_t ahead)
{
    size_t done = 0;

    for (; length - done >= 256; done += 256) {
        _mm_clflushopt((void *)(ahead + done));
        _mm_clflushopt((void *)(ahead + done + 64));
        _mm_clflushopt((void *)(ahead + done + 128));
        _mm_clflushopt((void *)(ahead + done + 192));
        _mm512_storeu_si512(to + done, _mm512_loadu_si512(from + done));
        _mm512_storeu_si512(to + done + 64, _mm512_loadu_si512(from + done + 64));
        _mm512_storeu_si512(to + done + 128, _mm512_loadu_si512(from + done + 128));
        _mm512_storeu_si512(to + done + 192, _mm512_loadu_si512(from + done + 192));
    }
    return done;
}

__attribute__((target("avx2,clflushopt"))) static size_t
fetch_flushing_avx2(uint8_t *to, const uint8_t *from, size_t length, uintptr_t ahead)
{
    size_t done = 0;

    for (; length - done >= 64; done += 64) {
        __m256i a = _mm256_loadu_si256((const __m256i *)(from + done));
        __m256i b = _mm256_loadu_si256((const __m256i *)(from + done + 32));

        _mm_clflushopt((void *)(ahead + done));
        _mm256_storeu_si256((__m256i *)(to + done), a);
        _mm256_storeu_si256((__m256i *)(to + done + 32), b);
    }
    return done;
}

void vgpud_fetch_flushing(uint8_t *to, const uint8_t *from, size_t length, const uint8_t *ahead)
{
    uintptr_t line = (uintptr_t)ahead & ~(uintptr_t)63;
    size_t done = 0;

    if (vgpud_cpu & VGPUD_CPU_CLFLUSHOPT && vgpud_cache_line == 64) {
        if (vgpud_cpu & VGPUD_CPU_AVX512)
            done = fetch_flushing_avx512(to, from, length, line);
        else if (vgpud_cpu & VGPUD_CPU_AVX2)
            done = fetch_flushing_avx2(to, from, length, line);
    }
    /* A run that does not begin at the start of a line ends in one line more. */
    vgpud_flush_lines((const uint8_t *)line + done,
                      (size_t)(ahead - (const uint8_t *)line) + length - done);
    vgpud_fetch(to + done, from + done, length - done);
}

void vgpud_fetch(uint8_t *to, const uint8_t *from, size_t length)
{
    size_t done;

    if (vgpud_cpu & VGPUD_CPU_AVX512)
        done = fetch_avx512(to, from, length);
    else if (vgpud_cpu & VGPUD_CPU_AVX2)
        done = fetch_avx2(to, from, length);
    else
        done = fetch_sse2(to, from, length);
    memcpy(to + done, from + done, length - done);
}

/* The pattern rotated for a run whose first byte is the pattern's byte `phase`. */
static uint32_t rotate_pattern(uint32_t pattern, unsigned phase)
{
    phase = (phase & 3) * 8;
    return phase == 0 ? pattern : pattern >> phase | pattern << (32 - phase);
}

void vgpud_fill_bytes(uint8_t *to, size_t length, uint32_t pattern, unsigned phase)
{
    uint32_t word = rotate_pattern(pattern, phase);
    size_t done = 0;

    for (; length - done >= 4; done += 4)
        memcpy(to + done, &word, 4);
    memcpy(to + done, &word, length - done);
}

/* The block's size is a multiple of the pattern's, so the same block can be streamed repeatedly. */
void vgpud_fill_stream(uint8_t *to, size_t length, uint32_t pattern, unsigned phase)
{
    uint8_t block[4096];
    size_t size = length < sizeof block ? length : sizeof block;
    size_t head = -(uintptr_t)to & 63;

    /* The head first, so that every further block starts at the start of a line; the phase of the
     * block is then that of byte `head`. */
    if (head > length)
        head = length;
    vgpud_fill_bytes(block, head, pattern, phase);
    vgpud_stream(to, block, head);
    to += head, length -= head, phase += (unsigned)head;
    if (size > length)
        size = length;
    vgpud_fill_bytes(block, size, pattern, phase);
    while (length != 0) {
        size_t count = length < size ? length : size;

        vgpud_stream(to, block, count);
        to += count, length -= count;
    }
}
