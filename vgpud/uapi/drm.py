"""Dumb buffers of a GPU's driver, and how they become dma-bufs.

Source: include/uapi/drm/drm.h and drm_mode.h of the kernel, drivers/gpu/drm/drm_dumb_buffers.c and
drm_prime.c.
"""

from __future__ import annotations

import errno
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from vgpud.errors import HostError
from vgpud.uapi._linux import ffi, lib
from vgpud.uapi.ioctl import Remedies, ioctl

_NAME_BYTES: Final = 64

_REMEDIES: Final[Remedies] = MappingProxyType(
    {
        errno.EACCES: "dumb buffers are made on a primary node (card*), not on a render node",
        errno.ENODEV: "the GPU is gone",
        errno.ENOMEM: "the GPU's driver has no memory left for it",
        errno.ENOSYS: "this GPU's driver has no dumb buffers, or can't export them as dma-bufs",
    }
)


@dataclass(frozen=True, slots=True)
class DumbBuffer:
    """A dumb buffer of `size` bytes; `handle` is valid on the descriptor that it was made on."""

    handle: int
    size: int


def driver_name(fd: int) -> str:
    """Return the name of the driver behind a node (DRM_IOCTL_VERSION). Raises HostError."""
    name = ffi.new(f"char[{_NAME_BYTES}]")
    version = ffi.new("struct drm_version *", {"name": name, "name_len": _NAME_BYTES - 1})
    ioctl(fd, lib.DRM_IOCTL_VERSION, version, name="DRM_IOCTL_VERSION", remedies=_REMEDIES)
    return str(ffi.string(name).decode("utf-8", "replace"))


def drop_master(fd: int) -> None:
    """Give up control of the GPU's outputs (DRM_IOCTL_DROP_MASTER). Raises HostError.

    The first process that opens a primary node becomes its master and so blocks every compositor.
    Does nothing if this descriptor is not the master.
    """
    try:
        ioctl(fd, lib.DRM_IOCTL_DROP_MASTER, name="DRM_IOCTL_DROP_MASTER")
    except HostError as error:
        if error.errno not in {errno.EINVAL, errno.EACCES}:
            raise


def create_dumb(fd: int, width: int, height: int, bpp: int) -> DumbBuffer:
    """Create a dumb buffer on a primary node (DRM_IOCTL_MODE_CREATE_DUMB).

    `width` and `height` are in pixels of `bpp` bits; the driver may round up. Raises HostError.
    """
    request = ffi.new("struct drm_mode_create_dumb *", {"width": width, "height": height})
    request.bpp = bpp
    name = f"DRM_IOCTL_MODE_CREATE_DUMB of {width} x {height}"
    ioctl(fd, lib.DRM_IOCTL_MODE_CREATE_DUMB, request, name=name, remedies=_REMEDIES)
    return DumbBuffer(request.handle, request.size)


def prime_handle_to_fd(fd: int, handle: int) -> int:
    """Return a new descriptor of a buffer as a dma-buf (DRM_IOCTL_PRIME_HANDLE_TO_FD).

    The caller owns it. It can be mapped for reading and writing, and keeps the buffer without its
    handle. Raises HostError.
    """
    flags = lib.DRM_CLOEXEC | lib.DRM_RDWR
    request = ffi.new("struct drm_prime_handle *", {"handle": handle, "flags": flags, "fd": -1})
    name = f"DRM_IOCTL_PRIME_HANDLE_TO_FD of {handle}"
    ioctl(fd, lib.DRM_IOCTL_PRIME_HANDLE_TO_FD, request, name=name, remedies=_REMEDIES)
    return int(request.fd)


def gem_close(fd: int, handle: int) -> None:
    """Close a buffer's handle (DRM_IOCTL_GEM_CLOSE). Raises HostError."""
    request = ffi.new("struct drm_gem_close *", {"handle": handle})
    name = f"DRM_IOCTL_GEM_CLOSE of {handle}"
    ioctl(fd, lib.DRM_IOCTL_GEM_CLOSE, request, name=name, remedies=_REMEDIES)
