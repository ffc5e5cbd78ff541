/* Fences: they come when the packets before them have run, in order in each ring.
 *
 *   fences    a CHECK line for everything that was looked at
 */
#include "dma.h"

#include <linux/sync_file.h>

enum { RINGS = 4, POLLED = 1 << 1 | 1 << 2, JOBS = 48, SIZE = 3 * MIB };

static bool signalled(int fence, int patience_ms)
{
	struct pollfd wait = { .fd = fence, .events = POLLIN };

	return poll(&wait, 1, patience_ms) == 1 && wait.revents & POLLIN;
}

static uint64_t timestamp(int fence)
{
	struct sync_fence_info fence_info = { 0 };
	struct sync_file_info info = { .num_fences = 1, .sync_fence_info = (uintptr_t)&fence_info };

	if (ioctl(fence, SYNC_IOC_FILE_INFO, &info) < 0)
		die("SYNC_IOC_FILE_INFO");
	expect(fence_info.status == 1, "a fence has status %d", fence_info.status);
	return fence_info.timestamp_ns;
}

/* Long work behind one fence: all of it is to be seen when the fence is signalled. */
static void check_data(struct blob *one, struct blob *two)
{
	const uint32_t flags = VIRTGPU_EXECBUF_FENCE_FD_OUT;
	uint8_t *model = malloc(SIZE);
	double start;
	int fence;

	for (uint32_t round = 0; round < 4; round++) {
		random_bytes(model, SIZE);
		memcpy(one->map, model, SIZE);
		for (uint32_t i = 0; i < 32; i++) {
			copy(one, two, 0, 0, SIZE);
			copy(two, one, 1, 0, SIZE - 1);
			memmove(model, model + 1, SIZE - 1);
		}
		start = now();
		fence = submit(flags, 0, 0);
		expect(signalled(fence, 15000), "no fence in 15 s");
		printf("INFO 192 MiB copied in %.3f s\n", now() - start);
		expect_bytes("when the fence came", one->map, model, SIZE);
		close(fence);
	}
	verdict("fence-after-work");
	free(model);
}

/* Jobs on three rings at once. */
static void check_order(struct blob *blobs)
{
	const uint32_t flags = VIRTGPU_EXECBUF_FENCE_FD_OUT | VIRTGPU_EXECBUF_RING_IDX;
	int fences[JOBS];
	uint64_t last[RINGS] = { 0 };
	char events[4096];
	uint32_t polled = 0, seen = 0;

	for (uint32_t i = 0; i < JOBS; i++) {
		uint32_t ring = i % 3 + 1, length = i % 7 ? 4096 : SIZE / 2;

		/* no blob is named, so nothing but the ring orders the jobs */
		raw_copy(blobs[ring].resource, blobs[ring].resource, 0, SIZE / 2, length);
		raw_fill(blobs[ring].resource, i * 8, 8, i + 1);
		fences[i] = submit(flags, ring, 0);
		polled += POLLED >> ring & 1;
	}
	for (uint32_t i = JOBS - 3; i < JOBS; i++)
		expect(signalled(fences[i], 15000), "the last fence of ring %u is missing", i % 3 + 1);
	for (uint32_t i = 0; i < JOBS; i++) {
		uint32_t ring = i % 3 + 1, word;
		uint64_t when;

		if (!expect(signalled(fences[i], 0), "fence %u comes after its successor", i))
			break;
		when = timestamp(fences[i]);
		expect(when >= last[ring], "fence %u was before its predecessor", i);
		last[ring] = when;
		memcpy(&word, blobs[ring].map + i * 8, 4);
		expect(word == i + 1, "job %u is signalled and not done", i);
		close(fences[i]);
	}
	verdict("ring-fences-in-order");

	while (seen < polled && signalled(gpu, 2000)) {
		ssize_t size = read(gpu, events, sizeof(events));

		for (ssize_t at = 0; at < size;) {
			struct drm_event *event = (struct drm_event *)(events + at);

			expect(event->type == VIRTGPU_EVENT_FENCE_SIGNALED, "event type %08x",
			       event->type);
			at += event->length;
			seen++;
		}
	}
	expect(seen == polled && !signalled(gpu, 100), "%u events for %u jobs on polled rings", seen,
	       polled);
	verdict("ring-events");
}

/* While one ring works for long, what needs no engine is answered: to map a blob is to wait for the
 * device's answer. */
static void check_responsive(struct blob *one, struct blob *two)
{
	struct blob other;
	double start, quick;
	int fence;

	for (uint32_t i = 0; i < 1000; i++)
		raw_copy(one->resource, two->resource, 0, 1, SIZE - 1);
	start = now();
	fence = submit(VIRTGPU_EXECBUF_FENCE_FD_OUT | VIRTGPU_EXECBUF_RING_IDX, 1, 0);
	other = host_blob(4096);
	quick = now() - start;
	expect(!signalled(fence, 0), "a blob was mapped only when 3 GiB were copied: %.3f s", quick);
	expect(signalled(fence, 60000), "no fence in 60 s");
	printf("INFO a blob was mapped in %.3f s of %.3f s of work\n", quick, now() - start);
	verdict("answers-while-working");
	close(fence);
	free_blob(&other);
}

int main(void)
{
	struct blob blobs[RINGS];

	random_state = 3;
	open_context(RINGS, POLLED);
	for (uint32_t i = 0; i < RINGS; i++)
		blobs[i] = host_blob(SIZE);
	check_data(&blobs[0], &blobs[1]);
	check_order(blobs);
	check_responsive(&blobs[0], &blobs[1]);
	printf("FENCES done\n");
	return 0;
}
