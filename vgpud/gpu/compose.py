"""A device made of its parts: the one place where they meet."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import count

from vgpud.coherency.kvm_mode import KvmMode
from vgpud.gpu.blobs.vmm_blobs import FIRST_ID
from vgpud.gpu.counters import Counters
from vgpud.gpu.device import GpuDevice
from vgpud.gpu.executor import Executor
from vgpud.gpu.gpu import Gpu
from vgpud.gpu.guest_memory import GuestMemory
from vgpud.gpu.renderers import MakeRenderers, make_renderers
from vgpud.gpu.spec import DeviceSpec
from vgpud.gpu.timelines import Timelines
from vgpud.gpu.wire.protocol import ShmId
from vgpud.memory.render_nodes import RenderNodes
from vgpud.publish import Publish, unheard
from vgpud.slots.front_end import FrontEndSlots
from vgpud.slots.owner import TrackedSlots


@dataclass(frozen=True, slots=True)
class Environment:
    """What a device finds around it, and what outlasts its front-ends.

    `find_kvm_mode` finds out what decides the guest's memory types. `slots` sets memory slots where
    the front-end is not to be asked for mappings. `nodes` are the host's GPUs, `blob_ids` the ids
    of the VMM's own blobs, which are never used twice.
    """

    find_kvm_mode: Callable[[], KvmMode] = lambda: KvmMode.UNKNOWN
    slots: TrackedSlots | None = None
    counters: Counters = field(default_factory=Counters)
    publish: Publish = unheard
    nodes: RenderNodes = field(default_factory=RenderNodes)
    blob_ids: Iterator[int] = field(default_factory=lambda: count(FIRST_ID))
    make_renderers: MakeRenderers = make_renderers


def compose(spec: DeviceSpec, environment: Environment) -> GpuDevice:
    """Make a device for one front-end's session.

    Raises `OutOfMemory` if the limit of the specification does not even hold its window.
    """
    memory = GuestMemory()
    executor = Executor(spec.name)
    front_end_slots = FrontEndSlots(ShmId.HOST_VISIBLE)
    slots = environment.slots
    gpu = Gpu(
        spec,
        memory,
        slots if slots is not None else front_end_slots,
        executor,
        environment.find_kvm_mode,
        counters=environment.counters,
        publish=environment.publish,
        nodes=environment.nodes,
        blob_ids=environment.blob_ids,
        make_renderers=environment.make_renderers,
    )
    return GpuDevice(gpu, memory, executor, Timelines(), front_end_slots, slots)
