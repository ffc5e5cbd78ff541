"""The commands that make blob resources, and that map host blobs into the guest's window.

Source: virtio 1.3, 5.7.6.8 RESOURCE_CREATE_BLOB and 5.7.6.9 RESOURCE_MAP_BLOB, RESOURCE_UNMAP_BLOB.
"""

from __future__ import annotations

import logging
from asyncio import Lock
from contextlib import ExitStack

from vgpud.coherency.plan import Plan
from vgpud.coherency.slot_policy import BlobKind
from vgpud.errors import VgpudError
from vgpud.gpu.blobs.layout import BlobLayout, HostMemory, restore_memory
from vgpud.gpu.blobs.plans import Plans
from vgpud.gpu.contexts import Context, Contexts, require_live
from vgpud.gpu.counters import Counters
from vgpud.gpu.errors import InvalidContextId, InvalidParameter, Unspecified
from vgpud.gpu.guest_memory import GuestMemory
from vgpud.gpu.memory_types import MAP_INFO
from vgpud.gpu.quota import Charge, Quota
from vgpud.gpu.resources import (
    OVERHEAD,
    Backing,
    GuestBlob,
    HostBlob,
    ResourceTable,
    make_backing,
    restore_backing,
)
from vgpud.gpu.state import GuestBlobState, HostBlobState
from vgpud.gpu.wire import commands, responses
from vgpud.gpu.wire.protocol import BlobFlag, BlobMem, ContextId
from vgpud.gpu.work import Answer
from vgpud.memory.window_map import BLOB_ALIGNMENT

log = logging.getLogger(__name__)

KNOWN_FLAGS = int(BlobFlag.USE_MAPPABLE | BlobFlag.USE_SHAREABLE | BlobFlag.USE_CROSS_DEVICE)

KINDS = {BlobMem.HOST3D: BlobKind.HOST3D, BlobMem.HOST3D_GUEST: BlobKind.HOST3D_GUEST}
"""The slot policy's names of the kinds of blob that have host memory."""


