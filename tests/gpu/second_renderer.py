"""A renderer beside the DMA one: it completes what it is given when the test says so, on a thread
of its own, and it can die."""

from __future__ import annotations

import threading
from collections.abc import Sequence

from vgpud.errors import Unsupported
from vgpud.gpu.errors import InvalidParameter, Unspecified
from vgpud.gpu.renderer import BlobMemory, Capset, Renderer
from vgpud.gpu.renderers import MakeRenderers, RendererParts, make_renderers
from vgpud.gpu.resources import Resource
from vgpud.gpu.spec import RendererName
from vgpud.gpu.wire import commands
from vgpud.gpu.wire.protocol import ContextId, ResourceId
from vgpud.gpu.work import Answer, Done, Start
from vgpud.memory import memfd
from vgpud.memory.backing import HostBacking
from vgpud.memory.buffers import Buffer

CAPSET = 9
BAD = b"bad"
DATA = b"what this one can do"


class SecondRenderer:
    """A `gpu.renderer.Renderer`; `pending` are submissions by their data."""

    longest_stream = 1 << 20
    allocates = True
    capsets = (Capset(CAPSET, 3, DATA),)

    def __init__(self) -> None:
        self.lost: str | None = None
        self.contexts: dict[ContextId, dict[ResourceId, Resource]] = {}
        self.names: list[bytes] = []
        self.pending: dict[bytes, Done] = {}
        self.quiet = False
        self.closed = False
        self.backing: HostBacking | None = HostBacking.RAM_WB
        self.made: list[Buffer] = []
        self.short = False
        self.asked: list[tuple[ContextId, int, int]] = []

    def making(self) -> MakeRenderers:
        """Makes this one after those of the configuration."""

        def make(names: Sequence[RendererName], parts: RendererParts) -> Sequence[Renderer]:
            return (*make_renderers(names, parts), self)

        return make

    def quiesced(self) -> bool:
        return self.quiet

    def complete(self, *names: bytes) -> None:
        """Completes submissions in this order, on a thread."""

        def run() -> None:
            for name in names:
                self.pending.pop(name)(None)

        self._on_a_thread(run)

    def die(self, reason: str) -> None:
        """Dies, on a thread: all that is pending ends with an error."""

        def run() -> None:
            self.lost = reason
            while self.pending:
                _, done = self.pending.popitem()
                done(Unspecified(f"the renderer is lost: {reason}"))

        self._on_a_thread(run)

    @staticmethod
    def _on_a_thread(run: object) -> None:
        assert callable(run)
        thread = threading.Thread(target=run)
        thread.start()
        thread.join()

    # As a Renderer

    def create_context(self, context: ContextId, capset_id: int, name: bytes) -> None:
        if name == BAD:
            raise InvalidParameter("a bad name")
        self.names.append(name)
        self.contexts[context] = {}

    def destroy_context(self, context: ContextId) -> None:
        del self.contexts[context]

    def attach(self, context: ContextId, resource: Resource) -> None:
        if self.quiet:
            raise Unsupported("not now")
        self.contexts[context][resource.id] = resource

    def detach(self, context: ContextId, resource: ResourceId) -> None:
        del self.contexts[context][resource]

    def create_resource(self, command: commands.ResourceCreate3D) -> Resource:
        raise Unsupported("no such resources")

    async def create_blob(self, context: ContextId, blob_id: int, size: int) -> BlobMemory | None:
        self.asked.append((context, blob_id, size))
        if self.backing is None:
            return None
        made = size // 2 if self.short else size
        self.made.append(Buffer(memfd.create("second", made), made, self.backing))
        return BlobMemory(self.made[-1])

    def transfer_to_host(self, command: commands.TransferToHost3D) -> Answer:
        raise Unsupported("no transfers")

    def transfer_from_host(self, command: commands.TransferFromHost3D) -> Answer:
        raise Unsupported("no transfers")

    def prepare(self, context: ContextId, ring: int | None, data: bytes) -> Start:
        def start(done: Done) -> None:
            if data == BAD:
                raise InvalidParameter("bad data")
            self.pending[data] = done

        return start

    async def prepare_long(self, context: ContextId, ring: int | None, data: bytes) -> Start:
        return self.prepare(context, ring, data)

    async def quiesce(self) -> None:
        self.quiet = True

    def resume(self) -> None:
        self.quiet = False

    def reset(self) -> None:
        assert self.quiet
        self.contexts.clear()

    def close(self) -> None:
        self.closed = True
