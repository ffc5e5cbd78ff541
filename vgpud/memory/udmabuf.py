"""Buffers of a memory file's pages as dma-bufs: pinned, and importable by other drivers.

They are mapped write-back, as the memory file is. Source: drivers/dma-buf/udmabuf.c of the kernel.
"""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Final

from vgpud.errors import HostError
from vgpud.memory import memfd
from vgpud.memory.backing import HostBacking
from vgpud.memory.buffers import Buffer
from vgpud.uapi import udmabuf
from vgpud.uapi.page import PAGE_SIZE
from vgpud.unix.fd import Fd

PATH: Final = Path("/dev/udmabuf")

_ADVICE: Final = {
    errno.ENOENT: "modprobe udmabuf (Linux 4.20 or newer)",
    errno.EACCES: "add this user to the group of /dev/udmabuf, or DeviceAllow=/dev/udmabuf rw",
    errno.EPERM: "allow this device in the container or the service (DeviceAllow=/dev/udmabuf rw)",
}


class UdmabufSource:
    """A `memory.buffers.BufferSource` of udmabufs."""

    slow = True  # all pages are allocated and zeroed at once
    backing = HostBacking.RAM_WB

    def __init__(self, path: Path = PATH) -> None:
        self._path = path

    def allocate(self, name: str, size: int) -> Buffer:
        try:
            device = Fd(os.open(self._path, os.O_RDWR | os.O_CLOEXEC))
        except OSError as error:
            advice = _ADVICE.get(error.errno or 0, "")
            raise HostError(f"open {self._path}", error, advice) from error
        # The dma-buf keeps the pages by itself. It is mapped instead of the memory file, so that
        # the memory is recognized if a front-end sends the dma-buf back (`memory.mapping`).
        with device, memfd.create(name, size) as pages:
            made = Fd(udmabuf.create(device.fileno(), pages.fileno(), 0, size))
        return Buffer(made, size, self.backing)

    def problem(self) -> str | None:
        """Return why no buffer can be made, by making one; None if one can."""
        try:
            self.allocate("vgpud-trial", PAGE_SIZE).close()
        except HostError as error:
            return str(error)
        return None
