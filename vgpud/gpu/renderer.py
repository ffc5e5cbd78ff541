"""Who executes a guest's contexts: the interface between the device and its renderers.

A device has any number of them; each says which kinds of contexts it executes (its capsets), and
completes what it is given by an event, when and on which thread it likes. Source: virtio 1.3,
5.7.6.9 "Device Operation: controlq (3d)".
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from vgpud.coherency.slot_policy import MemoryType
from vgpud.gpu.resources import Resource
from vgpud.gpu.wire import commands
from vgpud.gpu.wire.protocol import ContextId, ResourceId
from vgpud.gpu.work import Answer, Done
from vgpud.memory.buffers import Buffer


@dataclass(frozen=True, slots=True)
class Capset:
    """A capability set, which is a kind of context: what GET_CAPSET answers for it."""

    id: int
    version: int
    data: bytes


@dataclass(frozen=True, slots=True)
class BlobMemory:
    """The memory that a renderer has made for a blob: the buffer, which says what memory it is in,
    and the memory type that the renderer would map it with, if it has an opinion. The planner
    decides by the former."""

    buffer: Buffer
    hint: MemoryType | None = None


class Renderer(Protocol):
    """An executor of contexts. Every method is for the event loop's thread, and none of them
    blocks.

    It is *lost* when it can do no more, such as a process that has died. By then it has completed
    all that it was given with an error; the device refuses what would need it from then on.
    """

    @property
    def capsets(self) -> Sequence[Capset]:
        """The kinds of contexts that it executes; never changes."""

    @property
    def lost(self) -> str | None:
        """Why it is lost; None while it is not."""

    def create_context(self, context: ContextId, capset_id: int, name: bytes) -> None:
        """Make a context of one of the capsets, or for 0 of the renderer's default kind.

        `name` is for people. Raises `VgpudError` where it can't be made.
        """

    def destroy_context(self, context: ContextId) -> None:
        """Destroy a context. What it has submitted is completed all the same."""

    def attach(self, context: ContextId, resource: Resource) -> None:
        """Let a context use a resource that it could not use before; raises `VgpudError`."""

    def detach(self, context: ContextId, resource: ResourceId) -> None:
        """Stop a context from using a resource that was attached, which may be destroyed next."""

    def create_resource(self, command: commands.ResourceCreate3D) -> Resource:
        """Make a classic 3D resource, for the device to enter.

        Raises `VgpudError` where the renderer has no such resources.
        """

    @property
    def allocates(self) -> bool:
        """Whether it makes the memory of blobs; if not, `create_blob` is never called."""

    async def create_blob(self, context: ContextId, blob_id: int, size: int) -> BlobMemory | None:
        """Make a blob's memory of `size` bytes, which are whole pages; None for memory of the
        device's own, from its layout.

        Raises `VgpudError` where there is no such memory. Cancelled, it leaves nothing behind.
        """

    def transfer_to_host(self, command: commands.TransferToHost3D) -> Answer:
        """Move pixels from a resource's backing to the resource; raises `VgpudError`."""

    def transfer_from_host(self, command: commands.TransferFromHost3D) -> Answer:
        """Move pixels from a resource to its backing; raises `VgpudError`."""

    def submit(self, context: ContextId, ring: int | None, data: bytes, done: Done) -> None:
        """Execute a command stream, after what was submitted before on the same ring.

        `ring` is the ring's index in the context; None for a submission on the device's own
        timeline. `done` is called once, on any thread, in any order between rings. Raises
        `VgpudError` where the stream can't be begun; `done` is not called then.
        """

    async def quiesce(self) -> None:
        """Stop: from the end of this until `resume`, it touches no memory and completes nothing."""

    def resume(self) -> None:
        """Go on where `quiesce` stopped."""

    def reset(self) -> None:
        """Destroy all contexts, and drop what they have submitted; `quiesce` comes first."""

    def close(self) -> None:
        """End it. Nothing is called any more after this."""
