"""The window layout: host blobs in one sparse file, which the VMM maps once for all of them.

A blob is in private memory until it is mapped, and from then on in the window, at the offset that
the guest chose. The guest can write to every page of the window at any time, whether a blob is
mapped there or not; so the whole window is charged from the start, and blobs in it cost nothing
more. For the same reason a range is cleared when a blob is moved into it, whatever was there. The
pages of a range that a blob has left are freed later, those of many blobs at once.

The VMM has the window's file, and can hold its lock. So no pages are freed on the event loop or on
the executor's threads, but in the thread of `memory.page_freer`.

Who gets a blob's bytes by `export` gets the window's file, and the blob's placement is reserved: no
other blob comes there before the device is reset, and then the window gets another file.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from vgpud.coherency.plan import Plan
from vgpud.errors import AllocationError, HostError, Interrupted, Unsupported
from vgpud.gpu.blobs.layout import access_of, flushed_at_hand_over
from vgpud.gpu.blobs.slot_owner import BarSlots
from vgpud.gpu.blobs.vmm_blobs import FIRST_ID
from vgpud.gpu.errors import InvalidParameter, Unspecified
from vgpud.gpu.quota import Charge, Quota
from vgpud.gpu.wire.protocol import ResourceId
from vgpud.gpu.work import BackgroundWork
from vgpud.memory.backing import HostBacking
from vgpud.memory.buffers import Buffer
from vgpud.memory.extents import Extents
from vgpud.memory.pages import zeroed
from vgpud.memory.steps import Steps, copy_all_steps, flush_steps
from vgpud.memory.window import HostWindow, UnusedRanges
from vgpud.memory.window_map import Placement, WindowMap
from vgpud.pace import Pace
from vgpud.uapi.memslot import SlotFlag
from vgpud.unix.fd import Fd

COPY_IN_THREAD = 256 << 10
"""Bytes from which a copy runs in a thread: it takes about as long as switching to a thread and
back."""

MOVES_IN_THREAD = 3
"""How often a blob that is displaced is copied in a thread while its guest may write to it, before
it is copied once more while the guest waits."""

LAST_COPY = 2 << 20
"""Bytes of the largest blob that is copied while the guest, and so every guest, waits: that takes
less than a millisecond."""


ZERO_IN_PLACE = 64 << 10
"""Bytes up to which a range is written with zeros when a blob comes or goes: to have a thread free
its pages takes as long."""

MAX_UNUSED = 1 << 20
"""Bytes of unused ranges at which their pages are freed."""

MAX_UNUSED_RANGES = 64
"""Unused ranges at which their pages are freed: to look at all takes microseconds."""


class WindowLayout:
    """A `gpu.blobs.layout.BlobLayout`."""

    def __init__(
        self,
        name: str,
        size: int,
        quota: Quota,
        slots: BarSlots,
        executor: BackgroundWork,
        slot_flags: Callable[[], SlotFlag],
    ) -> None:
        self.map = WindowMap[ResourceId](size)
        self.executor = executor
        self.quota = quota
        self._name = name
        self._size = size
        self._slots = slots
        self._slot_flags = slot_flags
        self._charge = quota.charge(size)
        self._window: HostWindow | None = None
        self._mapped = False
        self._unused = UnusedRanges()
        self.blobs: dict[ResourceId, WindowBlob] = {}

    @property
    def backing(self) -> HostBacking:
        return HostBacking.RAM_WB

    @property
    def window_mapped(self) -> bool:
        return self._mapped

    @property
    def window(self) -> HostWindow:
        """The window's memory, which is made when it is first needed."""
        if self._window is None:
            try:
                self._window = HostWindow(f"{self._name}-window", self._size)
            except HostError as error:
                raise AllocationError(error) from error
        return self._window

    def allocate(self, blob: ResourceId, size: int, plan: Plan) -> WindowBlob:
        memory = WindowBlob(self, blob, size, plan, self.quota.charge(size))
        self.blobs[blob] = memory
        return memory

    def adopt(
        self, blob: ResourceId, size: int, plan: Plan, buffer: Buffer, charge: Charge
    ) -> WindowBlob:
        raise Unsupported('a blob in a renderer\'s own memory needs layout = "per-blob"')

    async def map_window(self) -> None:
        """Have the VMM map the window, unless it has done so."""
        if self._mapped:
            return
        window = self.window
        flags = int(self._slot_flags())
        await self._slots.map(window.fd, 0, 0, window.size, flags=flags)
        self._mapped = True

    async def take(self, offset: int, size: int) -> None:
        """Have a range for a blob, in which no pages are freed any more."""
        await self.executor.pages_freed()  # a caller that waited for that may have been cancelled
        self._unused.remove(offset, size)

    async def clear(self, offset: int, size: int) -> None:
        """Have a range that was taken read as zeros."""
        if size <= ZERO_IN_PLACE:
            self.window.zero(offset, size)
        else:
            await self.executor.free_pages(self.window.clear_steps([(offset, size)]))

    async def free_unused(self, *, at_once: bool = False) -> None:
        """Free the ranges that were left, if they are many or large, or `at_once`."""
        unused = self._unused
        many = len(unused) >= MAX_UNUSED_RANGES or unused.size >= MAX_UNUSED
        if many or (at_once and len(unused)):
            await self.executor.free_pages(self.window.clear_steps(unused.take()))

    def leave(self, placement: Placement) -> None:
        """Have the pages of a range freed, by a later `free_unused`; a short one reads as zeros at
        once."""
        if placement.size <= ZERO_IN_PLACE:
            self.window.zero(placement.offset, placement.size)
        self._unused.add(placement.offset, placement.size)

    async def empty(self) -> None:
        pace = Pace()
        while self.blobs:
            blob, memory = self.blobs.popitem()
            if self.map.placement(blob) is not None:
                self.map.remove(blob)
            memory.forget()
            await pace.step()
        window = self._forget_window()
        if window is not None:
            await self.executor.free_pages(window.free_steps(), give_up=True)

    def reset(self) -> None:
        for blob in list(self.blobs.values()):
            blob.forget()
        window = self._forget_window()
        if window is not None:
            self.executor.free_soon(window.free_steps())

    def _forget_window(self) -> HostWindow | None:
        """Return the window to be freed, if there is one; the next one is in another file."""
        self.map = WindowMap[ResourceId](self._size)
        self._mapped = False
        self._unused = UnusedRanges()
        window, self._window = self._window, None
        return window

    def close(self) -> None:
        self.reset()
        self._charge.release()


