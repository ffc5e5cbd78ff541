"""The composition of a device from its parts."""

from __future__ import annotations

from vgpud.gpu.device import GpuDevice
from vgpud.gpu.environment import Environment
from vgpud.gpu.executor import Executor
from vgpud.gpu.gpu import Gpu
from vgpud.gpu.guest_memory import GuestMemory
from vgpud.gpu.spec import DeviceSpec
from vgpud.gpu.timelines import Timelines
from vgpud.gpu.wire.protocol import ShmId
from vgpud.slots.front_end import FrontEndSlots


def compose(spec: DeviceSpec, environment: Environment) -> GpuDevice:
    """Return a device for one front-end's session.

    Raises `OutOfMemory` if the memory limit is smaller than the window.
    """
    memory = GuestMemory()
    executor = Executor(spec.name)
    front_end_slots = FrontEndSlots(ShmId.HOST_VISIBLE)
    slots = environment.slots
    gpu = Gpu(spec, environment, memory, slots if slots is not None else front_end_slots, executor)
    return GpuDevice(gpu, memory, executor, Timelines(), front_end_slots, slots)
