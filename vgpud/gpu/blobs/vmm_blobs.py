"""The VMM's own blobs, which it makes by the control API, in addition to the guest's.

They are allocated in the device's layout, planned by the same policy as HOST3D blobs of the guest,
and charged to the same limit. Their ids are above all ids that a guest can use. They are destroyed
when the device is reset, as the guest's are: the window is cleared then, and the VMM has to make
them again (event `blob.destroyed`).
"""

from __future__ import annotations

import logging
from asyncio import Lock
from collections.abc import Iterator

from vgpud.coherency.slot_policy import BlobKind
from vgpud.errors import OutOfMemory, VgpudError
from vgpud.gpu.blobs.layout import BlobLayout, restore_memory
from vgpud.gpu.blobs.per_blob_layout import PerBlobMemory
from vgpud.gpu.blobs.plans import Plans
from vgpud.gpu.blobs.slot_owner import RamSlots
from vgpud.gpu.counters import Counters
from vgpud.gpu.errors import InvalidParameter, InvalidResourceId
from vgpud.gpu.quota import Quota
from vgpud.gpu.resources import OVERHEAD, HostBlob
from vgpud.gpu.state import HostBlobState
from vgpud.gpu.wire.protocol import BlobMem, ResourceId
from vgpud.memory.window_map import BLOB_ALIGNMENT, check_placement
from vgpud.pace import Pace, paced
from vgpud.publish import Publish
from vgpud.sorted_numbers import SortedNumbers

log = logging.getLogger(__name__)

FIRST_ID = 1 << 32
"""The first id: a guest's have 32 bits."""


class BlobIds:
    """The ids of the VMM's blobs on one device, in all its sessions: none is used twice, so that an
    old one can't name another blob."""

    def __init__(self) -> None:
        self._next = FIRST_ID

    def take(self) -> ResourceId:
        """Return an id that has not been used."""
        taken = ResourceId(self._next)
        self._next += 1
        return taken

    def restore(self, used: ResourceId) -> None:
        """Note that an id has been used, perhaps by an earlier process."""
        self._next = max(self._next, used + 1)


