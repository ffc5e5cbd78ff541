/* Measures the device's three everyday costs, one JSON line: full page flips, small dirty rectangles and
 * single commands a second.
 *
 *   speed [SECONDS]    time for each of the three, default 1
 */
#include "guest.h"

enum { BATCH = 64 };

static double limit = 1.0;

int main(int argc, char **argv)
{
	struct output output;
	struct frame frames[2];
	struct drm_mode_modeinfo fast;
	struct drm_virtgpu_getparam get = { .param = VIRTGPU_PARAM_3D_FEATURES };
	int virgl = 0;
	double start, flips, dirty, transfers;
	uint64_t count;

	if (argc > 1)
		limit = atof(argv[1]);
	open_gpu();
	get.value = (uintptr_t)&virgl;
	must_ioctl(DRM_IOCTL_VIRTGPU_GETPARAM, &get);
	find_output(&output);
	for (int i = 0; i < 2; i++) {
		create_frame(&frames[i], output.mode.hdisplay, output.mode.vdisplay, DRM_FORMAT_XRGB8888);
		draw(&frames[i], i, 0, 0, frames[i].width, frames[i].height);
	}
	/* the driver times flips by the mode: make its clock no limit */
	fast = output.mode;
	fast.clock *= 200;
	set_mode(&output, &fast, frames[0].fb, 0, 0);

	start = now();
	for (count = 0; now() - start < limit; count++)
		flip(&output, frames[(count + 1) & 1].fb);
	flips = count / (now() - start);

	set_mode(&output, &fast, frames[0].fb, 0, 0);
	start = now();
	for (count = 0; now() - start < limit; count++)
		flush_rectangle(frames[0].fb, (count * 37) % (frames[0].width - 64),
				(count * 17) % (frames[0].height - 64), 64, 64);
	dirty = count / (now() - start);

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

	printf("SPEED {\"mode\": \"%ux%u\", \"virgl\": %d, \"flips\": %.1f, \"dirtyfb\": %.1f, "
	       "\"transfers\": %.1f}\n",
	       output.mode.hdisplay, output.mode.vdisplay, virgl, flips, dirty, transfers);
	return 0;
}
