"""Buffers of a memory file's pages as dma-bufs: pinned, and fit for other devices' drivers.

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
    """A `memory.buffers.BufferSource`."""

    slow = True  # all pages are there, and zeroed, from the start
    backing = HostBacking.RAM_WB

    def __init__(self, path: Path = PATH) -> None:
        self._path = path

    def allocate(self, name: str, size: int) -> Buffer:
        try:
            device = Fd(os.open(self._path, os.O_RDWR | os.O_CLOEXEC))
        except OSError as error:
            advice = _ADVICE.get(error.errno or 0, "")
            raise HostError(f"open {self._path}", error, advice) from error
        # The dma-buf holds the pages by itself. What is mapped here is it and not the memory file,
        # so that a front-end that sends it back is found to send the same memory (host.mapping).
        with device, memfd.create(name, size) as pages:
            made = Fd(udmabuf.create(device.fileno(), pages.fileno(), 0, size))
        return Buffer(made, size, self.backing)

    def problem(self) -> str | None:
        """Tells by trying."""
        try:
            self.allocate("vgpud-trial", PAGE_SIZE).close()
        except HostError as error:
            return str(error)
        return None