class Blobs:
    """The commands on blobs of one device; `window_lock` serializes changes of the window."""

    def __init__(
        self,
        resources: ResourceTable,
        contexts: Contexts,
        layout: BlobLayout,
        quota: Quota,
        memory: GuestMemory,
        plans: Plans,
        window_lock: Lock,
        counters: Counters,
    ) -> None:
        self._resources = resources
        self._contexts = contexts
        self._layout = layout
        self._quota = quota
        self._memory = memory
        self._plans = plans
        self._window_lock = window_lock
        self._counters = counters

    def create(self, command: commands.ResourceCreateBlob) -> Answer:
        """Execute RESOURCE_CREATE_BLOB, for any of the three kinds of memory."""
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
        context = self._context_of(command)
        if context.renderer.allocates:
            return self._create_by_renderer(command, kind, context)
        blob = self._create_host(command, kind)
        return responses.OkNoData() if blob.memory.made else self._make(blob)

    async def map(self, command: commands.ResourceMapBlob) -> responses.Response:
        """Execute RESOURCE_MAP_BLOB; the answer has the memory type of the plan."""
        blob = self._resources.host_blob(command.resource_id)
        if blob.blob_mem is not BlobMem.HOST3D or not blob.mappable:
            raise _invalid(f"blob {blob.id} can't be mapped")
        async with self._window_lock:
            await blob.memory.map(command.offset)
        self._counters.maps += 1
        return responses.MappedBlob(MAP_INFO[blob.plan.memory_type])

    async def unmap(self, command: commands.ResourceUnmapBlob) -> responses.Response:
        """Execute RESOURCE_UNMAP_BLOB."""
        blob = self._resources.host_blob(command.resource_id)
        async with self._window_lock:
            await blob.memory.unmap()
        self._counters.unmaps += 1
        return responses.OkNoData()

    def restore_guest(self, state: GuestBlobState) -> None:
        """Make a blob in guest memory from its saved state."""
        charge = self._quota.charge(OVERHEAD)
        try:
            backing = restore_backing(self._memory, state.backing, self._quota)
        except VgpudError:
            charge.release()
            raise
        self._resources.add(GuestBlob(state.id, state.size, charge, backing, state.uuid))

    async def restore_host(self, state: HostBlobState) -> None:
        """Make a blob in host memory from its saved state, with its placement in the window."""
        plan = self._plans.make(KINDS[state.blob_mem], state.size, self._layout.backing)
        with ExitStack() as undo:
            charge = self._quota.charge(OVERHEAD)
            undo.callback(charge.release)
            backing = restore_backing(self._memory, state.backing, self._quota)
            if backing is not None:
                undo.callback(backing.release)
            memory = await restore_memory(self._layout, state, plan)
            undo.pop_all()
        self._resources.add(
            HostBlob(
                state.id,
                state.blob_mem,
                state.size,
                state.mappable,
                plan,
                charge,
                memory,
                backing,
                state.uuid,
            )
        )

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

    def _context_of(self, command: commands.ResourceCreateBlob) -> Context:
        """Return the context that a host blob is made in; raise `VgpudError` for a bad size."""
        if command.header.ctx_id == ContextId(0):
            raise InvalidContextId("a host blob needs a context")
        context = self._contexts.get(command.header.ctx_id)
        if command.size % BLOB_ALIGNMENT:
            raise _invalid(
                f"a host blob of {command.size:#x} bytes, not aligned to {BLOB_ALIGNMENT:#x}"
            )
        require_live(context.renderer)
        return context

    def _create_host(self, command: commands.ResourceCreateBlob, kind: BlobMem) -> HostBlob:
        """Make a blob in memory of the device's layout."""
        size = command.size
        plan = self._plans.make(KINDS[kind], size, self._layout.backing)
        charge = self._quota.charge(OVERHEAD)
        backing = None
        try:
            backing = self._backing(command, kind)
            memory = self._layout.allocate(command.resource_id, size, plan)
        except VgpudError:
            if backing is not None:
                backing.release()
            charge.release()
            raise
        return self._add(command, kind, plan, charge, memory, backing)

    async def _create_by_renderer(
        self, command: commands.ResourceCreateBlob, kind: BlobMem, context: Context
    ) -> responses.Response:
        """Make a blob in memory that its context's renderer makes, and plan it by that memory."""
        size, renderer = command.size, context.renderer
        with ExitStack() as undo:
            charge = self._quota.charge(OVERHEAD)
            undo.callback(charge.release)
            contents = self._quota.charge(size)
            undo.callback(contents.release)
            backing = self._backing(command, kind)
            if backing is not None:
                undo.callback(backing.release)
            made = await renderer.create_blob(context.id, command.blob_id, size)
            if made is None:
                undo.close()
                blob = self._create_host(command, kind)
                return responses.OkNoData() if blob.memory.made else await self._make(blob)
            undo.callback(made.buffer.close)
            if made.buffer.view.size != size:
                raise Unspecified(f"{made.buffer.view.size:#x} bytes made for a blob of {size:#x}")
            plan = self._plans.make(KINDS[kind], size, made.buffer.backing)
            memory = self._layout.adopt(command.resource_id, size, plan, made.buffer, contents)
            undo.pop_all()
        blob = self._add(command, kind, plan, charge, memory, backing)
        self._contexts.set_maker(blob.id, renderer)
        log.debug(
            "blob of a renderer resource=%d blob_id=%d size=%#x backing=%s hint=%s memory_type=%s",
            *(blob.id, command.blob_id, size, made.buffer.backing, made.hint, plan.memory_type),
        )
        return responses.OkNoData()

    def _backing(self, command: commands.ResourceCreateBlob, kind: BlobMem) -> Backing | None:
        if not len(command.entries):
            return None
        if kind is BlobMem.HOST3D:
            raise _invalid("a HOST3D blob has no backing pages")
        return make_backing(self._memory, command.entries, self._quota)

    def _add(
        self,
        command: commands.ResourceCreateBlob,
        kind: BlobMem,
        plan: Plan,
        charge: Charge,
        memory: HostMemory,
        backing: Backing | None,
    ) -> HostBlob:
        mappable = bool(command.blob_flags & BlobFlag.USE_MAPPABLE)
        blob = HostBlob(
            command.resource_id, kind, command.size, mappable, plan, charge, memory, backing
        )
        self._resources.add(blob)
        return blob

    async def _make(self, blob: HostBlob) -> responses.Response:
        """Allocate a blob's memory; remove the blob if that fails or is cancelled."""
        try:
            await blob.memory.make()
        except BaseException:
            if blob in self._resources:  # unless the device was reset
                self._resources.remove(blob)
                blob.memory.forget()
            raise
        return responses.OkNoData()


def _invalid(reason: str) -> InvalidParameter:
    return InvalidParameter(reason)
