"""Host blobs with a memory file and a mapping each, which the VMM makes and takes back one by one.

For memory that can't be bound to a window, and for front-ends that want a mapping a blob.
"""

from __future__ import annotations

import errno
from contextlib import ExitStack

from vgpud.device.layout import access_of, flushed_at_hand_over
from vgpud.device.ports import BarSlots, Works
from vgpud.errors import GuestError, HostError
from vgpud.host import memfd
from vgpud.host.extents import Extents
from vgpud.host.fds import Fd, in_reserve
from vgpud.host.mapping import map_shared
from vgpud.policy.plan import Plan
from vgpud.policy.quota import Charge, Quota
from vgpud.policy.window import WindowMap
from vgpud.wire.gpu.protocol import ResourceId, ResponseType

MAX_BLOBS = 8192
"""Per device: each takes a descriptor and a mapping, of which the process has some 65000
(vm.max_map_count) for all its devices."""

_ADVICE = 'raise LimitNOFILE, or use layout = "window"'


class PerBlobLayout:
    """A `device.layout.BlobLayout`."""

    def __init__(self, name: str, size: int, quota: Quota, slots: BarSlots, works: Works) -> None:
        self.map = WindowMap(size)
        self.slots = slots
        self.works = works
        self.blobs: dict[ResourceId, PerBlobMemory] = {}
        self._name = name
        self._size = size
        self._quota = quota

    def allocate(self, blob: ResourceId, size: int, plan: Plan) -> PerBlobMemory:
        if len(self.blobs) >= MAX_BLOBS:
            raise GuestError(ResponseType.ERR_OUT_OF_MEMORY, f"{MAX_BLOBS} blobs are there already")
        charge = self._quota.charge(size)
        try:
            with ExitStack() as stack:
                fd = stack.enter_context(memfd.create(f"{self._name}-blob-{blob}", size))
                if in_reserve(fd):
                    raise HostError("a memory file for a blob", OSError(errno.EMFILE, ""), _ADVICE)
                contents = Extents.from_array(map_shared(fd, size), access=access_of(plan))
                stack.pop_all()
        except HostError as error:
            charge.release()
            raise GuestError(ResponseType.ERR_OUT_OF_MEMORY, str(error)) from error
        memory = self.blobs[blob] = PerBlobMemory(self, blob, fd, contents, plan, charge)
        return memory

    def reset(self) -> None:
        for blob in list(self.blobs.values()):
            blob.forget()
        self.map = WindowMap(self._size)

    def close(self) -> None:
        self.reset()


class PerBlobMemory:
    """A `device.layout.HostMemory`: a sealed memfd of the blob's size."""

    def __init__(
        self,
        layout: PerBlobLayout,
        blob: ResourceId,
        fd: Fd,
        contents: Extents,
        plan: Plan,
        charge: Charge,
    ) -> None:
        self._layout = layout
        self._blob = blob
        self._fd = fd
        self._contents = contents
        self._plan = plan
        self._charge = charge

    def contents(self) -> Extents:
        return self._contents

    async def map(self, offset: int) -> None:
        size = self._contents.size
        self._layout.map.displaced_by(self._blob, offset, size)  # nobody is parked in this layout
        if flushed_at_hand_over(self._plan):
            # Also of fresh pages: the kernel zeroes them through the cache.
            await self._layout.works.aside(lambda: self._contents.flush(0, size))
        flags = int(self._plan.slot_flags)
        try:
            await self._layout.slots.map(self._fd, 0, offset, size, flags=flags)
        except HostError as error:
            raise GuestError(ResponseType.ERR_UNSPEC, str(error)) from error
        self._layout.map.put(self._blob, offset, size)

    async def unmap(self) -> None:
        place = self._layout.map.place(self._blob)
        if place is None:
            raise GuestError(ResponseType.ERR_INVALID_PARAMETER, f"blob {self._blob} is not mapped")
        try:
            await self._layout.slots.unmap(place.offset, place.size)
        except HostError as error:  # then the guest still sees it there
            raise GuestError(ResponseType.ERR_UNSPEC, str(error)) from error
        self._layout.map.remove(self._blob)

    async def destroy(self) -> None:
        if self._layout.map.place(self._blob) is not None:
            await self.unmap()
        self.forget()

    def forget(self) -> None:
        """Closes the file; its pages go when the VMM's mapping has gone too."""
        self._layout.blobs.pop(self._blob, None)
        self._fd.close()
        self._charge.release()
