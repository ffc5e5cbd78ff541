"""The interface of the two layouts, which allocate host blobs and map them into the guest's window.

The layouts are `window_layout` and `per_blob_layout`. A blob's bytes are zeros at first, and are
kept from `allocate` to `destroy`, mapped or not. Source: virtio 1.3, 5.7.6.9 RESOURCE_MAP_BLOB and
RESOURCE_UNMAP_BLOB.
"""

from __future__ import annotations

from typing import Final, Protocol

from vgpud.coherency.plan import Duty, Plan
from vgpud.errors import Unsupported
from vgpud.gpu.quota import Charge
from vgpud.gpu.state import HostBlobState
from vgpud.gpu.wire.protocol import ResourceId
from vgpud.memory.backing import HostBacking
from vgpud.memory.buffers import Buffer
from vgpud.memory.extents import Extents, MemoryAccess
from vgpud.memory.window_map import Placement, WindowMap
from vgpud.unix.fd import Fd


class HostMemory(Protocol):
    """The memory of one host blob."""

    @property
    def made(self) -> bool:
        """Whether the memory is allocated. If not, `make` comes before everything but `destroy`."""

    async def make(self) -> None:
        """Allocate the memory, if it is not there; raise `OutOfMemory` if that fails."""

    def contents(self) -> Extents:
        """Return the bytes where they are now; valid until the blob is mapped, unmapped or
        destroyed.

        Raises `Unspecified` if they are lost, because their GPU is gone.
        """

    @property
    def mapped(self) -> bool:
        """Whether the blob is mapped into the guest, in the window or elsewhere."""

    @property
    def placement(self) -> Placement | None:
        """The blob's placement in the window, mapped or parked; None if it is not there."""

    def export(self) -> tuple[Fd, int] | None:
        """Return a duplicate of the blob's file descriptor, and the blob's offset in the file; None
        while it is in no file. No other blob is ever at that offset."""

    async def map(self, offset: int) -> None:
        """Map the blob into the window at `offset`; raise `VgpudError` if that is not possible."""

    async def unmap(self) -> None:
        """Unmap the blob from the window; raise `InvalidParameter` if it is not mapped.

        The guest may see its bytes there until another blob needs the range.
        """

    async def take_away(self) -> None:
        """Unmap the blob as `unmap` does; the guest can't see its bytes any more after this."""

    async def destroy(self) -> None:
        """Unmap the blob if it is mapped, and free its pages."""

    def forget(self) -> None:
        """Free what the blob has outside the window."""


class BlobLayout(Protocol):
    """How a device allocates host blobs. `map` has the blobs' placements in the window."""

    map: WindowMap[ResourceId]

    @property
    def backing(self) -> HostBacking:
        """The kind of memory that blobs are allocated in."""

    @property
    def window_mapped(self) -> bool:
        """Whether the VMM has mapped the window as a whole."""

    def allocate(self, blob: ResourceId, size: int, plan: Plan) -> HostMemory:
        """Allocate a blob of `size` zero bytes; raise `OutOfMemory` over the device's limit."""

    def adopt(
        self, blob: ResourceId, size: int, plan: Plan, buffer: Buffer, charge: Charge
    ) -> HostMemory:
        """Take over a buffer that a renderer has made for a blob, and its charge.

        Raises `Unsupported` if this layout has no room for such buffers; the caller then keeps the
        buffer and the charge.
        """

    async def empty(self) -> None:
        """Drop every blob in steps that let the event loop run; `reset` or `close` comes next."""

    def reset(self) -> None:
        """Drop every blob and mapping: the front-end drops the mappings itself when the device
        is reset."""

    def close(self) -> None:
        """Release everything."""


async def restore_memory(layout: BlobLayout, state: HostBlobState, plan: Plan) -> HostMemory:
    """Return the memory of a saved blob, with its bytes and its placement in the window.

    Raises `Unsupported` where the guest maps it with a memory type that would not be true here.
    """
    mapped = state.placement is not None and state.placement.mapped
    if mapped and plan.memory_type is not state.memory_type:
        raise Unsupported(
            f"blob {state.id} is mapped {state.memory_type}, and here it would be"
            f" {plan.memory_type}: {plan.reason}"
        )
    memory = layout.allocate(state.id, state.size, plan)
    try:
        await memory.make()
        memory.contents().write(0, state.contents)
        if state.placement is not None:
            await memory.map(state.placement.offset)
            if not state.placement.mapped:
                await memory.unmap()
    except BaseException:
        await memory.destroy()
        raise
    return memory


FREE_IN_THREAD: Final = 1 << 20
"""Bytes from which pages are freed in a thread: that takes about 0.1 ms."""


def access_of(plan: Plan) -> MemoryAccess:
    """Return how this process has to read and write a blob under this plan."""
    return MemoryAccess(plan.flush_before_read, plan.non_temporal_write, plan.flush_around_write)


def flushed_at_hand_over(plan: Plan) -> bool:
    """Return whether a range has to be flushed from the caches before the guest gets it."""
    return plan.before_hand_over is Duty.FLUSH
