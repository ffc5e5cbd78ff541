/* Draws on the first output, one scene after the other, and stops at each for a look at the screen.
 *
 *   kms           the scenes, each announced by READY and its name
 *   kms frames    flips from a READY on, until there is a line to read, and then a READY
 *   kms colours   flips of a red and a blue buffer instead, which are drawn once
 *   kms loop      flips and dirty rectangles until the end of the world
 *
 * What is drawn depends on nothing but the mode: two devices that show the same scene show the same pixels.
 */
#include "guest.h"

enum { FLIPS = 300, RECTANGLES = 60, CURSOR = 64 };

static struct output output;
static struct frame frames[2];
static uint32_t width, height;

/* the mode with its blanks more often: the driver times flips by the mode's clock */
static struct drm_mode_modeinfo quick(void)
{
	struct drm_mode_modeinfo mode = output.mode;

	mode.clock *= 8;
	mode.vrefresh *= 8;
	return mode;
}

static void one_flip(uint32_t frame, uint32_t *shown)
{
	struct frame *back = &frames[*shown ^ 1];

	draw(back, 1000 + frame, (frame * 53) % (width - 64), (frame * 29) % (height - 64), 64, 64);
	flip(&output, back->fb);
	*shown ^= 1;
}

static void flips(uint32_t count, uint32_t *shown)
{
	for (uint32_t frame = 1; frame <= count; frame++)
		one_flip(frame, shown);
}

/* Rectangles of every awkward kind: single pixels in the corners, whole rows and columns, odd sizes. */
static void rectangles(struct frame *frame)
{
	const uint32_t edges[][4] = {
		{ 0, 0, 1, 1 }, { width - 1, 0, 1, 1 }, { 0, height - 1, 1, 1 },
		{ width - 1, height - 1, 1, 1 }, { 0, 100, width, 1 }, { 100, 0, 1, height },
		{ 0, height - 3, width, 3 }, { width - 5, 0, 5, height }, { 0, 0, 7, 3 },
	};

	for (uint32_t i = 0; i < sizeof(edges) / sizeof(edges[0]); i++) {
		draw(frame, 2000 + i, edges[i][0], edges[i][1], edges[i][2], edges[i][3]);
		flush_rectangle(frame->fb, edges[i][0], edges[i][1], edges[i][2], edges[i][3]);
	}
	random_state = 42;
	for (uint32_t i = 0; i < RECTANGLES; i++) {
		uint32_t w = 1 + random_below(150), h = 1 + random_below(100);
		uint32_t x = random_below(width - w), y = random_below(height - h);

		draw(frame, 3000 + i, x, y, w, h);
		flush_rectangle(frame->fb, x, y, w, h);
	}
	/* Drawn, but only its inner part is flushed. Whether the rim shows is the driver's business (one
	 * that once showed another buffer sends all of it, for good): it must show on every device or none. */
	draw(frame, 4000, 301, 201, 211, 157);
	flush_rectangle(frame->fb, 331, 231, 101, 77);
}

static void move_cursor(uint32_t flags, int32_t x, int32_t y, uint32_t handle)
{
	struct drm_mode_cursor2 cursor = { .flags = flags, .crtc_id = output.crtc, .x = x, .y = y,
					   .handle = handle };

	if (handle) {
		cursor.width = cursor.height = CURSOR;
		cursor.hot_x = 3;
		cursor.hot_y = 5;
	}
	must_ioctl(DRM_IOCTL_MODE_CURSOR2, &cursor);
}

