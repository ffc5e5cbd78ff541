"""Dumb buffers of a GPU's driver, mapped write-combining, as dma-bufs.

Here are the choice of the GPU, and the list of drivers whose dumb buffers are suitable: RAM, mapped
write-combining, as the planner assumes, also through the dma-buf, which is what this process and
the VMM map. Each buffer is mapped from its start: at another offset, drivers on the shmem helpers
map the first page all the same (drm_gem_shmem_any_fault). Source: the kernel's drivers/gpu/drm, see
`unsuitable`.
"""

from __future__ import annotations

import errno
import os
from types import MappingProxyType
from typing import Final

from vgpud.errors import HostError
from vgpud.memory.backing import HostBacking
from vgpud.memory.buffers import Buffer
from vgpud.memory.render_nodes import HostGpu, RenderNodes
from vgpud.uapi import drm
from vgpud.uapi.page import PAGE_SIZE
from vgpud.unix.fd import Fd

_BITS: Final = 32
_WIDTH: Final = PAGE_SIZE * 8 // _BITS
"""Pixels in a row of one page: no driver needs to pad such rows."""

_MAX_BYTES: Final = (1 << 32) - PAGE_SIZE
"""The kernel counts a dumb buffer's bytes in 32 bits (drm_mode_create_dumb)."""

_INTEGRATED: Final = "0000:00:02.0"
"""The address of an integrated Intel GPU; a discrete one is behind a bridge."""

_UNSUITABLE: Final = MappingProxyType(
    {
        "amdgpu": "its dumb buffers may be in video memory or in RAM, as the driver chooses",
        "i915": "it maps dma-bufs of its dumb buffers write-back",
        "virtio_gpu": "its dumb buffers are mapped write-back",
        "vkms": "its dumb buffers are mapped write-back",
    }
)


def unsuitable(gpu: HostGpu) -> str | None:
    """Return why a GPU's dumb buffers are not RAM mapped write-combining; None if they are.

    Sources: vgem_gem_create_object() (map_wc), drm_gem_shmem_mmap(); xe_bo_dumb_create() (FORCE_WC,
    VRAM_IF_DGFX); amdgpu_mode_dumb_create(); i915_gem_dmabuf_mmap(), which maps the shmem file.
    """
    match gpu.driver:
        case "vgem":
            return None
        case "xe" if gpu.name == _INTEGRATED:
            return None
        case "xe":
            return "xe has the dumb buffers of a discrete GPU in video memory"
        case driver:
            why = "nothing is known of how it maps its dumb buffers"
            return f"{driver}: {_UNSUITABLE.get(driver or '', why)}"


class GemSource:
    """A `memory.buffers.BufferSource` of the GPU with this render node, or of a suitable one.

    The GPU is looked up for each buffer, so that a GPU that was removed and added again is used.
    """

    slow = True  # the driver changes all pages to write-combining when the buffer is mapped
    backing = HostBacking.RAM_WC

    def __init__(self, nodes: RenderNodes, render_node: str | None = None) -> None:
        self._nodes = nodes
        self._render_node = render_node

    def gpu(self) -> HostGpu:
        """Return the GPU that buffers come from. Raises HostError (ENODEV) if none is suitable."""
        if self._render_node is not None:
            gpu = self._nodes.find(self._render_node)
            if gpu is None:
                raise _no_gpu(f"no GPU has {self._render_node}")
            why = unsuitable(gpu)
            if why is not None:
                raise _no_gpu(f"{gpu.name} is not suitable, {why}")
            return gpu
        reasons = []
        for gpu in self._nodes.gpus:
            why = unsuitable(gpu)
            if why is None:
                return gpu
            reasons.append(f"{gpu.name} is not suitable, {why}")
        raise _no_gpu("; ".join(reasons) or "this host has no GPU")

    def any(self) -> HostGpu | None:
        """Return the GPU that buffers come from; None if none is suitable."""
        try:
            return self.gpu()
        except HostError:
            return None

    def allocate(self, name: str, size: int) -> Buffer:
        gpu = self.gpu()
        with self._open(gpu) as node:
            made = _export(node, size)

        def lost() -> str | None:
            return None if gpu in self._nodes else f"its GPU, {gpu}, is gone"

        return Buffer(made, size, self.backing, lost)

    def problem(self) -> str | None:
        try:
            self._open(self.gpu()).close()
        except HostError as error:
            return str(error)
        return None

    def _open(self, gpu: HostGpu) -> Fd:
        if gpu.primary is None:
            raise _no_gpu(f"{gpu} has no primary node, which makes dumb buffers")
        try:
            node = Fd(os.open(self._nodes.path(gpu.primary), os.O_RDWR | os.O_CLOEXEC))
        except OSError as error:
            advice = ""
            if error.errno in {errno.EACCES, errno.EPERM}:
                advice = f"add this user to the group of {gpu.primary}, or DeviceAllow= it"
            elif error.errno in {errno.ENOENT, errno.ENXIO, errno.ENODEV}:
                advice = "the GPU is gone"
            raise HostError(f"open {gpu.primary}", error, advice) from error
        try:
            drm.drop_master(node.fileno())
            driver = drm.driver_name(node.fileno())
            if driver != gpu.driver:
                raise _no_gpu(f"{gpu.primary} belongs to {driver} now")
        except BaseException:
            node.close()
            raise
        return node


def _export(node: Fd, size: int) -> Fd:
    """Return a new dumb buffer of at least `size` bytes as a dma-buf."""
    if size > _MAX_BYTES:
        reason = f"dumb buffers are smaller than 4 GiB, and this one has {size} bytes"
        raise HostError("a GPU's buffer", OSError(errno.EFBIG, ""), reason)
    buffer = drm.create_dumb(node.fileno(), _WIDTH, -(-size // PAGE_SIZE), _BITS)
    try:
        if buffer.size < size:
            reason = f"the driver allocated {buffer.size} bytes instead of {size}"
            raise HostError("a GPU's buffer", OSError(errno.ENOMEM, ""), reason)
        return Fd(drm.prime_handle_to_fd(node.fileno(), buffer.handle))
    finally:
        drm.gem_close(node.fileno(), buffer.handle)


def _no_gpu(reason: str) -> HostError:
    return HostError("a GPU for buffers", OSError(errno.ENODEV, ""), reason)