class WindowBlob:
    """A `gpu.blobs.layout.HostMemory`. `charge` is released while the bytes are in the window."""

    def __init__(
        self, layout: WindowLayout, blob: ResourceId, size: int, plan: Plan, charge: Charge
    ) -> None:
        self._layout = layout
        self._blob = blob
        self._size = size
        self._access = access_of(plan)
        self._flush = flushed_at_hand_over(plan)
        self._charge = charge
        self._forgotten = False
        self._private: NDArray[np.uint8] | None = None
        self._contents: Extents | None = None  # as returned last
        self._contents_at: int | None = None  # its offset in the window; None for private memory

    @property
    def mapped(self) -> bool:
        placement = self.placement
        return placement is not None and placement.mapped

    @property
    def placement(self) -> Placement | None:
        return self._layout.map.placement(self._blob)

    def export(self) -> tuple[Fd, int] | None:
        placement = self.placement
        if placement is None:
            return None
        fd = self._layout.window.fd.dup()
        self._layout.map.reserve(self._blob)
        return fd, placement.offset

    @property
    def made(self) -> bool:
        return True

    async def make(self) -> None:
        pass

    def contents(self) -> Extents:
        if self._forgotten:
            raise Unspecified(f"blob {self._blob} was destroyed")
        placement = self._layout.map.placement(self._blob)
        at = None if placement is None else placement.offset
        if self._contents is None or self._contents_at != at:
            self._contents = Extents.from_array(self._bytes_at(at), access=self._access)
            self._contents_at = at
        return self._contents

    def _bytes_at(self, offset: int | None) -> NDArray[np.uint8]:
        if offset is not None:
            return self._layout.window.view(offset, self._size)
        if self._private is None:
            self._private = zeroed(self._size)
        return self._private

    async def map(self, offset: int) -> None:
        layout, pace = self._layout, Pace()
        layout.map.check(self._blob, offset, self._size)
        await layout.map_window()
        for other in layout.map.displaced_by(self._blob, offset, self._size):
            await layout.blobs[other].move_out()
            await pace.step()
        if layout.map.placement(self._blob) is None:
            await self._move_in(offset)
        layout.map.put(self._blob, offset, self._size)

    async def unmap(self) -> None:
        self._check_mapped()
        self._layout.map.park(self._blob)

    async def take_away(self) -> None:
        self._check_mapped()
        # Over the limit if need be: the guest could prevent it otherwise.
        await self._move_out(self._layout.quota.charge_regardless(self._size))
        await self._layout.free_unused(at_once=True)

    async def destroy(self) -> None:
        layout = self._layout
        if self.placement is not None:
            layout.leave(layout.map.remove(self._blob))
        self.forget()
        await layout.free_unused(at_once=self._size > ZERO_IN_PLACE)

    def forget(self) -> None:
        """Free everything that is outside the window."""
        self._forgotten = True
        self._layout.blobs.pop(self._blob, None)
        self._private = self._contents = None
        self._charge.release()

    async def move_out(self) -> None:
        """Move the blob from the window to private memory, which is charged for again."""
        await self._move_out(self._layout.quota.charge(self._size))

    async def _move_out(self, charge: Charge) -> None:
        try:
            private = zeroed(self._size)
            await self._copy_out(Extents.from_array(private))
        except BaseException:
            charge.release()
            raise
        placement = self._layout.map.remove(self._blob)
        self._private, self._charge = private, charge
        self._contents = None
        self._layout.leave(placement)

    async def _copy_out(self, out: Extents) -> None:
        """Copy the bytes in their final state, although the guest may submit work meanwhile.

        It can if the move is for the VMM: then its commands go on, of which none touches a blob of
        the VMM's. Raises `Interrupted` if it does so all the time.
        """
        executor, here = self._layout.executor, self.contents()
        for _ in range(MOVES_IN_THREAD):
            await executor.drained(self._blob)
            submitted = executor.submitted
            await self._do(copy_all_steps(out, here))
            if executor.submitted == submitted or self._blob >= FIRST_ID:
                return
        if self._size > LAST_COPY:
            raise Interrupted(f"blob {self._blob} can't be moved: the guest uses it all the time")
        await executor.drained(self._blob)
        for _ in copy_all_steps(out, here):
            pass

    async def _move_in(self, offset: int) -> None:
        layout, window = self._layout, self._layout.window
        await layout.take(offset, self._size)
        if self._private is None:
            await layout.clear(offset, self._size)
        if self._private is not None or self._flush:
            view = Extents.from_array(window.view(offset, self._size), access=self._access)
            await self._do(self._fill(view))
        self._private = self._contents = None
        self._charge.release()

    def _fill(self, view: Extents) -> Steps:
        if self._private is not None:
            yield from copy_all_steps(view, Extents.from_array(self._private))
        if self._flush:  # new pages, too: the kernel zeroes them through the cache
            yield from flush_steps(view)

    def _check_mapped(self) -> None:
        if not self.mapped:
            raise InvalidParameter(f"blob {self._blob} is not mapped")

    async def _do(self, steps: Steps) -> None:
        if self._size < COPY_IN_THREAD:
            for _ in steps:
                pass
        else:
            await self._layout.executor.run_in_thread(steps)