static void scenes(void)
{
	struct drm_mode_modeinfo small = output.mode, fast = quick();
	struct frame large, little, pointer;
	uint32_t shown = 0;
	double start;

	draw(&frames[0], 1, 0, 0, width, height);
	draw(&frames[1], 2, 0, 0, width, height);
	set_mode(&output, &output.mode, frames[0].fb, 0, 0);
	ready("mode");

	set_mode(&output, &fast, frames[0].fb, 0, 0);
	start = now();
	flips(FLIPS, &shown);
	printf("FLIPPED %d in %.2f s\n", FLIPS, now() - start);
	ready("flips");

	start = now();
	rectangles(&frames[shown]);
	printf("FLUSHED in %.2f s\n", now() - start);
	ready("dirty");

	/* a window on a larger buffer, at an odd place */
	create_frame(&large, width + 123, height + 77, DRM_FORMAT_XRGB8888);
	draw(&large, 6, 0, 0, large.width, large.height);
	set_mode(&output, &output.mode, large.fb, 37, 21);
	ready("offset");
	draw(&large, 7, 50, 60, 333, 111);
	flush_rectangle(large.fb, 50, 60, 333, 111);
	ready("offset-dirty");

	small.hdisplay = 800;
	small.vdisplay = 600;
	create_frame(&little, 800, 600, DRM_FORMAT_XRGB8888);
	draw(&little, 8, 0, 0, 800, 600);
	set_mode(&output, &small, little.fb, 0, 0);
	ready("small");

	set_mode(&output, &output.mode, frames[shown].fb, 0, 0);
	create_frame(&pointer, CURSOR, CURSOR, 0);
	draw(&pointer, 9, 0, 0, CURSOR, CURSOR);
	move_cursor(DRM_MODE_CURSOR_BO | DRM_MODE_CURSOR_MOVE, 200, 150, pointer.handle);
	for (int32_t step = 0; step < 50; step++)
		move_cursor(DRM_MODE_CURSOR_MOVE, 200 + step * 3, 150 + step, 0);
	ready("cursor");
	move_cursor(DRM_MODE_CURSOR_BO, 0, 0, 0);
	ready("no-cursor");

	set_mode(&output, NULL, 0, 0, 0);
	ready("off");
}

static void fill(struct frame *frame, uint32_t colour)
{
	uint32_t *pixels = (uint32_t *)frame->map;

	for (uint64_t i = 0; i < frame->size / 4; i++)
		pixels[i] = colour;
}

static void one_colour(uint32_t frame, uint32_t *shown)
{
	(void)frame;
	*shown ^= 1;
	flip(&output, frames[*shown].fb);
}

static void frames_until_told(void (*one)(uint32_t frame, uint32_t *shown))
{
	struct drm_mode_modeinfo fast = quick();
	struct pollfd told = { .fd = STDIN_FILENO, .events = POLLIN };
	uint32_t shown = 0, count = 0;
	double start;

	if (one == one_flip) {
		draw(&frames[0], 1, 0, 0, width, height);
		draw(&frames[1], 2, 0, 0, width, height);
	} else {
		fill(&frames[0], 0xff0000);
		fill(&frames[1], 0xff);
	}
	set_mode(&output, &fast, frames[0].fb, 0, 0);
	ready("start");
	start = now();
	while (!poll(&told, 1, 0))
		one(++count, &shown);
	wait_line();
	printf("FLIPPED %u in %.2f s\n", count, now() - start);
	ready("frames");
}

int main(int argc, char **argv)
{
	open_gpu();
	find_output(&output);
	width = output.mode.hdisplay;
	height = output.mode.vdisplay;
	printf("OUTPUTS %u\nMODE %ux%u@%u\n", output.connected, width, height, output.mode.vrefresh);
	create_frame(&frames[0], width, height, DRM_FORMAT_XRGB8888);
	create_frame(&frames[1], width, height, DRM_FORMAT_XRGB8888);
	if (argc > 1 && !strcmp(argv[1], "loop")) {
		struct drm_mode_modeinfo fast = quick();
		uint32_t shown = 0;

		set_mode(&output, &fast, frames[0].fb, 0, 0);
		for (uint32_t round = 0;; round++) {
			flips(50, &shown);
			rectangles(&frames[shown]);
			printf("ROUND %u\n", round);
		}
	}
	if (argc > 1 && !strcmp(argv[1], "frames"))
		frames_until_told(one_flip);
	else if (argc > 1 && !strcmp(argv[1], "colours"))
		frames_until_told(one_colour);
	else
		scenes();
	printf("KMS done\n");
	return 0;
}
