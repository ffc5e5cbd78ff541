"""Buffers of a GPU's driver: plain ("dumb") ones, which it maps write-combining, as dma-bufs.

Owns the choice of the GPU, and which drivers' buffers are known for what they are: what a planner
is told of them (RAM, mapped write-combining) must be true of the dma-buf, since that is what is
mapped here and in the VMM. Each is mapped from its start: at another offset, drivers on the shmem
helpers show the first page all the same (drm_gem_shmem_any_fault). Source: the kernel's
drivers/gpu/drm, see `unfit`.
"""

from __future__ import annotations

import errno
import os
from types import MappingProxyType
from typing import Final

from vgpud.errors import HostError
from vgpud.memory.backing import HostBacking
from vgpud.memory.buffers import Buffer
from vgpud.memory.render_nodes import Gpu, RenderNodes
from vgpud.uapi import drm
from vgpud.uapi.page import PAGE_SIZE
from vgpud.unix.fd import Fd

_BITS: Final = 32
_WIDTH: Final = PAGE_SIZE * 8 // _BITS
"""Pixels in a row of one page: rows that no driver need pad."""

_MAX_BYTES: Final = (1 << 32) - PAGE_SIZE
"""The kernel counts a plain buffer's bytes in 32 bits (drm_mode_create_dumb)."""

_INTEGRATED: Final = "0000:00:02.0"
"""Where Intel's processors have their own GPU; one on a card is behind a bridge."""

_UNFIT: Final = MappingProxyType(
    {
        "amdgpu": "its plain buffers may be in video memory or in RAM, as it likes",
        "i915": "it maps dma-bufs of its plain buffers write-back",
        "virtio_gpu": "its plain buffers are mapped write-back",
        "vkms": "its plain buffers are mapped write-back",
    }
)


def unfit(gpu: Gpu) -> str | None:
    """Why a GPU's plain buffers are not RAM that is mapped write-combining; None if they are.

    Sources: vgem_gem_create_object() (map_wc), drm_gem_shmem_mmap(); xe_bo_dumb_create() (FORCE_WC,
    VRAM_IF_DGFX); amdgpu_mode_dumb_create(); i915_gem_dmabuf_mmap(), which maps the shmem file.
    """
    match gpu.driver:
        case "vgem":
            return None
        case "xe" if gpu.name == _INTEGRATED:
            return None
        case "xe":
            return "xe has the plain buffers of a card in video memory"
        case driver:
            why = "nothing is known of how it maps its plain buffers"
            return f"{driver}: {_UNFIT.get(driver or '', why)}"


class GemSource:
    """A `memory.buffers.BufferSource`: of the GPU with this render node, or of any that is fit.

    The GPU is looked up for each buffer, so that one that has come back will do.
    """

    slow = True  # the driver makes all pages write-combining when the buffer is mapped
    backing = HostBacking.RAM_WC

    def __init__(self, nodes: RenderNodes, render_node: str | None = None) -> None:
        self._nodes = nodes
        self._render_node = render_node

    def gpu(self) -> Gpu:
        """The GPU that buffers come from; raises HostError (ENODEV) if there is none that is
        fit."""
        if self._render_node is not None:
            gpu = self._nodes.find(self._render_node)
            if gpu is None:
                raise _no_gpu(f"no GPU has {self._render_node}")
            why = unfit(gpu)
            if why is not None:
                raise _no_gpu(f"{gpu.name} is not fit, {why}")
            return gpu
        reasons = []
        for gpu in self._nodes.gpus:
            why = unfit(gpu)
            if why is None:
                return gpu
            reasons.append(f"{gpu.name} is not fit, {why}")
        raise _no_gpu("; ".join(reasons) or "this host has no GPU")

    def any(self) -> Gpu | None:
        """The same, or None."""
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

    def _open(self, gpu: Gpu) -> Fd:
        if gpu.primary is None:
            raise _no_gpu(f"{gpu} has no primary node, which makes plain buffers")
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
                raise _no_gpu(f"{gpu.primary} is {driver}'s by now")
        except BaseException:
            node.close()
            raise
        return node


def _export(node: Fd, size: int) -> Fd:
    """A plain buffer of at least `size` bytes as a dma-buf, which keeps it."""
    if size > _MAX_BYTES:
        reason = f"plain buffers are smaller than 4 GiB, and this one is of {size} bytes"
        raise HostError("a GPU's buffer", OSError(errno.EFBIG, ""), reason)
    buffer = drm.create_dumb(node.fileno(), _WIDTH, -(-size // PAGE_SIZE), _BITS)
    try:
        if buffer.size < size:
            reason = f"the driver gave {buffer.size} bytes for {size}"
            raise HostError("a GPU's buffer", OSError(errno.ENOMEM, ""), reason)
        return Fd(drm.prime_handle_to_fd(node.fileno(), buffer.handle))
    finally:
        drm.gem_close(node.fileno(), buffer.handle)


def _no_gpu(reason: str) -> HostError:
    return HostError("a GPU for buffers", OSError(errno.ENODEV, ""), reason)
