/* Blobs and the DMA engine against the guest's own computation.
 *
 *   blobs [SEED]    a CHECK line for everything that was looked at
 */
#include "dma.h"

enum { BIG = 3 * MIB, SMALL = 64 * 1024 + 4096 };

static struct dma_capset capset;

static uint64_t parameter(uint64_t which)
{
	int value = 0;
	struct drm_virtgpu_getparam get = { .param = which, .value = (uintptr_t)&value };

	return try_ioctl(DRM_IOCTL_VIRTGPU_GETPARAM, &get) < 0 ? 0 : (uint32_t)value;
}

static void check_parameters(void)
{
	expect(parameter(VIRTGPU_PARAM_3D_FEATURES), "no 3D features");
	expect(parameter(VIRTGPU_PARAM_RESOURCE_BLOB), "no blobs");
	expect(parameter(VIRTGPU_PARAM_HOST_VISIBLE), "no host-visible memory");
	expect(parameter(VIRTGPU_PARAM_CONTEXT_INIT), "no CONTEXT_INIT");
	expect(parameter(VIRTGPU_PARAM_CROSS_DEVICE), "no RESOURCE_UUID");
	expect(parameter(VIRTGPU_PARAM_SUPPORTED_CAPSET_IDs) >> CAPSET_DMA & 1, "no capset 30");
	verdict("parameters");
	printf("INFO blob alignment %llu\n",
	       (unsigned long long)parameter(VIRTGPU_PARAM_BLOB_ALIGNMENT));
	expect(parameter(VIRTGPU_PARAM_BLOB_ALIGNMENT) >= 4096, "no blob alignment");
	verdict("blob-alignment");
	capset = get_capset();
	expect(capset.version == 1, "version %u", capset.version);
	expect(capset.max_packets > 0, "no packets");
	expect(capset.max_blob_size >= BIG, "blobs of %llu bytes at most",
	       (unsigned long long)capset.max_blob_size);
	verdict("capset");
}

/* How many ranges of exactly `size` bytes the kernel maps write-combined; their lines are printed. */
static uint32_t combined_ranges(uint64_t size)
{
	FILE *list = fopen("/sys/kernel/debug/x86/pat_memtype_list", "r");
	uint32_t found = 0;
	char line[256];

	if (!list)
		die("pat_memtype_list");
	while (fgets(line, sizeof(line), list)) {
		unsigned long long from, to;
		char type[64];

		if (sscanf(line, "PAT: [mem %llx-%llx] %63s", &from, &to, type) != 3)
			continue;
		if (to - from != size && to - from != size - 1)
			continue;
		printf("PAT %s", line);
		found += !strcmp(type, "write-combining");
	}
	fclose(list);
	return found;
}

static void check_mapping(void)
{
	uint32_t before = combined_ranges(BIG), mapped;
	struct blob blob = host_blob(BIG);

	expect_zeros("a new blob", blob.map, BIG);
	verdict("new-blob-zero");
	mapped = combined_ranges(BIG);
	expect(mapped == before + 1, "%u write-combining ranges of the blob's size, then %u", before,
	       mapped);
	verdict("write-combining");
	free_blob(&blob);
}

/* A random pattern through one blob and, by COPY, out of another. */
static void check_round_trip(const char *name, uint32_t source_mem, uint32_t target_mem)
{
	struct blob source = create_mapped(source_mem, BIG), target = create_mapped(target_mem, BIG);
	uint8_t *pattern = malloc(BIG), *seen = malloc(BIG);

	random_bytes(pattern, BIG);
	memcpy(source.map, pattern, BIG);
	copy(&source, &target, 0, 0, BIG);
	run();
	memcpy(seen, target.map, BIG);
	expect_bytes("the target", seen, pattern, BIG);
	expect_bytes("the source", source.map, pattern, BIG);
	verdict(name);
	free(pattern);
	free(seen);
	free_blob(&source);
	free_blob(&target);
}

static void transfer(unsigned long request, const struct blob *blob, uint32_t at, uint32_t size)
{
	/* the layouts of both directions' structs are the same */
	struct drm_virtgpu_3d_transfer_to_host transfer = {
		.bo_handle = blob->handle,
		.box = { .x = at, .w = size, .h = 1, .d = 1 },
		.offset = at,
	};

	must_ioctl(request, &transfer);
	wait_blob(blob->handle);
}

