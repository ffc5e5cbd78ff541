/* Blobs as framebuffers, stopped at for a look at the screen.
 *
 *   scanout host|guest
 */
#include "dma.h"

enum { OFFSET = 8192, GAP = 256 };

static struct blob blob;
static uint32_t pitch, offset;

static void paint(uint32_t seed, uint32_t x, uint32_t y, uint32_t width, uint32_t height)
{
	for (uint32_t row = y; row < y + height; row++)
		for (uint32_t column = x; column < x + width; column++) {
			uint32_t value = pixel(seed, column, row);

			memcpy(blob.map + offset + (uint64_t)row * pitch + column * 4, &value, 4);
		}
}

static uint32_t add(uint32_t width, uint32_t height)
{
	struct drm_mode_fb_cmd2 request = { .width = width, .height = height,
					    .pixel_format = DRM_FORMAT_XRGB8888,
					    .handles = { blob.handle }, .pitches = { pitch },
					    .offsets = { offset } };

	must_ioctl(DRM_IOCTL_MODE_ADDFB2, &request);
	return request.fb_id;
}

int main(int argc, char **argv)
{
	bool host = argc > 1 && !strcmp(argv[1], "host");
	struct output output;
	struct blob stamp;
	struct blit blit;
	uint32_t width, height, fb;

	open_context(0, 0);
	find_output(&output);
	width = output.mode.hdisplay;
	height = output.mode.vdisplay;
	printf("MODE %ux%u\n", width, height);

	pitch = width * 4;
	blob = (host ? host_blob : guest_blob)((uint64_t)pitch * height);
	paint(21, 0, 0, width, height);
	fb = add(width, height);
	set_mode(&output, &output.mode, fb, 0, 0);
	ready("whole");

	paint(22, 101, 51, 203, 77);
	flush_rectangle(fb, 101, 51, 203, 77);
	ready("dirty");

	/* the engine draws: a stamp of 64 x 48 to (640, 320) */
	stamp = host_blob(64 * 48 * 4);
	for (uint32_t y = 0; y < 48; y++)
		for (uint32_t x = 0; x < 64; x++) {
			uint32_t value = pixel(23, x, y);

			memcpy(stamp.map + (y * 64 + x) * 4, &value, 4);
		}
	blit = (struct blit){ 4, 64 * 4, pitch, 0, 320 * pitch + 640 * 4, 64, 48 };
	uses(&stamp);
	uses(&blob);
	raw_blit(stamp.resource, blob.resource, &blit);
	run();
	flush_rectangle(fb, 640, 320, 64, 48);
	ready("blitted");

	/* a picture that begins inside its blob and has gaps between its rows */
	pitch = width * 4 + GAP;
	offset = OFFSET;
	blob = (host ? host_blob : guest_blob)((uint64_t)pitch * height + OFFSET);
	paint(24, 0, 0, width, height);
	fb = add(width, height);
	set_mode(&output, &output.mode, fb, 0, 0);
	ready("offset");
	printf("SCANOUT done\n");
	return 0;
}
