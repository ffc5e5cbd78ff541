/*
 * The kernel's own headers, and what vgpud uses that older ones lack.
 *
 * What is declared here is the kernel's ABI, which does not change: a module that was built with
 * old headers can use all features of a new kernel. linux_abi.cdef lists what Python sees of it.
 */
#ifndef VGPUD_LINUX_ABI_H
#define VGPUD_LINUX_ABI_H

#include <errno.h>
#include <fcntl.h>
#include <linux/kvm.h>
#include <linux/udmabuf.h>
#include <sys/ioctl.h>
#include <sys/mman.h>

/* Linux 6.8 */
#ifndef KVM_CAP_USER_MEMORY2
#define KVM_CAP_USER_MEMORY2 231
#endif

/* In no mainline kernel: the series "KVM: Honor guest memory types for virtio GPU devices" of
 * January 2024. No other flag of a memory region has this value. */
#ifndef KVM_MEM_NON_COHERENT_DMA
#define KVM_MEM_NON_COHERENT_DMA (1UL << 3)
#endif

/* Linux 6.16 */
#ifndef KVM_X86_QUIRK_IGNORE_GUEST_PAT
#define KVM_X86_QUIRK_IGNORE_GUEST_PAT (1 << 9)
#endif

/* Distributions may ship these headers with libdrm only. */
#if __has_include(<drm/drm.h>)
#include <drm/drm.h>
#else
struct drm_version {
    int version_major;
    int version_minor;
    int version_patchlevel;
    size_t name_len;
    char *name;
    size_t date_len;
    char *date;
    size_t desc_len;
    char *desc;
};
struct drm_gem_close {
    __u32 handle;
    __u32 pad;
};
struct drm_prime_handle {
    __u32 handle;
    __u32 flags;
    __s32 fd;
};
struct drm_mode_create_dumb {
    __u32 height;
    __u32 width;
    __u32 bpp;
    __u32 flags;
    __u32 handle;
    __u32 pitch;
    __u64 size;
};
#define DRM_CLOEXEC O_CLOEXEC
#define DRM_RDWR O_RDWR
#define DRM_IOCTL_VERSION _IOWR('d', 0x00, struct drm_version)
#define DRM_IOCTL_GEM_CLOSE _IOW('d', 0x09, struct drm_gem_close)
#define DRM_IOCTL_DROP_MASTER _IO('d', 0x1f)
#define DRM_IOCTL_PRIME_HANDLE_TO_FD _IOWR('d', 0x2d, struct drm_prime_handle)
#define DRM_IOCTL_MODE_CREATE_DUMB _IOWR('d', 0xb2, struct drm_mode_create_dumb)
#endif

/* Without varargs: cffi calls a variadic function more slowly. */
static inline int vgpud_ioctl(int fd, unsigned long request, void *argument)
{
    return ioctl(fd, request, argument);
}

#endif
