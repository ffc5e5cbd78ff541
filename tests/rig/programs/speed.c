/* Measures what the device does every day, one JSON line. tests/bench/guest.py runs this too.
 *
 *   speed [SECONDS]               pictures: full page flips, of frames that differ everywhere and of
 *                                 frames that differ in a 200x200 area, small dirty rectangles and single
 *                                 commands a second; time for each of them, default 1
 *   speed context SECONDS LIVE... what a DMA context is for: microseconds from an execbuffer to its
 *                                 fence, also beside 8 MiB copies on another ring, and of a blob that is
 *                                 made, mapped, touched and freed with LIVE others there
 */
#include "dma.h"

enum { BATCH = 64, AREA = 200, MAX_SAMPLES = 200000, COPIES = 2, COPY_SIZE = 8 * MIB };

static double limit = 1.0;
static double samples[MAX_SAMPLES];

static double flips_a_second(const struct output *output, const struct frame frames[2])
{
	double start = now();
	uint64_t count;

	for (count = 0; now() - start < limit; count++)
		flip(output, frames[(count + 1) & 1].fb);
	return count / (now() - start);
}

static void pictures(void)
{
	struct output output;
	struct frame frames[2];
	struct drm_mode_modeinfo fast;
	double start, flips, area, dirty, drawn, transfers;
	uint64_t count;

	open_gpu();
	find_output(&output);
	for (int i = 0; i < 2; i++) {
		create_frame(&frames[i], output.mode.hdisplay, output.mode.vdisplay, DRM_FORMAT_XRGB8888);
		draw(&frames[i], i, 0, 0, frames[i].width, frames[i].height);
	}
	/* the driver times flips by the mode: make its clock no limit */
	fast = output.mode;
	fast.clock *= 200;
	set_mode(&output, &fast, frames[0].fb, 0, 0);
	flips = flips_a_second(&output, frames);

	memcpy(frames[1].map, frames[0].map, frames[0].size);
	draw(&frames[1], 1, 300, 200, AREA, AREA);
	set_mode(&output, &fast, frames[0].fb, 0, 0);
	area = flips_a_second(&output, frames);

	set_mode(&output, &fast, frames[0].fb, 0, 0);
	start = now();
	for (count = 0; now() - start < limit; count++)
		flush_rectangle(frames[0].fb, (count * 37) % (frames[0].width - 64),
				(count * 17) % (frames[0].height - 64), 64, 64);
	dirty = count / (now() - start);

	/* the same with something new in each */
	start = now();
	for (count = 0; now() - start < limit; count++) {
		uint32_t x = (count * 37) % (frames[0].width - 64), y = (count * 17) % (frames[0].height - 64);

		draw(&frames[0], 2 + count, x, y, 64, 64);
		flush_rectangle(frames[0].fb, x, y, 64, 64);
	}
	drawn = count / (now() - start);

	/* one page of one row, not waited for: the ring and the command path are all there is to it */
	start = now();
	for (count = 0; now() - start < limit; count += BATCH)
		for (int i = 0; i < BATCH; i++) {
			struct drm_virtgpu_3d_transfer_to_host transfer = {
				.bo_handle = frames[0].handle,
				.box = { .w = 16, .h = 1, .d = 1 },
			};

			must_ioctl(DRM_IOCTL_VIRTGPU_TRANSFER_TO_HOST, &transfer);
		}
	/* what is still in the ring is part of the bill: a flush is answered after it */
	flush_rectangle(frames[0].fb, 0, 0, 1, 1);
	transfers = count / (now() - start);

	printf("SPEED {\"version\": 2, \"mode\": \"%ux%u\", \"flips\": %.1f, \"flips_area\": %.1f, "
	       "\"dirtyfb\": %.1f, \"dirtyfb_drawn\": %.1f, \"transfers\": %.1f}\n",
	       output.mode.hdisplay, output.mode.vdisplay, flips, area, dirty, drawn, transfers);
}

static int compare(const void *left, const void *right)
{
	double difference = *(const double *)left - *(const double *)right;

	return (difference > 0) - (difference < 0);
}

/* microseconds, below which that part of the samples is */
static double quantile(uint64_t count, double part)
{
	qsort(samples, count, sizeof(*samples), compare);
	return 1e6 * samples[(uint64_t)(part * (count - 1))];
}

static bool signalled(int fence, int patience_ms)
{
	struct pollfd wait = { .fd = fence, .events = POLLIN };

	return poll(&wait, 1, patience_ms) == 1 && wait.revents & POLLIN;
}

/* Work of 64 bytes on ring 1, one at a time, while ring 2 always has so many copies to do. */
static uint64_t fences(const struct blob *small, const struct blob *source, const struct blob *target,
		       int copies)
{
	const uint32_t flags = VIRTGPU_EXECBUF_FENCE_FD_OUT | VIRTGPU_EXECBUF_RING_IDX;
	int under_way[COPIES];
	double begin = now();
	uint64_t count;

	for (int i = 0; i < copies; i++)
		under_way[i] = -1;
	for (count = 0; count < MAX_SAMPLES && now() - begin < limit; count++) {
		double start;
		int fence;

		for (int i = 0; i < copies; i++) {
			if (under_way[i] >= 0 && !signalled(under_way[i], 0))
				continue;
			if (under_way[i] >= 0)
				close(under_way[i]);
			raw_copy(source->resource, target->resource, 0, 0, COPY_SIZE);
			under_way[i] = submit(flags, 2, 0);
		}
		raw_fill(small->resource, 0, 64, count);
		start = now();
		fence = submit(flags, 1, 0);
		if (!signalled(fence, 15000))
			die("no fence");
		samples[count] = now() - start;
		close(fence);
	}
	for (int i = 0; i < copies; i++) {
		signalled(under_way[i], 15000);
		close(under_way[i]);
	}
	return count;
}

static uint64_t blobs(void)
{
	double begin = now();
	uint64_t count;

	for (count = 0; count < MAX_SAMPLES && now() - begin < limit; count++) {
		double start = now();
		struct blob blob = host_blob(4096);

		*(volatile uint32_t *)blob.map = count;
		free_blob(&blob);
		samples[count] = now() - start;
	}
	return count;
}

static void context(char **live)
{
	struct blob small, source, target;
	uint64_t count, there = 0;

	open_context(3, 0);
	small = host_blob(4096);
	source = host_blob(COPY_SIZE);
	target = host_blob(COPY_SIZE);
	count = fences(&small, &source, &target, 0);
	printf("SPEED {\"version\": 2, \"fence_p50\": %.1f, \"fence_p99\": %.1f", quantile(count, 0.5),
	       quantile(count, 0.99));
	count = fences(&small, &source, &target, COPIES);
	printf(", \"busy_p50\": %.1f, \"busy_p99\": %.1f, \"blobs\": {", quantile(count, 0.5),
	       quantile(count, 0.99));
	free_blob(&small);
	free_blob(&source);
	free_blob(&target);
	for (int i = 0; live[i]; i++) {
		for (; there < strtoull(live[i], NULL, 10); there++)
			host_blob(4096);
		count = blobs();
		printf("%s\"%s\": %.1f", i ? ", " : "", live[i], quantile(count, 0.5));
	}
	printf("}}\n");
}

int main(int argc, char **argv)
{
	bool in_context = argc > 2 && !strcmp(argv[1], "context");

	if (argc > 1)
		limit = atof(argv[in_context ? 2 : 1]);
	if (in_context)
		context(argv + 3);
	else
		pictures();
	return 0;
}
