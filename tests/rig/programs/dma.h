/* The DMA context (capset 30) as a guest program uses it: blobs, packets, submissions, and the CHECK
 * lines that the tests read. */
#ifndef DMA_H
#define DMA_H

#include "guest.h"

#define MIB (1024u * 1024u)

enum { CAPSET_DMA = 30, STREAM_WORDS = 131072, MAX_HANDLES = 16 };
enum { OP_NOP, OP_FILL, OP_COPY, OP_BLIT, OP_CRC32 };

struct dma_capset {
	uint32_t version, max_packets;
	uint64_t max_blob_size;
};

struct blob {
	uint32_t handle, resource;
	uint64_t size;
	uint8_t *map;
};

/* ---- checks: the first thing that is wrong is kept, and told in the check's line ---- */

static char wrong[256];

UNUSED __attribute__((format(printf, 2, 3))) static bool expect(bool fine, const char *format, ...)
{
	va_list list;

	if (!fine && !wrong[0]) {
		va_start(list, format);
		vsnprintf(wrong, sizeof(wrong), format, list);
		va_end(list);
	}
	return fine;
}

UNUSED static void verdict(const char *name)
{
	if (wrong[0])
		printf("CHECK %s FAIL %s\n", name, wrong);
	else
		printf("CHECK %s ok\n", name);
	wrong[0] = 0;
}

UNUSED static bool expect_bytes(const char *what, const uint8_t *seen, const uint8_t *wanted,
				uint64_t size)
{
	uint64_t at = 0;

	if (!memcmp(seen, wanted, size))
		return true;
	while (seen[at] == wanted[at])
		at++;
	return expect(false, "%s: byte %llu of %llu is %02x, not %02x", what, (unsigned long long)at,
		      (unsigned long long)size, seen[at], wanted[at]);
}

UNUSED static bool expect_zeros(const char *what, const uint8_t *seen, uint64_t size)
{
	for (uint64_t at = 0; at < size; at++)
		if (seen[at])
			return expect(false, "%s: byte %llu of %llu is %02x, not 0", what,
				      (unsigned long long)at, (unsigned long long)size, seen[at]);
	return true;
}

/* ---- contexts and blobs ---- */

/* A file, and on it a DMA context; `rings` 0 leaves the rings out. `gpu` is that file from now on. */
UNUSED static void open_context(uint32_t rings, uint64_t polled)
{
	struct drm_virtgpu_context_set_param params[] = {
		{ VIRTGPU_CONTEXT_PARAM_CAPSET_ID, CAPSET_DMA },
		{ VIRTGPU_CONTEXT_PARAM_NUM_RINGS, rings },
		{ VIRTGPU_CONTEXT_PARAM_POLL_RINGS_MASK, polled },
	};
	struct drm_virtgpu_context_init init = { .num_params = rings ? 3 : 1,
						 .ctx_set_params = (uintptr_t)params };

	open_gpu();
	must_ioctl(DRM_IOCTL_VIRTGPU_CONTEXT_INIT, &init);
}

UNUSED static struct dma_capset get_capset(void)
{
	struct dma_capset capset = { 0 };
	struct drm_virtgpu_get_caps get = { .cap_set_id = CAPSET_DMA, .cap_set_ver = 1,
					    .addr = (uintptr_t)&capset, .size = sizeof(capset) };

	must_ioctl(DRM_IOCTL_VIRTGPU_GET_CAPS, &get);
	return capset;
}

UNUSED static int try_create_blob(struct blob *blob, uint32_t mem, uint32_t flags, uint64_t size)
{
	struct drm_virtgpu_resource_create_blob create = { .blob_mem = mem, .blob_flags = flags,
							   .size = size };

	memset(blob, 0, sizeof(*blob));
	if (try_ioctl(DRM_IOCTL_VIRTGPU_RESOURCE_CREATE_BLOB, &create) < 0)
		return -1;
	blob->handle = create.bo_handle;
	blob->resource = create.res_handle;
	blob->size = size;
	return 0;
}

/* NULL with errno where the device refused the mapping */
UNUSED static uint8_t *map_blob(struct blob *blob)
{
	struct drm_virtgpu_map map = { .handle = blob->handle };
	void *mapped;

	must_ioctl(DRM_IOCTL_VIRTGPU_MAP, &map);
	mapped = mmap(NULL, blob->size, PROT_READ | PROT_WRITE, MAP_SHARED, gpu, map.offset);
	blob->map = mapped == MAP_FAILED ? NULL : mapped;
	return blob->map;
}

UNUSED static struct blob create_mapped(uint32_t mem, uint64_t size)
{
	struct blob blob;

	if (try_create_blob(&blob, mem, VIRTGPU_BLOB_FLAG_USE_MAPPABLE, size) < 0)
		die("create a blob of kind %u, %llu bytes", mem, (unsigned long long)size);
	if (!map_blob(&blob))
		die("map a blob of kind %u, %llu bytes", mem, (unsigned long long)size);
	return blob;
}

UNUSED static struct blob host_blob(uint64_t size)
{
	return create_mapped(VIRTGPU_BLOB_MEM_HOST3D, size);
}

UNUSED static struct blob guest_blob(uint64_t size)
{
	return create_mapped(VIRTGPU_BLOB_MEM_GUEST, size);
}

