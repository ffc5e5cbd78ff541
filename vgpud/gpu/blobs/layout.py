"""How host blobs lie in memory and get into the guest's window: the interface of both layouts.

Owns no behaviour; see `window_layout` and `per_blob_layout`. A blob's bytes are its own from
`allocate` to `destroy`, mapped or not, and are zeros at first. Source: virtio 1.3, 5.7.6.10
RESOURCE_MAP_BLOB and RESOURCE_UNMAP_BLOB.
"""

from __future__ import annotations

from typing import Protocol

from vgpud.coherency.plan import Duty, Plan
from vgpud.gpu.quota import Charge
from vgpud.gpu.state import HostBlobState
from vgpud.gpu.wire.protocol import ResourceId
from vgpud.memory.backing import HostBacking
from vgpud.memory.buffers import Buffer
from vgpud.memory.extents import Extents, MemoryAccess
from vgpud.memory.window_map import Placement, WindowMap
from vgpud.unix.fd import Fd


class HostMemory(Protocol):
    """One host blob's memory."""

    @property
    def made(self) -> bool:
        """Whether it is there. If not, `make` has to come before everything but `destroy`."""

    async def make(self) -> None:
        """Make the memory, if it is not there; raise `OutOfMemory` if it can't be had."""

    def contents(self) -> Extents:
        """Return the bytes where they are now; good until the blob is mapped, unmapped or
        destroyed.

        Raises `Unspecified` if they are lost, as the GPU has gone that had them.
        """

    @property
    def mapped(self) -> bool:
        """Whether the guest has it, in the window or elsewhere."""

    @property
    def placement(self) -> Placement | None:
        """Where in the window it lies, mapped or parked; None if it has no place there."""

    def export(self) -> tuple[Fd, int] | None:
        """Return the file that the blob is in, a duplicate, and where in it; None while it is in
        none."""

    async def map(self, offset: int) -> None:
        """Put the blob into the window at `offset`; raise `VgpudError` if it can't be had there."""

    async def unmap(self) -> None:
        """Take the blob out of the window; raise `InvalidParameter` if it is not in it."""

    async def destroy(self) -> None:
        """Take the blob out of the window if it is in it, and give its pages back to the host."""

    def forget(self) -> None:
        """Give back what it has outside of the window."""


class BlobLayout(Protocol):
    """A device's way to keep host blobs. `map` is who lies where in the window."""

    map: WindowMap[ResourceId]

    @property
    def backing(self) -> HostBacking:
        """What memory the blobs are in that it allocates."""

    @property
    def window_mapped(self) -> bool:
        """Whether the VMM has mapped the window as one."""

    def allocate(self, blob: ResourceId, size: int, plan: Plan) -> HostMemory:
        """Make a blob of `size` zero bytes; raise `OutOfMemory` over the device's limit."""

    def adopt(
        self, blob: ResourceId, size: int, plan: Plan, buffer: Buffer, charge: Charge
    ) -> HostMemory:
        """Take over a buffer that a renderer has made for a blob, and what was charged for it.

        Raises `Unsupported` if this layout has no room for buffers that are not its own; buffer and
        charge are the caller's still then.
        """

    def reset(self) -> None:
        """Forget every blob and mapping: the front-end drops the mappings itself when the device
        is reset."""

    def close(self) -> None:
        """Give everything back."""


async def restore_memory(layout: BlobLayout, state: HostBlobState, plan: Plan) -> HostMemory:
    """Make the memory of a blob from its value: its bytes, and its placement in the window."""
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


def access_of(plan: Plan) -> MemoryAccess:
    """How the engine, and whoever else in this process, touches a blob under this plan."""
    return MemoryAccess(plan.flush_before_read, plan.non_temporal_write, plan.flush_around_write)


def flushed_at_hand_over(plan: Plan) -> bool:
    """Whether a range's lines must have left the caches before the guest gets it."""
    return plan.before_hand_over is Duty.FLUSH
