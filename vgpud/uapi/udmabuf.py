"""udmabuf: a dma-buf of the pages of a sealed memfd.

Source: include/uapi/linux/udmabuf.h and drivers/dma-buf/udmabuf.c of the kernel.
"""

from __future__ import annotations

import errno
from types import MappingProxyType
from typing import Final

from vgpud.uapi._linux import ffi, lib
from vgpud.uapi.ioctl import Remedies, ioctl

_REMEDIES: Final[Remedies] = MappingProxyType(
    {
        errno.EINVAL: "the memfd must be sealed against shrinking (F_SEAL_SHRINK) and not against"
        " writing, and the range whole pages; or it is larger than the udmabuf module's"
        " size_limit_mb allows",
        errno.EBADFD: "the file must be a memfd",
    }
)


def create(udmabuf_fd: int, memfd: int, offset: int, size: int) -> int:
    """Return a new dma-buf of a memfd's pages (UDMABUF_CREATE on /dev/udmabuf).

    The caller owns the descriptor. `offset` and `size` are in bytes, multiples of the page. Raises
    HostError.
    """
    request = ffi.new(
        "struct udmabuf_create *",
        {"memfd": memfd, "flags": lib.UDMABUF_FLAGS_CLOEXEC, "offset": offset, "size": size},
    )
    name = f"UDMABUF_CREATE of {size:#x} bytes at {offset:#x}"
    return ioctl(udmabuf_fd, lib.UDMABUF_CREATE, request, name=name, remedies=_REMEDIES)