/* HOST3D_GUEST: the guest's pages are a shadow that transfers bring to the host's memory and back. */
static void check_shadowed(void)
{
	enum { AT = 4099, LENGTH = 20011 };
	struct blob shadowed = create_mapped(VIRTGPU_BLOB_MEM_HOST3D_GUEST, SMALL);
	struct blob plain = host_blob(SMALL);
	uint8_t pattern[SMALL];

	random_bytes(pattern, SMALL);
	memcpy(shadowed.map, pattern, SMALL);
	transfer(DRM_IOCTL_VIRTGPU_TRANSFER_TO_HOST, &shadowed, 0, SMALL);
	copy(&shadowed, &plain, 0, 0, SMALL);
	run();
	expect_bytes("to the host", plain.map, pattern, SMALL);
	random_bytes(pattern + AT, LENGTH);
	memcpy(plain.map + AT, pattern + AT, LENGTH);
	copy(&plain, &shadowed, AT, AT, LENGTH);
	run();
	transfer(DRM_IOCTL_VIRTGPU_TRANSFER_FROM_HOST, &shadowed, AT, LENGTH);
	expect_bytes("from the host", shadowed.map, pattern, SMALL);
	verdict("host3d-guest");
	free_blob(&shadowed);
	free_blob(&plain);
}

static void check_unmapped(void)
{
	struct blob hidden, plain = host_blob(SMALL);
	uint8_t wanted[SMALL];

	if (try_create_blob(&hidden, VIRTGPU_BLOB_MEM_HOST3D, 0, SMALL) < 0)
		die("create a blob that is not mappable");
	memset(plain.map, 0xA5, SMALL);
	copy(&hidden, &plain, 0, 0, 1000);
	fill(&hidden, 3, SMALL - 5, 0x04030201);
	copy(&hidden, &plain, 0, 1000, SMALL - 1000);
	run();
	memset(wanted, 0, SMALL);
	own_fill(wanted + 3, SMALL - 5, 0x04030201);
	memmove(wanted + 1000, wanted, SMALL - 1000);
	memset(wanted, 0, 1000);
	expect_bytes("through a blob that is not mapped", plain.map, wanted, SMALL);
	verdict("unmapped-blob");
	free_blob(&hidden);
	free_blob(&plain);
}

static void check_fill(const char *name, uint32_t mem)
{
	const uint64_t edges[][2] = { { 0, SMALL }, { 0, 1 },	       { SMALL - 1, 1 }, { 1, 2 },
				      { 63, 2 },    { 4095, 4098 },    { 0, 0 },	 { SMALL, 0 },
				      { 7, 3 },	    { SMALL - 65, 65 } };
	struct blob blob = create_mapped(mem, SMALL);
	uint8_t *model = calloc(1, SMALL);

	for (uint32_t i = 0; i < 80; i++) {
		uint64_t at = random_below(SMALL), length = random_below(SMALL - at + 1);
		uint32_t pattern = random_u64();

		if (i < sizeof(edges) / sizeof(edges[0])) {
			at = edges[i][0];
			length = edges[i][1];
		}
		fill(&blob, at, length, pattern);
		own_fill(model + at, length, pattern);
		if (i % 8 == 7) {
			run();
			expect_bytes("after fills", blob.map, model, SMALL);
		}
	}
	verdict(name);
	free(model);
	free_blob(&blob);
}

/* Copies of any alignment between two blobs, or inside one, where they overlap as often as not. */
static void check_copies(const char *name, uint32_t source_mem, uint32_t target_mem, bool same)
{
	struct blob source = create_mapped(source_mem, SMALL);
	struct blob target = same ? source : create_mapped(target_mem, SMALL);
	uint8_t *from = malloc(SMALL), *to = same ? from : malloc(SMALL);

	random_bytes(from, SMALL);
	memcpy(source.map, from, SMALL);
	if (!same) {
		random_bytes(to, SMALL);
		memcpy(target.map, to, SMALL);
	}
	for (uint32_t i = 0; i < 96; i++) {
		uint64_t length = random_below(i & 1 ? 200 : SMALL + 1);
		uint64_t at = random_below(SMALL - length + 1);
		/* every third one by a few bytes only */
		uint64_t there = i % 3 ? random_below(SMALL - length + 1) :
					 (at ? at - random_below(at < 9 ? at : 9) : 0);

		copy(&source, &target, at, there, length);
		memmove(to + there, from + at, length);
		if (i % 8 == 7) {
			run();
			expect_bytes("the target", target.map, to, SMALL);
		}
	}
	expect_bytes("the source", source.map, from, SMALL);
	verdict(name);
	free(from);
	if (!same) {
		free(to);
		free_blob(&target);
	}
	free_blob(&source);
}

