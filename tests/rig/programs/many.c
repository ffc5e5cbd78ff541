/* Many host blobs: at once, in a row, beyond the limit, and without end.
 *
 *   many live COUNT KIB       COUNT blobs of KIB at once, all kept whole
 *   many rounds COUNT         create, map, write, free: each blob begins with zeros
 *   many limit COUNT MIB      COUNT blobs that are not mapped: how many of them there really are
 *   many churn                all of it until the end of the world
 *   many busy                 the same, but what is mapped stays mapped
 */
#include "dma.h"

enum { TRIES = 150 };

static void write_words(struct blob *blob, uint32_t seed)
{
	uint32_t *words = (uint32_t *)blob->map;

	for (uint64_t i = 0; i < blob->size / 4; i++)
		words[i] = seed * 0x9E3779B1u + (uint32_t)i * 0x85EBCA6Bu;
}

static bool expect_words(const char *what, const struct blob *blob, uint32_t seed)
{
	const uint32_t *words = (const uint32_t *)blob->map;

	for (uint64_t i = 0; i < blob->size / 4; i++)
		if (words[i] != seed * 0x9E3779B1u + (uint32_t)i * 0x85EBCA6Bu)
			return expect(false, "%s: word %llu is %08x, seed %u", what,
				      (unsigned long long)i, words[i], seed);
	return true;
}

static void live(uint32_t count, uint64_t size)
{
	struct blob *blobs = calloc(count, sizeof(*blobs)), result = host_blob(4096);
	uint32_t *seeds = calloc(count, sizeof(*seeds)), swaps = 0;
	double start = now();

	for (uint32_t i = 0; i < count; i++) {
		blobs[i] = host_blob(size);
		expect_zeros("a new blob", blobs[i].map, size);
		seeds[i] = i + 1;
		write_words(&blobs[i], seeds[i]);
	}
	verdict("all-new-zero");
	printf("INFO %u blobs made, mapped and written in %.2f s\n", count, now() - start);
	for (uint32_t i = 0; i < count; i++)
		expect_words("written", &blobs[i], seeds[i]);
	verdict("all-whole");

	for (uint32_t i = 0; i < TRIES; i++) {
		uint32_t from = random_below(count), to = random_below(count), seen;

		crc32(&blobs[from], &result, 0, size, 0);
		copy(&blobs[from], &blobs[to], 0, 0, size);
		run();
		seeds[to] = seeds[from];
		memcpy(&seen, result.map, 4);
		expect(seen == own_crc32(blobs[from].map, size), "the CRC-32 of blob %u", from);
	}
	for (uint32_t i = 0; i < count; i++)
		expect_words("copied", &blobs[i], seeds[i]);
	verdict("all-whole-after-dma");

	start = now();
	for (uint32_t i = 0; i < count; i++)
		if (random_below(2)) {
			free_blob(&blobs[i]);
			swaps++;
		}
	for (uint32_t i = 0; i < count; i++)
		if (blobs[i].map)
			expect_words("beside freed ones", &blobs[i], seeds[i]);
	for (uint32_t i = 0; i < count; i++)
		if (!blobs[i].map) {
			blobs[i] = host_blob(size);
			expect_zeros("in a freed one's place", blobs[i].map, size);
			seeds[i] = 100000 + i;
			write_words(&blobs[i], seeds[i]);
		}
	for (uint32_t i = 0; i < count; i++)
		expect_words("after the change", &blobs[i], seeds[i]);
	verdict("all-whole-after-change");
	printf("INFO %u blobs freed and made anew in %.2f s\n", swaps, now() - start);
	for (uint32_t i = 0; i < count; i++)
		free_blob(&blobs[i]);
	free_blob(&result);
	free(blobs);
	free(seeds);
}

static void rounds(uint32_t count)
{
	struct blob result = host_blob(4096);
	double start = now();

	for (uint32_t i = 0; i < count; i++) {
		uint64_t size = (1 + random_below(i % 10 ? 16 : 256)) * 4096;
		struct blob blob;
		uint32_t seen;
		uint8_t *zeros = calloc(1, size);

		if (try_create_blob(&blob, VIRTGPU_BLOB_MEM_HOST3D, VIRTGPU_BLOB_FLAG_USE_MAPPABLE,
				    size) < 0)
			die("create");
		/* the engine's view comes first in every other round, before the guest touched a page */
		if (i & 1) {
			crc32(&blob, &result, 0, size, 0);
			run();
			memcpy(&seen, result.map, 4);
			expect(seen == own_crc32(zeros, size), "round %u: the engine sees no zeros", i);
		}
		if (!map_blob(&blob))
			die("map");
		expect_zeros("the guest's view", blob.map, size);
		random_bytes(blob.map, size);
		free(zeros);
		free_blob(&blob);
	}
	printf("INFO %u rounds in %.2f s\n", count, now() - start);
	verdict("rounds-zero");
	free_blob(&result);
}

