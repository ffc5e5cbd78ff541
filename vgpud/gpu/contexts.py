"""Contexts: what a guest submits work in, and which resources it may use there.

Only the DMA context exists (capset 30). A context made without naming a capset is one too: with one
kind of context, it is the default kind. Source: virtio 1.3, 5.7.6.9 CTX_CREATE,
CTX_ATTACH_RESOURCE; GET_CAPSET_INFO, GET_CAPSET.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from vgpud.gpu.errors import InvalidContextId, InvalidParameter, InvalidResourceId
from vgpud.gpu.quota import Charge, Quota
from vgpud.gpu.resources import OVERHEAD, Resource, ResourceTable
from vgpud.gpu.wire import commands, dma, responses
from vgpud.gpu.wire.protocol import CapsetId, ContextId, ResourceId

ATTACHMENT = 128
"""Bytes that an attached resource costs its context, about."""

OK = responses.OkNoData()


@dataclass(slots=True, eq=False)
class Context:
    """One context and the resources attached to it."""

    id: ContextId
    charge: Charge
    attached: set[ResourceId] = field(default_factory=set)


class Contexts:
    """The contexts of one device, and the capability sets they can be made of."""

    def __init__(self, resources: ResourceTable, quota: Quota, capset: dma.Capset) -> None:
        self._resources = resources
        self._quota = quota
        self._capset = capset
        self._by_id: dict[ContextId, Context] = {}

    def __len__(self) -> int:
        return len(self._by_id)

    def get(self, context_id: ContextId) -> Context:
        """The context of this id; raises `InvalidContextId` where there is none."""
        context = self._by_id.get(context_id)
        if context is None:
            raise InvalidContextId(f"no context {context_id}")
        return context

    def attached(self, context: Context, resource_id: ResourceId) -> Resource:
        """A resource as the context may use it; raises `InvalidResourceId` if it is not."""
        if resource_id not in context.attached:
            raise InvalidResourceId(
                f"resource {resource_id} is not attached to context {context.id}",
            )
        return self._resources.get(resource_id)

    def create(self, command: commands.CtxCreate) -> responses.Response:
        """CTX_CREATE."""
        context_id = command.header.ctx_id
        if context_id == 0 or context_id in self._by_id:
            raise InvalidContextId(f"context {context_id} can't be made")
        if command.capset_id not in (0, CapsetId.DMA):
            raise InvalidParameter(f"no contexts of capset {command.capset_id}")
        self._by_id[context_id] = Context(context_id, self._quota.charge(OVERHEAD))
        return OK

    def destroy(self, command: commands.CtxDestroy) -> responses.Response:
        """CTX_DESTROY; the resources live on."""
        context = self.get(command.header.ctx_id)
        context.charge.release()
        del self._by_id[context.id]
        return OK

    def attach(self, command: commands.CtxAttachResource) -> responses.Response:
        """CTX_ATTACH_RESOURCE; a second time changes nothing."""
        context = self.get(command.header.ctx_id)
        resource_id = self._resources.get(command.resource_id).id
        if resource_id not in context.attached:
            context.charge.grow(ATTACHMENT)
            context.attached.add(resource_id)
        return OK

    def detach(self, command: commands.CtxDetachResource) -> responses.Response:
        """CTX_DETACH_RESOURCE; harmless where it is not attached."""
        context = self.get(command.header.ctx_id)
        self._detach(context, self._resources.get(command.resource_id).id)
        return OK

    def forget(self, resource_id: ResourceId) -> None:
        """Detaches a resource that is being destroyed from every context."""
        for context in self._by_id.values():
            self._detach(context, resource_id)

    @staticmethod
    def _detach(context: Context, resource_id: ResourceId) -> None:
        if resource_id in context.attached:
            context.attached.remove(resource_id)
            context.charge.shrink(ATTACHMENT)

    def clear(self) -> None:
        """Destroys all contexts."""
        for context in self._by_id.values():
            context.charge.release()
        self._by_id.clear()

    def capset_info(self, command: commands.GetCapsetInfo) -> responses.Response:
        """GET_CAPSET_INFO; an index that is not there is answered with capset 0, as drivers
        expect."""
        if command.capset_index == 0:
            return responses.CapsetInfo(CapsetId.DMA, dma.CAPSET_VERSION, dma.CAPSET_SIZE)
        return responses.CapsetInfo(0, 0, 0)

    def get_capset(self, command: commands.GetCapset) -> responses.Response:
        """GET_CAPSET."""
        known = command.capset_id == CapsetId.DMA and command.capset_version <= dma.CAPSET_VERSION
        if not known:
            raise InvalidParameter(
                f"no capset {command.capset_id} of version {command.capset_version}",
            )
        return responses.Capset(self._capset.pack())
