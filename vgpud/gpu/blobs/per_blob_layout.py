"""Host blobs with a file and a mapping each, which the VMM makes and takes back one by one.

For memory that can't be bound to a window, and for front-ends that want a mapping a blob.
"""

from __future__ import annotations

from vgpud.coherency.plan import Plan
from vgpud.errors import AllocationError, HostError, OutOfMemory, VgpudError
from vgpud.gpu.blobs.layout import access_of, flushed_at_hand_over
from vgpud.gpu.blobs.slot_owner import BarSlots, RamSlots
from vgpud.gpu.errors import InvalidParameter, Unspecified
from vgpud.gpu.quota import Charge, Quota
from vgpud.gpu.wire.protocol import ResourceId
from vgpud.gpu.work import BackgroundWork
from vgpud.memory.backing import HostBacking
from vgpud.memory.buffers import Buffer, BufferSource
from vgpud.memory.extents import Extents
from vgpud.memory.window_map import Placement, WindowMap
from vgpud.slots.entries import SlotUse
from vgpud.unix.fd import Fd

MAX_BLOBS = 8192
"""Per device: each takes a descriptor and a mapping, of which the process has some 65000
(vm.max_map_count) for all its devices."""

MAKE_IN_THREAD = 256 << 10
"""Bytes from which a slow source works on another thread: zeroing them takes about as long as a
thread switch there and back."""


class PerBlobLayout:
    """A `gpu.blobs.layout.BlobLayout`, whose blobs are buffers of `source`."""

    def __init__(
        self,
        name: str,
        size: int,
        quota: Quota,
        slots: BarSlots,
        executor: BackgroundWork,
        source: BufferSource,
    ) -> None:
        self.map = WindowMap[ResourceId](size)
        self.slots = slots
        self.executor = executor
        self.blobs: dict[ResourceId, PerBlobMemory] = {}
        self._name = name
        self._size = size
        self._quota = quota
        self._source = source

    @property
    def backing(self) -> HostBacking:
        return self._source.backing

    @property
    def window_mapped(self) -> bool:
        return False

    def allocate(self, blob: ResourceId, size: int, plan: Plan) -> PerBlobMemory:
        self._check_room()
        memory = PerBlobMemory(self, blob, size, plan, self._quota.charge(size))
        self.blobs[blob] = memory
        if not self._source.slow or size < MAKE_IN_THREAD:
            try:
                memory.make_now()
            except VgpudError:
                memory.forget()
                raise
        return memory

    def adopt(
        self, blob: ResourceId, size: int, plan: Plan, buffer: Buffer, charge: Charge
    ) -> PerBlobMemory:
        self._check_room()
        memory = PerBlobMemory(self, blob, size, plan, charge)
        memory.take(buffer)
        self.blobs[blob] = memory
        return memory

    def buffer(self, blob: ResourceId, size: int) -> Buffer:
        """Memory for a blob, made on any thread; raises `OutOfMemory`."""
        try:
            return self._source.allocate(f"{self._name}-blob-{blob}", size)
        except HostError as error:
            raise AllocationError(error) from error

    def reset(self) -> None:
        for blob in list(self.blobs.values()):
            blob.forget()
        self.map = WindowMap[ResourceId](self._size)

    def close(self) -> None:
        self.reset()

    def _check_room(self) -> None:
        if len(self.blobs) >= MAX_BLOBS:
            raise OutOfMemory(f"{MAX_BLOBS} blobs are there already")