UNUSED static void close_handle(uint32_t handle)
{
	struct drm_gem_close request = { .handle = handle };

	must_ioctl(DRM_IOCTL_GEM_CLOSE, &request);
}

UNUSED static void free_blob(struct blob *blob)
{
	if (blob->map)
		munmap(blob->map, blob->size);
	close_handle(blob->handle);
	memset(blob, 0, sizeof(*blob));
}

/* ---- streams ---- */

static uint32_t stream[STREAM_WORDS];
static uint32_t stream_words;
static uint32_t stream_handles[MAX_HANDLES];
static uint32_t stream_handle_count;

UNUSED static void put(uint32_t word)
{
	if (stream_words == STREAM_WORDS) {
		errno = ENOBUFS;
		die("the stream");
	}
	stream[stream_words++] = word;
}

UNUSED static void put64(uint64_t value)
{
	put(value);
	put(value >> 32);
}

/* a blob whose fence the submission must wait for and signal */
UNUSED static void uses(const struct blob *blob)
{
	for (uint32_t i = 0; i < stream_handle_count; i++)
		if (stream_handles[i] == blob->handle)
			return;
	if (stream_handle_count == MAX_HANDLES) {
		errno = ENOBUFS;
		die("the stream's blobs");
	}
	stream_handles[stream_handle_count++] = blob->handle;
}

UNUSED static void raw_fill(uint32_t resource, uint64_t offset, uint64_t length, uint32_t pattern)
{
	put(OP_FILL | 8 << 16);
	put(resource);
	put64(offset);
	put64(length);
	put(pattern);
	put(0);
}

UNUSED static void raw_copy(uint32_t source, uint32_t target, uint64_t from, uint64_t to,
			    uint64_t length)
{
	put(OP_COPY | 10 << 16);
	put(source);
	put(target);
	put(0);
	put64(from);
	put64(to);
	put64(length);
}

struct blit {
	uint32_t cpp, source_stride, target_stride;
	uint64_t from, to;
	uint32_t width, height;
};

UNUSED static void raw_blit(uint32_t source, uint32_t target, const struct blit *blit)
{
	put(OP_BLIT | 12 << 16);
	put(source);
	put(target);
	put(blit->cpp);
	put(blit->source_stride);
	put(blit->target_stride);
	put64(blit->from);
	put64(blit->to);
	put(blit->width);
	put(blit->height);
}

UNUSED static void raw_crc32(uint32_t source, uint32_t target, uint64_t from, uint64_t length,
			     uint64_t to)
{
	put(OP_CRC32 | 10 << 16);
	put(source);
	put(target);
	put(0);
	put64(from);
	put64(length);
	put64(to);
}

UNUSED static void fill(const struct blob *blob, uint64_t offset, uint64_t length, uint32_t pattern)
{
	uses(blob);
	raw_fill(blob->resource, offset, length, pattern);
}

UNUSED static void copy(const struct blob *source, const struct blob *target, uint64_t from,
			uint64_t to, uint64_t length)
{
	uses(source);
	uses(target);
	raw_copy(source->resource, target->resource, from, to, length);
}

UNUSED static void crc32(const struct blob *source, const struct blob *target, uint64_t from,
			 uint64_t length, uint64_t to)
{
	uses(source);
	uses(target);
	raw_crc32(source->resource, target->resource, from, length, to);
}

UNUSED static void wait_blob(uint32_t handle)
{
	struct drm_virtgpu_3d_wait wait = { .handle = handle };

	must_ioctl(DRM_IOCTL_VIRTGPU_WAIT, &wait);
}

/* Hand over what was put, `slack` bytes more than the words; returns the fence's file if asked for. */
UNUSED static int submit(uint32_t flags, uint32_t ring, uint32_t slack)
{
	struct drm_virtgpu_execbuffer execute = {
		.flags = flags, .size = stream_words * 4 + slack, .command = (uintptr_t)stream,
		.bo_handles = (uintptr_t)stream_handles, .num_bo_handles = stream_handle_count,
		.ring_idx = ring, .fence_fd = -1,
	};

	must_ioctl(DRM_IOCTL_VIRTGPU_EXECBUFFER, &execute);
	stream_words = stream_handle_count = 0;
	return execute.fence_fd;
}

/* Run what was put, to its end. */
UNUSED static void run(void)
{
	uint32_t handles[MAX_HANDLES], count = stream_handle_count;

	memcpy(handles, stream_handles, sizeof(handles));
	submit(0, 0, 0);
	for (uint32_t i = 0; i < count; i++)
		wait_blob(handles[i]);
}

/* ---- the guest's own computation of what the engine computes ---- */

UNUSED static uint32_t own_crc32(const uint8_t *bytes, uint64_t size)
{
	static uint32_t table[256];
	uint32_t crc = 0xFFFFFFFFu;

	if (!table[1])
		for (uint32_t i = 0; i < 256; i++) {
			uint32_t value = i;

			for (int bit = 0; bit < 8; bit++)
				value = value & 1 ? 0xEDB88320u ^ value >> 1 : value >> 1;
			table[i] = value;
		}
	while (size--)
		crc = table[(crc ^ *bytes++) & 0xFF] ^ crc >> 8;
	return ~crc;
}

UNUSED static void own_fill(uint8_t *bytes, uint64_t length, uint32_t pattern)
{
	for (uint64_t i = 0; i < length; i++)
		bytes[i] = pattern >> 8 * (i & 3);
}

#endif
