"""Contexts: their renderers, the resources attached to them, and the commands submitted to them.

A context belongs to the first renderer that has its capset; a context without a capset belongs to
the first renderer, and is of its default kind. Source: virtio 1.3, 5.7.6.9 CTX_CREATE,
CTX_ATTACH_RESOURCE, SUBMIT_3D; GET_CAPSET_INFO, GET_CAPSET.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from vgpud.errors import Unsupported, VgpudError
from vgpud.gpu.errors import InvalidContextId, InvalidParameter
from vgpud.gpu.quota import Charge, Quota
from vgpud.gpu.renderer import Capset, Renderer
from vgpud.gpu.resources import OVERHEAD, Resource, ResourceTable
from vgpud.gpu.state import ContextState
from vgpud.gpu.wire import commands, responses
from vgpud.gpu.wire.protocol import ContextId, ResourceId
from vgpud.gpu.work import Answer, Start
from vgpud.pace import Pace

ATTACHMENT = 512
"""Bytes that an attached resource costs its context, the renderer and the index of attachments,
about."""

FEW = 256
"""Attachments that are removed at once: that takes about 0.2 ms."""

OK = responses.OkNoData()


@dataclass(slots=True, eq=False)
class Context:
    """One context, its renderer, and the resources attached to it."""

    id: ContextId
    capset_id: int
    name: bytes
    renderer: Renderer
    charge: Charge
    attached: set[ResourceId] = field(default_factory=set)


@dataclass(slots=True)
class Submission:
    """A SUBMIT_3D that has been checked and can be started."""

    start: Start


class Contexts:
    """The contexts of one device, and its renderers in order of preference."""

    def __init__(
        self, resources: ResourceTable, quota: Quota, renderers: Sequence[Renderer]
    ) -> None:
        self._resources = resources
        self._quota = quota
        self._renderers = renderers
        self._capsets: list[tuple[Capset, Renderer]] = [
            (capset, renderer) for renderer in renderers for capset in renderer.capsets
        ]
        self._by_id: dict[ContextId, Context] = {}
        self._attached_to: dict[ResourceId, set[Context]] = {}
        self._makers: dict[ResourceId, Renderer] = {}

    def __len__(self) -> int:
        return len(self._by_id)

    @property
    def num_capsets(self) -> int:
        """The number of capsets of all renderers."""
        return len(self._capsets)

    def get(self, context_id: ContextId) -> Context:
        """Return the context of this id; raise `InvalidContextId` where there is none."""
        context = self._by_id.get(context_id)
        if context is None:
            raise InvalidContextId(f"no context {context_id}")
        return context

    def create(self, command: commands.CtxCreate) -> responses.Response:
        """Execute CTX_CREATE."""
        self._create(command.header.ctx_id, command.capset_id, command.debug_name)
        return OK

    def destroy(self, command: commands.CtxDestroy) -> Answer:
        """Execute CTX_DESTROY; the resources stay."""
        context = self.get(command.header.ctx_id)
        if len(context.attached) > FEW:
            return self._destroy_in_steps(context)
        for resource_id in [*context.attached]:
            self._detach(context, resource_id)
        self._destroy(context)
        return OK

    def attach(self, command: commands.CtxAttachResource) -> responses.Response:
        """Execute CTX_ATTACH_RESOURCE; a second time changes nothing."""
        self._attach(self.get(command.header.ctx_id), self._resources.get(command.resource_id))
        return OK

    def detach(self, command: commands.CtxDetachResource) -> responses.Response:
        """Execute CTX_DETACH_RESOURCE; no error if the resource is not attached."""
        context = self.get(command.header.ctx_id)
        self._detach(context, self._resources.get(command.resource_id).id)
        return OK

    def submit(self, command: commands.Submit3D) -> Submission | None:
        """Check SUBMIT_3D, and return the submission to start; None if checking takes long, for
        `submit_long`."""
        renderer, stream = self._stream(command)
        start = renderer.prepare(*stream)
        return None if start is None else Submission(start)

    async def submit_long(self, command: commands.Submit3D) -> Submission:
        """Check SUBMIT_3D as `submit` does, and let others run meanwhile."""
        renderer, stream = self._stream(command)
        return Submission(await renderer.prepare_long(*stream))

    def longest_stream(self, context_id: ContextId) -> int:
        """Return how many bytes a context's command stream may have; where there is no such
        context, how many any may have."""
        context = self._by_id.get(context_id)
        renderers = self._renderers if context is None else (context.renderer,)
        return max((renderer.longest_stream for renderer in renderers), default=0)

    def create_resource(self, command: commands.ResourceCreate3D) -> responses.Response:
        """Execute RESOURCE_CREATE_3D, which names no context, by the first renderer."""
        self._resources.add(self._first().create_resource(command))
        return OK

    def transfer_to_host(self, command: commands.TransferToHost3D) -> Answer:
        """Execute TRANSFER_TO_HOST_3D by the renderer that made the resource."""
        return self._maker(command.resource_id).transfer_to_host(command)

    def transfer_from_host(self, command: commands.TransferFromHost3D) -> Answer:
        """Execute TRANSFER_FROM_HOST_3D by the renderer that made the resource."""
        return self._maker(command.resource_id).transfer_from_host(command)

    def set_maker(self, resource_id: ResourceId, renderer: Renderer) -> None:
        """Record that a renderer has made a resource in its own memory."""
        self._makers[resource_id] = renderer

    def is_attached(self, resource_id: ResourceId, context_id: ContextId) -> bool:
        """Return whether a resource is attached to a context, whose commands may then use it."""
        context = self._by_id.get(context_id)
        return context is not None and resource_id in context.attached

    def attachments(self, resource_id: ResourceId) -> int:
        """Return the number of contexts that a resource is attached to."""
        return len(self._attached_to.get(resource_id, ()))

    async def detach_in_steps(self, resource_id: ResourceId) -> None:
        """Detach a resource from every context, in steps that let the event loop run."""
        pace = Pace()
        while contexts := self._attached_to.get(resource_id):
            context = contexts.pop()
            context.attached.remove(resource_id)
            self._detached(context, resource_id)
            await pace.step()

    def forget(self, resource_id: ResourceId) -> None:
        """Detach a resource that is being destroyed from every context."""
        for context in [*self._attached_to.get(resource_id, ())]:
            self._detach(context, resource_id)
        self._makers.pop(resource_id, None)

    def save(self) -> tuple[ContextState, ...]:
        """Return the contexts' states; raise `Unsupported` if a blob is in a renderer's memory."""
        if self._makers:
            first = min(self._makers)
            raise Unsupported(f"blob {first} is in a renderer's memory: it can't be saved")
        return tuple(
            ContextState(
                context.id, context.capset_id, context.name, tuple(sorted(context.attached))
            )
            for context in self._by_id.values()
        )

    def restore(self, state: ContextState) -> None:
        """Make a context from its saved state; the resources attached to it must exist."""
        context = self._create(state.id, state.capset_id, state.name)
        for resource_id in state.attached:
            self._attach(context, self._resources.get(resource_id))

    async def empty(self) -> None:
        """Destroy all contexts, in steps that let the event loop run."""
        pace = Pace()
        while self._by_id:
            context_id, context = self._by_id.popitem()
            self._by_id[context_id] = context
            await self._destroy_in_steps(context)
            await pace.step()

    def clear(self) -> None:
        """Drop all contexts; the renderers are reset or closed as well."""
        for context in self._by_id.values():
            context.charge.release()
        self._by_id.clear()
        self._attached_to.clear()
        self._makers.clear()

    def capset_info(self, command: commands.GetCapsetInfo) -> responses.Response:
        """Execute GET_CAPSET_INFO; the answer to a bad index is capset 0, as drivers expect."""
        if command.capset_index >= len(self._capsets):
            return responses.CapsetInfo(0, 0, 0)
        capset, _ = self._capsets[command.capset_index]
        return responses.CapsetInfo(capset.id, capset.version, len(capset.data))

    def get_capset(self, command: commands.GetCapset) -> responses.Response:
        """Execute GET_CAPSET."""
        for capset, _ in self._capsets:
            if capset.id == command.capset_id and command.capset_version <= capset.version:
                return responses.CapsetData(capset.data)
        raise InvalidParameter(f"no capset {command.capset_id} of version {command.capset_version}")

    def _create(self, context_id: ContextId, capset_id: int, name: bytes) -> Context:
        if context_id == 0 or context_id in self._by_id:
            raise InvalidContextId(f"context {context_id} can't be made")
        renderer = self._renderer_of(capset_id)
        charge = self._quota.charge(OVERHEAD)
        try:
            renderer.create_context(context_id, capset_id, name)
        except VgpudError:
            charge.release()
            raise
        context = Context(context_id, capset_id, name, renderer, charge)
        self._by_id[context_id] = context
        return context

    async def _destroy_in_steps(self, context: Context) -> responses.Response:
        pace = Pace()
        while context.attached:
            resource_id = context.attached.pop()
            self._attached_to[resource_id].remove(context)
            self._detached(context, resource_id)
            await pace.step()
        self._destroy(context)
        return OK

    def _destroy(self, context: Context) -> None:
        if context.renderer.lost is None:
            context.renderer.destroy_context(context.id)
        context.charge.release()
        del self._by_id[context.id]

    def _attach(self, context: Context, resource: Resource) -> None:
        if resource.id in context.attached:
            return
        context.charge.grow(ATTACHMENT)
        try:
            require_live(context.renderer).attach(context.id, resource)
        except VgpudError:
            context.charge.shrink(ATTACHMENT)
            raise
        context.attached.add(resource.id)
        self._attached_to.setdefault(resource.id, set()).add(context)

    def _detach(self, context: Context, resource_id: ResourceId) -> None:
        if resource_id in context.attached:
            context.attached.remove(resource_id)
            self._attached_to[resource_id].remove(context)
            self._detached(context, resource_id)

    def _detached(self, context: Context, resource_id: ResourceId) -> None:
        """Do the rest for a resource that has been removed from `attached` and the index."""
        if not self._attached_to[resource_id]:
            del self._attached_to[resource_id]
        context.charge.shrink(ATTACHMENT)
        if context.renderer.lost is None:
            context.renderer.detach(context.id, resource_id)

    def _stream(
        self, command: commands.Submit3D
    ) -> tuple[Renderer, tuple[ContextId, int | None, bytes]]:
        ring = command.header.ring
        context = self.get(command.header.ctx_id)
        index = None if ring is None else ring[1]
        return require_live(context.renderer), (context.id, index, command.data)

    def _first(self) -> Renderer:
        if not self._renderers:
            raise Unsupported("this device has no renderer")
        return require_live(self._renderers[0])

    def _renderer_of(self, capset_id: int) -> Renderer:
        if capset_id == 0:
            return self._first()
        for capset, renderer in self._capsets:
            if capset.id == capset_id:
                return require_live(renderer)
        raise InvalidParameter(f"no contexts of capset {capset_id}")

    def _maker(self, resource_id: ResourceId) -> Renderer:
        renderer = self._makers.get(resource_id)
        return self._first() if renderer is None else require_live(renderer)


def require_live(renderer: Renderer) -> Renderer:
    """Return the renderer; raises `Unsupported` if it is lost."""
    if renderer.lost is not None:
        raise Unsupported(f"the renderer is lost: {renderer.lost}")
    return renderer
