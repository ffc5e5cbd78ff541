"""What the daemon provides to a device, as one value."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from vgpud.coherency.kvm_mode import KvmMode
from vgpud.gpu.blobs.vmm_blobs import BlobIds
from vgpud.gpu.counters import Counters
from vgpud.gpu.renderers import MakeRenderers, make_renderers
from vgpud.memory.render_nodes import RenderNodes
from vgpud.publish import Publish, unheard
from vgpud.slots.owner import TrackedSlots


async def _nothing() -> None:
    """Examine nothing."""


@dataclass(frozen=True, slots=True)
class Environment:
    """What the daemon provides to a device, and what lasts longer than a session.

    `find_kvm_mode` finds out what decides the guest's memory types; `examine` prepares that, off
    the event loop, and takes no longer than half a second. `slots` is the slot owner, if
    that is not the front-end. `nodes` are the host's GPUs, `blob_ids` the ids
    of the VMM's own blobs, which are never used twice.
    """

    find_kvm_mode: Callable[[], KvmMode] = lambda: KvmMode.UNKNOWN
    examine: Callable[[], Awaitable[None]] = _nothing
    slots: TrackedSlots | None = None
    counters: Counters = field(default_factory=Counters)
    publish: Publish = unheard
    nodes: RenderNodes = field(default_factory=RenderNodes)
    blob_ids: BlobIds = field(default_factory=BlobIds)
    make_renderers: MakeRenderers = make_renderers