class PerBlobMemory:
    """A `gpu.blobs.layout.HostMemory`: a file of the blob's size, once it is made."""

    def __init__(
        self, layout: PerBlobLayout, blob: ResourceId, size: int, plan: Plan, charge: Charge
    ) -> None:
        self._layout = layout
        self._blob = blob
        self._size = size
        self._plan = plan
        self._charge = charge
        self._buffer: Buffer | None = None
        self._contents: Extents | None = None
        self._ram: tuple[RamSlots, int] | None = None
        self._forgotten = False

    @property
    def made(self) -> bool:
        return self._buffer is not None

    async def make(self) -> None:
        made: list[Buffer] = []

        def make() -> None:
            made.append(self._layout.buffer(self._blob, self._size))

        if self._buffer is not None:
            return
        try:
            await self._layout.executor.run_in_thread(make)
            self.take(made.pop())
        finally:
            for buffer in made:  # given up meanwhile
                buffer.close()

    def make_now(self) -> None:
        """Make the memory here and now, whatever waits for the event loop meanwhile."""
        if self._buffer is None and not self._forgotten:
            self.take(self._layout.buffer(self._blob, self._size))

    @property
    def mapped(self) -> bool:
        return self._ram is not None or self.placement is not None

    @property
    def placement(self) -> Placement | None:
        return self._layout.map.placement(self._blob)

    @property
    def guest_phys_addr(self) -> int | None:
        """Where the guest has it, if that is outside of the window."""
        return None if self._ram is None else self._ram[1]

    def export(self) -> tuple[Fd, int] | None:
        return self._file()[0].dup(), 0

    def contents(self) -> Extents:
        return self._file()[1]

    async def map(self, offset: int) -> None:
        self._layout.map.displaced_by(self._blob, offset, self._size)  # nobody is parked here
        if self._ram is not None:
            raise _invalid(f"blob {self._blob} is mapped outside of the window")
        fd = await self._handed_over()
        flags = int(self._plan.slot_flags)
        await self._layout.slots.map(fd, 0, offset, self._size, flags=flags)
        self._layout.map.put(self._blob, offset, self._size)

    async def map_ram(self, slots: RamSlots, address: int) -> None:
        """Put the blob at a guest-physical address outside of the window; raise `VgpudError` if it
        can't be had there."""
        if self.mapped:
            raise _invalid(f"blob {self._blob} is mapped already")
        fd = await self._handed_over()
        flags = int(self._plan.slot_flags)
        await slots.map(fd, 0, address, self._size, flags=flags, use=SlotUse.RAM)
        self._ram = slots, address

    async def unmap(self) -> None:
        placement = self.placement
        # Where the VMM refuses to unmap it, the guest still sees it there.
        if self._ram is not None:
            slots, address = self._ram
            await slots.unmap(address, self._size, use=SlotUse.RAM)
            self._ram = None
        elif placement is not None:
            await self._layout.slots.unmap(placement.offset, placement.size)
            self._layout.map.remove(self._blob)
        else:
            raise _invalid(f"blob {self._blob} is not mapped")

    async def destroy(self) -> None:
        if self.mapped:
            await self.unmap()
        self.forget()

    def forget(self) -> None:
        """Close the file; its pages go when the VMM's mapping has gone too."""
        self._forgotten = True
        self._layout.blobs.pop(self._blob, None)
        if self._buffer is not None:
            self._buffer.close()
        self._charge.release()

    async def _handed_over(self) -> Fd:
        """Return the file, ready for the guest to get it."""
        await self.make()
        fd, contents = self._file()
        if flushed_at_hand_over(self._plan):
            # Also of fresh pages: the kernel zeroes them through the cache.
            await self._layout.executor.run_in_thread(lambda: contents.flush(0, self._size))
        return fd

    def take(self, buffer: Buffer) -> None:
        """Keep a buffer that was made for the blob, unless it is too late for it."""
        if self._forgotten or self._buffer is not None:  # destroyed, or made by another meanwhile
            buffer.close()
        else:
            self._buffer = buffer
            self._contents = Extents.from_array(buffer.view, access=access_of(self._plan))

    def _file(self) -> tuple[Fd, Extents]:
        self.make_now()
        if self._buffer is None or self._contents is None:
            raise Unspecified(f"blob {self._blob} is no more")
        lost = self._buffer.lost()
        if lost is not None:
            raise Unspecified(f"blob {self._blob} is lost: {lost}")
        return self._buffer.fd, self._contents


def _invalid(reason: str) -> InvalidParameter:
    return InvalidParameter(reason)