/* As if all of the source was read before anything was written. */
static void own_blit(uint8_t *to, const uint8_t *from, const struct blit *blit)
{
	uint64_t row = (uint64_t)blit->width * blit->cpp;
	uint8_t *rows = malloc(row * blit->height + 1);

	for (uint32_t y = 0; y < blit->height; y++)
		memcpy(rows + y * row, from + blit->from + (uint64_t)y * blit->source_stride, row);
	for (uint32_t y = 0; y < blit->height; y++)
		memcpy(to + blit->to + (uint64_t)y * blit->target_stride, rows + y * row, row);
	free(rows);
}

/* A place for the rectangle in SMALL bytes; one time in four it ends with the blob. */
static uint64_t blit_place(uint32_t stride, uint32_t height, uint64_t row)
{
	uint64_t span = (uint64_t)(height - 1) * stride + row;

	return random_below(4) ? random_below(SMALL - span + 1) : SMALL - span;
}

static void check_blits(const char *name, uint32_t source_mem, uint32_t target_mem, bool same)
{
	const uint32_t sizes[] = { 1, 2, 3, 4, 8, 16 };
	struct blob source = create_mapped(source_mem, SMALL);
	struct blob target = same ? source : create_mapped(target_mem, SMALL);
	uint8_t *from = malloc(SMALL), *to = same ? from : malloc(SMALL);

	random_bytes(from, SMALL);
	memcpy(source.map, from, SMALL);
	if (!same) {
		random_bytes(to, SMALL);
		memcpy(target.map, to, SMALL);
	}
	for (uint32_t i = 0; i < 96; i++) {
		struct blit blit = { .cpp = sizes[random_below(6)], .width = 1 + random_below(40),
				     .height = 1 + random_below(40) };
		uint64_t row = (uint64_t)blit.width * blit.cpp;

		/* no gap between rows, a byte more, or anything */
		blit.source_stride = row + random_below(3) * random_below(300);
		blit.target_stride = row + random_below(3) * random_below(300);
		if (i % 8 == 0)
			blit.target_stride = blit.source_stride;
		blit.from = blit_place(blit.source_stride, blit.height, row);
		blit.to = blit_place(blit.target_stride, blit.height, row);
		if (same && i % 4 == 0) /* near its source: an overlap */
			blit.to = blit_place(blit.target_stride, blit.height, row);
		if (same && i % 8 == 0 && blit.from)
			blit.to = blit.from - random_below(blit.from < 99 ? blit.from : 99);
		uses(&source);
		uses(&target);
		raw_blit(source.resource, target.resource, &blit);
		own_blit(to, from, &blit);
		if (i % 8 == 7) {
			run();
			expect_bytes("the target", target.map, to, SMALL);
		}
	}
	verdict(name);
	free(from);
	if (!same) {
		free(to);
		free_blob(&target);
	}
	free_blob(&source);
}

static void check_crc32(const char *name, uint32_t mem)
{
	struct blob source = create_mapped(mem, BIG), target = create_mapped(mem, 4096);
	uint8_t *model = malloc(BIG);

	random_bytes(model, BIG);
	memcpy(source.map, model, BIG);
	for (uint32_t i = 0; i < 24; i++) {
		uint64_t at = i ? random_below(BIG) : 0;
		uint64_t length = i ? random_below(i & 1 ? 99 : (BIG - at < 99999 ? BIG - at : 99999)) : BIG;
		uint64_t to = i & 2 ? 4096 - 4 : random_below(4096 - 4);
		uint32_t wanted, seen;

		if (at + length > BIG)
			length = BIG - at;
		wanted = own_crc32(model + at, length);
		crc32(&source, &target, at, length, to);
		run();
		memcpy(&seen, target.map + to, 4);
		expect(seen == wanted, "of %llu bytes at %llu: %08x, not %08x",
		       (unsigned long long)length, (unsigned long long)at, seen, wanted);
	}
	expect(own_crc32((const uint8_t *)"123456789", 9) == 0xCBF43926, "own CRC-32 is wrong");
	verdict(name);
	free(model);
	free_blob(&source);
	free_blob(&target);
}