class VmmBlobs:
    """The VMM's blobs on one device.

    `window_lock` serializes changes of the window. Coroutines may be cancelled, and raise
    `VgpudError` as the guest's commands do.
    """

    def __init__(
        self,
        device: str,
        layout: BlobLayout,
        plans: Plans,
        quota: Quota,
        window_lock: Lock,
        ids: BlobIds,
        counters: Counters,
        publish: Publish,
    ) -> None:
        self._device = device
        self._layout = layout
        self._plans = plans
        self._quota = quota
        self._window_lock = window_lock
        self._ids = ids
        self._counters = counters
        self._publish = publish
        self._by_id: dict[int, HostBlob] = {}
        self._numbers = SortedNumbers()

    def __len__(self) -> int:
        return len(self._by_id)

    def __iter__(self) -> Iterator[HostBlob]:
        return iter(self._by_id.values())

    def part(self, start: int, stop: int) -> list[HostBlob]:
        """Return a part of the blobs, which are in the order of their ids."""
        return [self._by_id[number] for number in self._numbers.part(start, stop)]

    def find(self, blob_id: int) -> HostBlob | None:
        """Return the blob of this id, if there is one."""
        return self._by_id.get(blob_id)

    async def create(self, size: int) -> HostBlob:
        """Make a blob of `size` zero bytes and return it."""
        if size <= 0 or size % BLOB_ALIGNMENT:
            raise _invalid(f"a blob of {size:#x} bytes: whole pages of {BLOB_ALIGNMENT:#x} needed")
        await self._plans.prepare()
        plan = self._plans.make(BlobKind.HOST3D, size, self._layout.backing)
        charge = self._quota.charge(OVERHEAD)
        blob_id = self._ids.take()
        try:
            memory = self._layout.allocate(blob_id, size, plan)
        except VgpudError:
            charge.release()
            raise
        try:
            await memory.make()
        except BaseException:
            await memory.destroy()
            charge.release()
            raise
        blob = HostBlob(blob_id, BlobMem.HOST3D, size, True, plan, charge, memory)
        self._add(blob)
        log.debug("blob created device=%s resource=%d size=%#x", self._device, blob_id, size)
        self._announce("created", blob)
        return blob

    def save(self) -> tuple[HostBlobState, ...]:
        """Return the blobs' states.

        A blob that is mapped outside the window is saved as one that is not mapped: its VMM maps it
        again.
        """
        return tuple(blob.save() for blob in self)

    async def restore(self, state: HostBlobState) -> None:
        """Make a blob from its saved state, with its former id."""
        plan = self._plans.make(BlobKind.HOST3D, state.size, self._layout.backing)
        charge = self._quota.charge(OVERHEAD)
        try:
            memory = await restore_memory(self._layout, state, plan)
        except BaseException:
            charge.release()
            raise
        blob = HostBlob(state.id, state.blob_mem, state.size, state.mappable, plan, charge, memory)
        self._add(blob)
        self._ids.restore(state.id)

    async def map(self, blob: HostBlob, offset: int | None) -> None:
        """Map a blob into the window, without `offset` into the last free range."""
        async with self._window_lock:
            self._check(blob)
            if offset is None:
                offset = await self._last_free(blob.size)
            check_placement(offset, blob.size, self._layout.map.size)
            await blob.memory.map(offset)
        self._counters.maps += 1
        self._announce("mapped", blob, offset=offset)

    async def map_ram(self, blob: HostBlob, slots: RamSlots, address: int) -> None:
        """Map a blob at a guest-physical address outside the window.

        Only for a device with the per-blob layout whose rule allows it.
        """
        async with self._window_lock:
            self._check(blob)
            assert isinstance(blob.memory, PerBlobMemory)
            await blob.memory.map_ram(slots, address)
        self._counters.maps += 1
        self._announce("mapped", blob, guest_phys_addr=address)

    async def unmap(self, blob: HostBlob) -> None:
        """Unmap a blob: the guest can't see its bytes any more after this."""
        async with self._window_lock:
            self._check(blob)
            await blob.memory.take_away()
        self._counters.unmaps += 1
        self._announce("unmapped", blob)

    async def destroy(self, blob: HostBlob) -> None:
        """Destroy a blob; if it is mapped, it is unmapped first."""
        async with self._window_lock:
            self._check(blob)
            mapped = blob.mapped
            await blob.memory.destroy()
            self._counters.unmaps += mapped
            self._forget(blob)

    async def empty(self) -> None:
        """Forget all blobs as `clear` does, in steps that let the event loop run."""
        pace = Pace()
        while self._by_id:
            _, blob = self._by_id.popitem()
            self._removed(blob)
            await pace.step()

    def clear(self) -> None:
        """Forget all blobs, because the layout is being reset."""
        for blob in list(self._by_id.values()):
            self._forget(blob)

    async def _last_free(self, size: int) -> int:
        offset = await paced(self._layout.map.free_from_end(size))
        if offset is None:
            raise OutOfMemory(
                f"no {size:#x} bytes in a row are free in the window of {self._layout.map.size:#x}",
            )
        return offset

    def _check(self, blob: HostBlob) -> None:
        if self._by_id.get(blob.id) is not blob:  # destroyed while this waited for the lock
            raise InvalidResourceId(f"no blob {blob.id}")

    def _add(self, blob: HostBlob) -> None:
        self._by_id[blob.id] = blob
        self._numbers.add(blob.id)

    def _forget(self, blob: HostBlob) -> None:
        del self._by_id[blob.id]
        self._removed(blob)

    def _removed(self, blob: HostBlob) -> None:
        self._numbers.remove(blob.id)
        blob.charge.release()
        log.debug("blob destroyed device=%s resource=%d", self._device, blob.id)
        self._announce("destroyed", blob)

    def _announce(self, what: str, blob: HostBlob, **where: int) -> None:
        message = f"a blob of the VMM's, {blob.size:#x} bytes, was {what}"
        self._publish(f"blob.{what}", message, resource=blob.id, size=blob.size, **where)


def _invalid(reason: str) -> InvalidParameter:
    return InvalidParameter(reason)
