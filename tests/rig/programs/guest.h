/* What the guest programs share: ioctls that insist, the deterministic pictures and bytes, and the
 * lines by which a test on the console knows where a program is. The kernel's DRM UAPI, no libdrm. */
#ifndef GUEST_H
#define GUEST_H

#include <drm/drm.h>
#include <drm/drm_fourcc.h>
#include <drm/drm_mode.h>
#include <drm/virtgpu_drm.h>

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#define UNUSED __attribute__((unused))

static int gpu = -1;

UNUSED __attribute__((noreturn, format(printf, 1, 2))) static void die(const char *format, ...)
{
	int error = errno;
	va_list list;

	printf("DIED ");
	va_start(list, format);
	vprintf(format, list);
	va_end(list);
	printf(": %s\n", strerror(error));
	exit(1);
}

/* 0 or -1 with errno; tried again where the kernel asks for that */
UNUSED static int try_ioctl(unsigned long request, void *argument)
{
	int result;

	do
		result = ioctl(gpu, request, argument);
	while (result < 0 && (errno == EINTR || errno == EAGAIN));
	return result;
}

#define must_ioctl(request, argument)                          \
	do {                                                   \
		if (try_ioctl(request, argument) < 0)          \
			die("%s line %d", #request, __LINE__); \
	} while (0)

UNUSED static void open_gpu(void)
{
	setvbuf(stdout, NULL, _IOLBF, 0);
	gpu = open("/dev/dri/card0", O_RDWR | O_CLOEXEC);
	if (gpu < 0)
		die("/dev/dri/card0");
}

/* By single bytes, so that nothing of what follows the line is taken. */
UNUSED static void wait_line(void)
{
	char byte;

	do {
		if (read(0, &byte, 1) != 1)
			die("console");
	} while (byte != '\n');
}

/* Say that the picture stands, and wait for a line: the test looks at the screen meanwhile. */
UNUSED static void ready(const char *name)
{
	printf("READY %s\n", name);
	fflush(stdout);
	wait_line();
}

UNUSED static double now(void)
{
	struct timespec time;

	clock_gettime(CLOCK_MONOTONIC, &time);
	return time.tv_sec + time.tv_nsec * 1e-9;
}

/* A picture that is noise to the eye and one formula to a test: no two pixels alike by habit, so a
 * shifted or torn copy shows. The top byte is noise too: what reads it as alpha shows as well. */
UNUSED static uint32_t pixel(uint32_t seed, uint32_t x, uint32_t y)
{
	uint32_t value = seed * 0x9E3779B1u + x * 0x85EBCA6Bu + y * 0xC2B2AE35u;

	value ^= value >> 15;
	value *= 0x2C1B3C6Du;
	value ^= value >> 12;
	value *= 0x297A2D39u;
	return value ^ value >> 15;
}

/* The guest's own random bytes: splitmix64, so that a seed that is printed brings a failure back. */
static uint64_t random_state UNUSED;

UNUSED static uint64_t random_u64(void)
{
	uint64_t value = random_state += 0x9E3779B97F4A7C15ull;

	value = (value ^ value >> 30) * 0xBF58476D1CE4E5B9ull;
	value = (value ^ value >> 27) * 0x94D049BB133111EBull;
	return value ^ value >> 31;
}

UNUSED static uint64_t random_below(uint64_t limit)
{
	return random_u64() % limit;
}

UNUSED static void random_bytes(uint8_t *bytes, size_t size)
{
	size_t at = 0;
	uint64_t value;

	for (; at + 8 <= size; at += 8) {
		value = random_u64();
		memcpy(bytes + at, &value, 8);
	}
	value = random_u64();
	memcpy(bytes + at, &value, size - at);
}

/* a framebuffer: a dumb buffer, mapped */
struct frame {
	uint32_t width, height, pitch, handle, fb;
	uint64_t size;
	uint8_t *map;
};

UNUSED static uint32_t add_framebuffer(uint32_t handle, uint32_t width, uint32_t height,
				       uint32_t pitch, uint32_t format)
{
	struct drm_mode_fb_cmd2 add = { .width = width, .height = height, .pixel_format = format,
					.handles = { handle }, .pitches = { pitch } };

	must_ioctl(DRM_IOCTL_MODE_ADDFB2, &add);
	return add.fb_id;
}

UNUSED static void create_frame(struct frame *frame, uint32_t width, uint32_t height, uint32_t format)
{
	struct drm_mode_create_dumb create = { .width = width, .height = height, .bpp = 32 };
	struct drm_mode_map_dumb map = { 0 };

	must_ioctl(DRM_IOCTL_MODE_CREATE_DUMB, &create);
	frame->width = width;
	frame->height = height;
	frame->pitch = create.pitch;
	frame->size = create.size;
	frame->handle = create.handle;
	frame->fb = format ? add_framebuffer(create.handle, width, height, create.pitch, format) : 0;
	map.handle = create.handle;
	must_ioctl(DRM_IOCTL_MODE_MAP_DUMB, &map);
	frame->map = mmap(NULL, create.size, PROT_READ | PROT_WRITE, MAP_SHARED, gpu, map.offset);
	if (frame->map == MAP_FAILED)
		die("mmap of a dumb buffer");
}

UNUSED static void draw(struct frame *frame, uint32_t seed, uint32_t x, uint32_t y, uint32_t width,
			uint32_t height)
{
	for (uint32_t row = y; row < y + height; row++) {
		uint32_t *line = (uint32_t *)(frame->map + (uint64_t)row * frame->pitch);

		for (uint32_t column = x; column < x + width; column++)
			line[column] = pixel(seed, column, row);
	}
}

/* the first connected output and its preferred mode */
struct output {
	uint32_t connector, crtc, connected;
	struct drm_mode_modeinfo mode;
};

UNUSED static void find_output(struct output *output)
{
	uint32_t crtcs[16], connectors[16];
	struct drm_mode_card_res resources = {
		.crtc_id_ptr = (uintptr_t)crtcs, .count_crtcs = 16,
		.connector_id_ptr = (uintptr_t)connectors, .count_connectors = 16,
	};

	must_ioctl(DRM_IOCTL_MODE_GETRESOURCES, &resources);
	memset(output, 0, sizeof(*output));
	for (uint32_t i = 0; i < resources.count_connectors && i < 16; i++) {
		static struct drm_mode_modeinfo modes[64];
		struct drm_mode_get_connector get = { .connector_id = connectors[i],
						      .modes_ptr = (uintptr_t)modes,
						      .count_modes = 64 };

		must_ioctl(DRM_IOCTL_MODE_GETCONNECTOR, &get);
		if (get.connection != 1 || !get.count_modes)
			continue;
		if (output->connected++)
			continue;
		output->connector = connectors[i];
		output->crtc = crtcs[i]; /* virtio_gpu makes them in pairs */
		output->mode = modes[0];
		for (uint32_t m = 0; m < get.count_modes && m < 64; m++)
			if (modes[m].type & DRM_MODE_TYPE_PREFERRED) {
				output->mode = modes[m];
				break;
			}
	}
	if (!output->connected) {
		errno = ENODEV;
		die("no connected output");
	}
}

UNUSED static void set_mode(const struct output *output, const struct drm_mode_modeinfo *mode,
			    uint32_t fb, uint32_t x, uint32_t y)
{
	uint32_t connector = output->connector;
	struct drm_mode_crtc set = { .crtc_id = output->crtc, .fb_id = fb, .x = x, .y = y };

	if (mode) {
		set.set_connectors_ptr = (uintptr_t)&connector;
		set.count_connectors = 1;
		set.mode_valid = 1;
		set.mode = *mode;
	}
	must_ioctl(DRM_IOCTL_MODE_SETCRTC, &set);
}

/* Show `fb` at the next vertical blank and wait until it is shown. */
UNUSED static void flip(const struct output *output, uint32_t fb)
{
	struct drm_mode_crtc_page_flip request = { .crtc_id = output->crtc, .fb_id = fb,
						   .flags = DRM_MODE_PAGE_FLIP_EVENT };
	char events[256];
	ssize_t size;

	must_ioctl(DRM_IOCTL_MODE_PAGE_FLIP, &request);
	do
		size = read(gpu, events, sizeof(events));
	while (size < 0 && errno == EINTR);
	if (size < (ssize_t)sizeof(struct drm_event))
		die("no page flip event");
}

UNUSED static void flush_rectangle(uint32_t fb, uint32_t x, uint32_t y, uint32_t width,
				   uint32_t height)
{
	struct drm_clip_rect clip = { x, y, x + width, y + height };
	struct drm_mode_fb_dirty_cmd dirty = { .fb_id = fb, .num_clips = 1,
					       .clips_ptr = (uintptr_t)&clip };

	must_ioctl(DRM_IOCTL_MODE_DIRTYFB, &dirty);
}

#endif