/* A file mapped while its handle is closed stays what it is; its place is not given away before. */
static void check_close_while_mapped(void)
{
	struct blob first = host_blob(SMALL), second;
	uint8_t *pattern = malloc(SMALL);

	random_bytes(pattern, SMALL);
	memcpy(first.map, pattern, SMALL);
	close_handle(first.handle);
	second = host_blob(SMALL);
	expect_zeros("a blob made meanwhile", second.map, SMALL);
	memset(second.map, 0x5A, SMALL);
	expect_bytes("the closed blob", first.map, pattern, SMALL);
	munmap(first.map, SMALL);
	verdict("close-while-mapped");
	free_blob(&second);
	free(pattern);
}

/* The window's offsets come round again, with nothing of the former blob on them. */
static void check_reused_offsets(void)
{
	for (uint32_t i = 0; i < 20; i++) {
		struct blob one = host_blob(SMALL), two = host_blob(SMALL);

		expect_zeros("the first of a pair", one.map, SMALL);
		expect_zeros("the second of a pair", two.map, SMALL);
		memset(one.map, 0x11 + i, SMALL);
		fill(&two, 0, SMALL, 0x22222222u + i);
		run();
		free_blob(&two);
		two = host_blob(SMALL);
		expect_zeros("at the freed offset", two.map, SMALL);
		expect(one.map[0] == 0x11 + i && one.map[SMALL - 1] == 0x11 + i, "its neighbour");
		free_blob(&one);
		free_blob(&two);
	}
	verdict("reused-offsets");
}

static void check_uuid(void)
{
	struct drm_prime_handle prime = { .flags = DRM_CLOEXEC };
	struct blob blob;

	if (try_create_blob(&blob, VIRTGPU_BLOB_MEM_HOST3D,
			    VIRTGPU_BLOB_FLAG_USE_MAPPABLE | VIRTGPU_BLOB_FLAG_USE_CROSS_DEVICE,
			    4096) < 0)
		die("create a cross-device blob");
	prime.handle = blob.handle;
	if (expect(try_ioctl(DRM_IOCTL_PRIME_HANDLE_TO_FD, &prime) == 0, "export: %s", strerror(errno)))
		close(prime.fd);
	verdict("export-with-uuid");
	close_handle(blob.handle);
}

int main(int argc, char **argv)
{
	const uint32_t host = VIRTGPU_BLOB_MEM_HOST3D, guest = VIRTGPU_BLOB_MEM_GUEST;

	random_state = argc > 1 ? strtoull(argv[1], NULL, 0) : 1;
	printf("SEED %llu\n", (unsigned long long)random_state);
	open_context(0, 0);
	check_parameters();
	check_mapping();
	check_round_trip("copy-host-host", host, host);
	check_round_trip("copy-guest-host", guest, host);
	check_round_trip("copy-host-guest", host, guest);
	check_round_trip("copy-guest-guest", guest, guest);
	check_shadowed();
	check_unmapped();
	check_fill("fill-host", host);
	check_fill("fill-guest", guest);
	check_copies("unaligned-host-host", host, host, false);
	check_copies("unaligned-guest-host", guest, host, false);
	check_copies("unaligned-host-guest", host, guest, false);
	check_copies("overlap-host", host, host, true);
	check_copies("overlap-guest", guest, guest, true);
	check_blits("blit-host-host", host, host, false);
	check_blits("blit-guest-host", guest, host, false);
	check_blits("blit-host-guest", host, guest, false);
	check_blits("blit-overlap-host", host, host, true);
	check_blits("blit-overlap-guest", guest, guest, true);
	check_crc32("crc32-host", host);
	check_crc32("crc32-guest", guest);
	check_close_while_mapped();
	check_reused_offsets();
	check_uuid();
	printf("BLOBS done\n");
	return 0;
}
