"""The interface of renderers, which execute a guest's contexts.

A device has any number of renderers. Each declares its capsets, which are the kinds of contexts
that it executes, and completes submissions by a call, on any thread. Source: virtio 1.3, 5.7.6.9
"Device Operation: controlq (3d)".
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from vgpud.coherency.slot_policy import MemoryType
from vgpud.gpu.resources import Resource
from vgpud.gpu.wire import commands
from vgpud.gpu.wire.protocol import ContextId, ResourceId
from vgpud.gpu.work import Answer, Start
from vgpud.memory.buffers import Buffer


@dataclass(frozen=True, slots=True)
class Capset:
    """A capset, which is a kind of context: its id, version, and the data for GET_CAPSET."""

    id: int
    version: int
    data: bytes


@dataclass(frozen=True, slots=True)
class BlobMemory:
    """The memory that a renderer has made for a blob.

    `buffer` has its kind of memory, by which the planner decides. `hint` is the memory type that
    the renderer would map it with, if it has any.
    """

    buffer: Buffer
    hint: MemoryType | None = None


class Renderer(Protocol):
    """Executes contexts. All methods are called on the event loop's thread, and must not block.

    A renderer is lost when it can't work any more, for instance because its process has died. It
    has completed all submissions with an error before that, and it stays lost. The device then
    refuses commands that need it, and calls only `quiesce`, `resume`, `reset` and `close`.
    """

    @property
    def capsets(self) -> Sequence[Capset]:
        """The capsets of the contexts that it executes; they never change."""

    @property
    def longest_stream(self) -> int:
        """How many bytes of a command stream it takes; a longer one is answered with an error."""

    @property
    def lost(self) -> str | None:
        """The reason why it is lost; None while it is not."""

    def create_context(self, context: ContextId, capset_id: int, name: bytes) -> None:
        """Make a context of a capset; 0 is the renderer's default kind.

        `name` is for logs. Raises `VgpudError` where it can't be made.
        """

    def destroy_context(self, context: ContextId) -> None:
        """Destroy a context. Its submissions are completed nevertheless."""

    def attach(self, context: ContextId, resource: Resource) -> None:
        """Attach a resource to a context; raise `VgpudError` on failure."""

    def detach(self, context: ContextId, resource: ResourceId) -> None:
        """Detach a resource from a context; it may be destroyed after this."""

    def create_resource(self, command: commands.ResourceCreate3D) -> Resource:
        """Make a resource for RESOURCE_CREATE_3D, which the device adds to its table.

        Raises `VgpudError` where the renderer has no such resources.
        """

    @property
    def allocates(self) -> bool:
        """Whether it allocates memory for blobs; if not, `create_blob` is never called."""

    async def create_blob(self, context: ContextId, blob_id: int, size: int) -> BlobMemory | None:
        """Allocate a blob's memory of `size` bytes, which are whole pages; return None to have the
        device's layout allocate it.

        Raises `VgpudError` where that fails. If it is cancelled, nothing stays allocated.
        """

    def transfer_to_host(self, command: commands.TransferToHost3D) -> Answer:
        """Copy pixels from a resource's backing to the resource; raise `VgpudError` on failure."""

    def transfer_from_host(self, command: commands.TransferFromHost3D) -> Answer:
        """Copy pixels from a resource to its backing; raise `VgpudError` on failure."""

    def prepare(self, context: ContextId, ring: int | None, data: bytes) -> Start | None:
        """Check a command stream, and return what starts it, after earlier submissions on the same
        ring; None if that takes longer than a fraction of a millisecond, for `prepare_long`.

        `ring` is the ring's index in the context; None for a submission on the device's own
        timeline. Submissions are completed in any order between rings. What is returned is called
        at once. Raises `VgpudError` where the stream can't be started.
        """

    async def prepare_long(self, context: ContextId, ring: int | None, data: bytes) -> Start:
        """Check a command stream as `prepare` does, and let others run meanwhile.

        Until this has returned, the device executes no other command, and no blob is moved. If it
        is cancelled, nothing is left of the submission.
        """

    async def quiesce(self) -> None:
        """Stop: from the end of this until `resume`, access no memory and complete nothing."""

    def resume(self) -> None:
        """Continue where `quiesce` stopped."""

    def reset(self) -> None:
        """Destroy all contexts, and drop their submissions; `quiesce` comes first. Resources may
        be destroyed after this."""

    def close(self) -> None:
        """End the renderer. No method is called after this."""
