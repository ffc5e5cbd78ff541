"""GEM buffers of a GPU's driver: plain ("dumb") ones, and how they become dma-bufs.

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
        errno.EACCES: "plain buffers are made on a primary node (card*), not on a render node",
        errno.ENODEV: "the GPU is gone",
        errno.ENOMEM: "the GPU's driver has no memory left for it",
        errno.ENOSYS: "this GPU's driver has no plain buffers, or none as dma-bufs",
    }
)


@dataclass(frozen=True, slots=True)
class DumbBuffer:
    """A plain buffer: `handle` is good for the descriptor that it was made on; `size` in bytes."""

    handle: int
    size: int


def driver_name(fd: int) -> str:
    """DRM_IOCTL_VERSION: the name of the driver behind a node. Raises HostError."""
    name = ffi.new(f"char[{_NAME_BYTES}]")
    version = ffi.new("struct drm_version *", {"name": name, "name_len": _NAME_BYTES - 1})
    ioctl(fd, lib.DRM_IOCTL_VERSION, version, name="DRM_IOCTL_VERSION", remedies=_REMEDIES)
    return str(ffi.string(name).decode("utf-8", "replace"))


def drop_master(fd: int) -> None:
    """DRM_IOCTL_DROP_MASTER: leave the outputs to others.

    Whoever opens a primary node first gets them, and with them keeps every compositor out. Nothing
    happens where we have not got them.
    """
    try:
        ioctl(fd, lib.DRM_IOCTL_DROP_MASTER, name="DRM_IOCTL_DROP_MASTER")
    except HostError as error:
        if error.errno not in {errno.EINVAL, errno.EACCES}:
            raise


def create_dumb(fd: int, width: int, height: int, bpp: int) -> DumbBuffer:
    """DRM_IOCTL_MODE_CREATE_DUMB on a primary node, in pixels and bits; the driver may round up.

    Raises HostError.
    """
    request = ffi.new("struct drm_mode_create_dumb *", {"width": width, "height": height})
    request.bpp = bpp
    name = f"DRM_IOCTL_MODE_CREATE_DUMB of {width} x {height}"
    ioctl(fd, lib.DRM_IOCTL_MODE_CREATE_DUMB, request, name=name, remedies=_REMEDIES)
    return DumbBuffer(request.handle, request.size)


def prime_handle_to_fd(fd: int, handle: int) -> int:
    """DRM_IOCTL_PRIME_HANDLE_TO_FD: a new descriptor of a dma-buf, which the caller owns.

    It can be mapped for reading and writing, and keeps the buffer without its handle. Raises
    HostError.
    """
    flags = lib.DRM_CLOEXEC | lib.DRM_RDWR
    request = ffi.new("struct drm_prime_handle *", {"handle": handle, "flags": flags, "fd": -1})
    name = f"DRM_IOCTL_PRIME_HANDLE_TO_FD of {handle}"
    ioctl(fd, lib.DRM_IOCTL_PRIME_HANDLE_TO_FD, request, name=name, remedies=_REMEDIES)
    return int(request.fd)


def gem_close(fd: int, handle: int) -> None:
    """DRM_IOCTL_GEM_CLOSE: give a handle back. Raises HostError."""
    request = ffi.new("struct drm_gem_close *", {"handle": handle})
    name = f"DRM_IOCTL_GEM_CLOSE of {handle}"
    ioctl(fd, lib.DRM_IOCTL_GEM_CLOSE, request, name=name, remedies=_REMEDIES)
