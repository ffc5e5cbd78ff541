"""Blob resources: making them, and mapping host blobs into the guest's window.

Source: virtio 1.3, 5.7.6.8 RESOURCE_CREATE_BLOB and 5.7.6.9 RESOURCE_MAP_BLOB, RESOURCE_UNMAP_BLOB.
"""

from __future__ import annotations

from asyncio import Lock

from vgpud.coherency.slot_policy import BlobKind
from vgpud.errors import VgpudError
from vgpud.gpu.blobs.layout import BlobLayout
from vgpud.gpu.blobs.plans import Plans
from vgpud.gpu.contexts import Contexts
from vgpud.gpu.counters import Counters
from vgpud.gpu.errors import InvalidContextId, InvalidParameter
from vgpud.gpu.guest_memory import GuestMemory
from vgpud.gpu.memory_types import MAP_INFO
from vgpud.gpu.quota import Quota
from vgpud.gpu.resources import OVERHEAD, GuestBlob, HostBlob, ResourceTable, make_backing
from vgpud.gpu.wire import commands, responses
from vgpud.gpu.wire.protocol import BlobFlag, BlobMem, ContextId
from vgpud.gpu.work import Answer
from vgpud.memory.window_map import BLOB_ALIGNMENT

KNOWN_FLAGS = int(BlobFlag.USE_MAPPABLE | BlobFlag.USE_SHAREABLE | BlobFlag.USE_CROSS_DEVICE)

KINDS = {BlobMem.HOST3D: BlobKind.HOST3D, BlobMem.HOST3D_GUEST: BlobKind.HOST3D_GUEST}
"""What a slot policy calls the kinds of blob that have host memory."""


class Blobs:
    """The commands on blobs of one device. `turn` is for one change of the window at a time."""

    def __init__(
        self,
        resources: ResourceTable,
        contexts: Contexts,
        layout: BlobLayout,
        quota: Quota,
        memory: GuestMemory,
        plans: Plans,
        turn: Lock,
        counters: Counters,
    ) -> None:
        self._resources = resources
        self._contexts = contexts
        self._layout = layout
        self._quota = quota
        self._memory = memory
        self._plans = plans
        self._turn = turn
        self._counters = counters

    def create(self, command: commands.ResourceCreateBlob) -> Answer:
        """RESOURCE_CREATE_BLOB, of any of the three kinds of memory."""
        self._resources.check_free(command.resource_id)
        if command.size == 0 or command.blob_flags & ~KNOWN_FLAGS:
            raise _invalid(f"a blob of {command.size} bytes, flags {command.blob_flags:#x}")
        try:
            kind = BlobMem(command.blob_mem)
        except ValueError as error:
            raise _invalid(f"blob_mem {command.blob_mem}") from error
        if kind is BlobMem.GUEST:
            self._create_guest(command)
            return responses.OkNoData()
        blob = self._create_host(command, kind)
        return responses.OkNoData() if blob.memory.made else self._make(blob)

    async def map(self, command: commands.ResourceMapBlob) -> responses.Response:
        """RESOURCE_MAP_BLOB: answered with the memory type that the plan can vouch for."""
        blob = self._resources.host_blob(command.resource_id)
        if blob.blob_mem is not BlobMem.HOST3D or not blob.mappable:
            raise _invalid(f"blob {blob.id} is not one to be mapped")
        async with self._turn:
            await blob.memory.map(command.offset)
        self._counters.maps += 1
        return responses.MapInfo(MAP_INFO[blob.plan.memory_type])

    async def unmap(self, command: commands.ResourceUnmapBlob) -> responses.Response:
        """RESOURCE_UNMAP_BLOB."""
        blob = self._resources.host_blob(command.resource_id)
        async with self._turn:
            await blob.memory.unmap()
        self._counters.unmaps += 1
        return responses.OkNoData()

    def _create_guest(self, command: commands.ResourceCreateBlob) -> None:
        charge = self._quota.charge(OVERHEAD)
        try:
            backing = make_backing(self._memory, command.entries, self._quota)
            if backing.size < command.size:
                backing.release()
                raise _invalid(f"{backing.size} bytes of pages for a blob of {command.size}")
        except VgpudError:
            charge.release()
            raise
        self._resources.add(GuestBlob(command.resource_id, command.size, charge, backing))

    def _create_host(self, command: commands.ResourceCreateBlob, kind: BlobMem) -> HostBlob:
        size = command.size
        if command.header.ctx_id == ContextId(0):
            raise InvalidContextId("a host blob needs a context")
        self._contexts.get(command.header.ctx_id)
        if size % BLOB_ALIGNMENT:
            raise _invalid(f"a host blob of {size:#x} bytes, not aligned to {BLOB_ALIGNMENT:#x}")
        plan_ = self._plans.make(KINDS[kind], size, self._layout.backing)
        charge = self._quota.charge(OVERHEAD)
        backing = None
        try:
            if len(command.entries):
                if kind is BlobMem.HOST3D:
                    raise _invalid("a HOST3D blob has no backing pages")
                backing = make_backing(self._memory, command.entries, self._quota)
            memory = self._layout.allocate(command.resource_id, size, plan_)
        except VgpudError:
            if backing is not None:
                backing.release()
            charge.release()
            raise
        mappable = bool(command.blob_flags & BlobFlag.USE_MAPPABLE)
        blob = HostBlob(command.resource_id, kind, size, mappable, plan_, charge, memory, backing)
        self._resources.add(blob)
        return blob

    async def _make(self, blob: HostBlob) -> responses.Response:
        """Makes memory that takes its time; what comes to nothing leaves no blob."""
        try:
            await blob.memory.make()
        except BaseException:
            if blob in self._resources:  # else the device was reset
                self._resources.remove(blob)
                blob.memory.forget()
            raise
        return responses.OkNoData()


def _invalid(reason: str) -> InvalidParameter:
    return InvalidParameter(reason)
