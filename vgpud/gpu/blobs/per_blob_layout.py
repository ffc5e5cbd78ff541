"""The per-blob layout: each host blob has its own file, which the VMM maps and unmaps by itself.

For memory that can't be in a window's file, such as dma-bufs.
"""

from __future__ import annotations

from vgpud.coherency.plan import Plan
from vgpud.errors import AllocationError, HostError, OutOfMemory, VgpudError
from vgpud.gpu.blobs.layout import FREE_IN_THREAD, access_of, flushed_at_hand_over
from vgpud.gpu.blobs.slot_owner import BarSlots, RamSlots
from vgpud.gpu.errors import InvalidParameter, Unspecified
from vgpud.gpu.quota import Charge, Quota
from vgpud.gpu.wire.protocol import ResourceId
from vgpud.gpu.work import BackgroundWork
from vgpud.memory.backing import HostBacking
from vgpud.memory.buffers import Buffer, BufferSource
from vgpud.memory.extents import Extents
from vgpud.memory.steps import Steps, flush_steps
from vgpud.memory.window_map import Placement, WindowMap
from vgpud.pace import Pace
from vgpud.slots.entries import SlotUse
from vgpud.unix.fd import Fd

MAX_BLOBS = 8192
"""Blobs of one device. Each needs a descriptor and a mapping with its spare: half of the 65530 that
the process has (vm.max_map_count) for all its devices."""

MAKE_IN_THREAD = 256 << 10
"""Bytes from which a slow source allocates in a thread: zeroing them takes about as long as
switching to a thread and back."""


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
        memory = PerBlobMemory(self, blob, size, plan, charge, shared=True)
        memory.take(buffer)
        self.blobs[blob] = memory
        return memory

    def buffer(self, blob: ResourceId, size: int) -> Buffer:
        """Allocate memory for a blob, on any thread; raise `OutOfMemory` if that fails."""
        try:
            return self._source.allocate(f"{self._name}-blob-{blob}", size)
        except HostError as error:
            raise AllocationError(error) from error

    async def empty(self) -> None:
        pace = Pace()
        while self.blobs:
            blob, memory = self.blobs.popitem()
            self.blobs[blob] = memory
            await memory.free_pages(give_up=True)
            if self.map.placement(blob) is not None:
                self.map.remove(blob)
            memory.forget()
            await pace.step()

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
    """A `gpu.blobs.layout.HostMemory`: a file of the blob's size, once it is allocated."""

    def __init__(
        self,
        layout: PerBlobLayout,
        blob: ResourceId,
        size: int,
        plan: Plan,
        charge: Charge,
        *,
        shared: bool = False,
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
        self._shared = shared  # others have the file, too

    @property
    def made(self) -> bool:
        return self._buffer is not None

    async def make(self) -> None:
        made: list[Buffer] = []

        def make() -> Steps:
            made.append(self._layout.buffer(self._blob, self._size))
            yield

        if self._buffer is not None:
            return
        try:
            await self._layout.executor.run_in_thread(make())
            self.take(made.pop())
        finally:
            for buffer in made:  # the caller was cancelled
                buffer.close()

    def make_now(self) -> None:
        """Allocate the memory on this thread."""
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
        """The guest-physical address of the blob, if it is mapped outside the window."""
        return None if self._ram is None else self._ram[1]

    def export(self) -> tuple[Fd, int] | None:
        fd = self._file()[0].dup()
        self._shared = True
        return fd, 0

    def contents(self) -> Extents:
        return self._file()[1]

    async def map(self, offset: int) -> None:
        self._layout.map.check(self._blob, offset, self._size)  # no blobs are parked here
        if self._ram is not None:
            raise _invalid(f"blob {self._blob} is mapped outside the window")
        fd = await self._handed_over()
        flags = int(self._plan.slot_flags)
        await self._layout.slots.map(fd, 0, offset, self._size, flags=flags)
        self._layout.map.put(self._blob, offset, self._size)

    async def map_ram(self, slots: RamSlots, address: int) -> None:
        """Map the blob at a guest-physical address outside the window.

        Raises `VgpudError` if that is not possible.
        """
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

    async def take_away(self) -> None:
        await self.unmap()

    async def destroy(self) -> None:
        if self.mapped:
            await self.unmap()
        await self.free_pages()
        self.forget()

    async def free_pages(self, *, give_up: bool = False) -> None:
        """Free the pages of a large blob, which would take long in `forget`, unless others use
        them. The blob has no bytes any more after this."""
        buffer = self._buffer
        if buffer is None or self._shared or self._size < FREE_IN_THREAD:
            return
        self._forgotten, self._buffer, self._contents = True, None, None
        await self._layout.executor.free_pages(buffer.free_steps(), give_up=give_up)

    def forget(self) -> None:
        """Close the file; its pages are freed when the VMM has unmapped it, too."""
        self._forgotten = True
        self._layout.blobs.pop(self._blob, None)
        if self._buffer is not None:
            self._buffer.close()
        self._charge.release()

    async def _handed_over(self) -> Fd:
        """Return the file, flushed if the plan says so, for the guest to map it."""
        await self.make()
        fd, contents = self._file()
        if flushed_at_hand_over(self._plan):
            # New pages, too: the kernel zeroes them through the cache.
            await self._layout.executor.run_in_thread(flush_steps(contents))
        return fd

    def take(self, buffer: Buffer) -> None:
        """Use a buffer for the blob, or close it if the blob has one or was destroyed."""
        if self._forgotten or self._buffer is not None:  # meanwhile
            buffer.close()
        else:
            self._buffer = buffer
            self._contents = Extents.from_array(buffer.view, access=access_of(self._plan))

    def _file(self) -> tuple[Fd, Extents]:
        self.make_now()
        if self._buffer is None or self._contents is None:
            raise Unspecified(f"blob {self._blob} was destroyed")
        lost = self._buffer.lost()
        if lost is not None:
            raise Unspecified(f"blob {self._blob} is lost: {lost}")
        return self._buffer.fd, self._contents


def _invalid(reason: str) -> InvalidParameter:
    return InvalidParameter(reason)