/* The driver does not look at the answer to RESOURCE_CREATE_BLOB: which blobs there are shows only by
 * what the engine can do with them. */
static void limit(uint32_t count, uint64_t size)
{
	struct blob *blobs = calloc(count, sizeof(*blobs)), probe = host_blob(4096);
	uint32_t there = 0;

	for (uint32_t i = 0; i < count; i++) {
		if (try_create_blob(&blobs[i], VIRTGPU_BLOB_MEM_HOST3D, 0, size) < 0)
			die("create blob %u", i);
		fill(&blobs[i], 0, size, 0xC0FFEE00 + i);
		run();
	}
	for (uint32_t i = 0; i < count; i++) {
		uint32_t seen;

		memset(probe.map, 0, 8);
		copy(&blobs[i], &probe, size - 4, 0, 4);
		run();
		memcpy(&seen, probe.map, 4);
		there += seen == 0xC0FFEE00 + i;
		expect(seen == 0xC0FFEE00 + i || !seen, "blob %u has %08x", i, seen);
	}
	printf("LIMIT %u\n", there);
	verdict("limit-no-strange-bytes");
	for (uint32_t i = 0; i < count; i++)
		free_blob(&blobs[i]);
	/* What was given back can be had again; the driver gives it back behind our back, soon. */
	for (double start = now();;) {
		if (try_create_blob(&blobs[0], VIRTGPU_BLOB_MEM_HOST3D, 0, size) < 0)
			die("create again");
		fill(&blobs[0], 0, size, 0xC0FFEE99);
		copy(&blobs[0], &probe, 0, 0, 4);
		run();
		if (!memcmp(probe.map, "\x99\xEE\xFF\xC0", 4))
			break;
		if (!expect(now() - start < 5, "the freed memory is not to be had"))
			break;
		free_blob(&blobs[0]);
		usleep(10000);
	}
	verdict("limit-freed-again");
	free_blob(&blobs[0]);
	free_blob(&probe);
	free(blobs);
}

static void churn(void)
{
	enum { LIVE = 24 };
	struct blob blobs[LIVE] = { 0 }, large = host_blob(4 * MIB), other = host_blob(4 * MIB);

	for (uint32_t round = 0;; round++) {
		uint32_t i = random_below(LIVE), j = random_below(LIVE);

		if (blobs[i].map)
			free_blob(&blobs[i]);
		blobs[i] = (round & 3 ? host_blob : guest_blob)((1 + random_below(64)) * 4096);
		write_words(&blobs[i], round);
		if (blobs[j].map)
			copy(&blobs[i], &blobs[j], 0, 0, 4096);
		copy(&large, &other, 0, 0, 4 * MIB); /* always something under way */
		submit(0, 0, 0);
		if (round % 50 == 0)
			printf("ROUND %u\n", round);
	}
}

static void busy(void)
{
	enum { LIVE = 24 };
	struct blob blobs[LIVE];

	for (uint32_t i = 0; i < LIVE; i++)
		blobs[i] = (i & 3 ? host_blob : guest_blob)(MIB);
	for (uint32_t round = 0;; round++) {
		uint32_t i = random_below(LIVE), j = random_below(LIVE);

		write_words(&blobs[i], round);
		for (uint32_t times = 0; times < 8; times++)
			copy(&blobs[i], &blobs[j], times, 0, MIB - times);
		submit(0, 0, 0);
		if (round % 50 == 0)
			printf("ROUND %u\n", round);
	}
}

int main(int argc, char **argv)
{
	const char *what = argc > 1 ? argv[1] : "";
	uint32_t count = argc > 2 ? atoi(argv[2]) : 0;
	uint64_t size = argc > 3 ? atoi(argv[3]) : 0;

	random_state = 7;
	open_context(0, 0);
	if (!strcmp(what, "live")) {
		live(count, size * 1024);
	} else if (!strcmp(what, "rounds")) {
		rounds(count);
	} else if (!strcmp(what, "limit")) {
		limit(count, size * MIB);
	} else if (!strcmp(what, "churn")) {
		churn();
	} else if (!strcmp(what, "busy")) {
		busy();
	} else {
		errno = EINVAL;
		die("many: %s", what);
	}
	printf("MANY done\n");
	return 0;
}
