"""The virtio-GPU as a device of a vhost-user session: its two queues, memory, sockets and reset.

Commands are executed in `gpu.gpu`. The control API's operations on a device in use are here, too.
Source: virtio 1.3, 5.7.2 "Virtqueues"; QEMU, docs/interop/vhost-user-gpu.rst.
"""

from __future__ import annotations

import asyncio
import errno
import logging
from collections.abc import Coroutine
from contextlib import ExitStack
from typing import Any, Final, TypeVar

from vgpud.errors import HostError, PeerError
from vgpud.gpu.display.channel import DisplayChannel
from vgpud.gpu.executor import Executor
from vgpud.gpu.gpu import Gpu
from vgpud.gpu.guest_memory import GuestMemory
from vgpud.gpu.operations import Operations
from vgpud.gpu.queues import GpuQueue
from vgpud.gpu.spec import DeviceSpec
from vgpud.gpu.state import DeviceState
from vgpud.gpu.timelines import Timelines
from vgpud.gpu.wire.protocol import CONTROL_QUEUE, CURSOR_QUEUE, ResponseType, ShmId
from vgpud.memory.page_freer import FileHeldError
from vgpud.slots.front_end import FrontEndMappings, FrontEndSlots
from vgpud.slots.owner import TrackedSlots
from vgpud.unix.received_fd import ReceivedFd
from vgpud.unix.stream_socket import StreamSocket
from vgpud.vhost.back_end_channel import BackEndChannel
from vgpud.vhost.device import Device
from vgpud.vhost.memory_table import MemoryTable
from vgpud.vhost.virtqueue import Virtqueue

log = logging.getLogger(__name__)

QUEUES: Final = ("control", "cursor")

_STATE_LOST: Final = (
    "state lost device=%s: the driver has run before this session, as after a restart of the"
    " daemon. What it has made is gone, and commands that name it are answered %#x until the guest"
    " is restarted, or loads its driver again"
)

PATIENCE = 2.0
"""Seconds that the end of a session waits for work on the device's threads, which has steps of a
fraction of a millisecond."""

T = TypeVar("T")


class GpuDevice(Device):
    """The virtio-GPU of one session; `gpu.compose` makes it of its parts.

    `slots` is the slot owner, if that is not the front-end.
    """

    queues = QUEUES

    def __init__(
        self,
        gpu: Gpu,
        memory: GuestMemory,
        executor: Executor,
        timelines: Timelines,
        front_end_slots: FrontEndSlots,
        slots: TrackedSlots | None,
    ) -> None:
        self.name = gpu.spec.name
        self.features = gpu.features
        self.shared_memory = {int(ShmId.HOST_VISIBLE): gpu.spec.window}
        self.gpu = gpu
        self.slots = slots
        self._memory = memory
        self._executor = executor
        self._timelines = timelines
        self._front_end_slots = front_end_slots
        self._queues = {
            index: GpuQueue(gpu, timelines, cursor=index == CURSOR_QUEUE)
            for index in (CONTROL_QUEUE, CURSOR_QUEUE)
        }
        self._operations = Operations()
        self._resizing = asyncio.Lock()  # one resize at a time, so that it can be undone
        self._driven = False  # whether a driver has started it since the last reset
        self.state_lost = False
        """Whether the driver has made things in an earlier session, which this device lacks."""
        self._channel: BackEndChannel | None = None
        self._display: asyncio.Task[None] | None = None
        self._failure: asyncio.Task[None] | None = None

    # The session

    def open(self, tasks: asyncio.TaskGroup) -> None:
        self._tasks = tasks
        self._failure = tasks.create_task(self._executor.wait_for_failure())

    def set_memory(self, memory: MemoryTable) -> None:
        self._memory.table = memory

    def set_back_end_channel(self, channel: BackEndChannel) -> None:
        queue = self._queues[CONTROL_QUEUE].queue
        if queue is None or not queue.running:
            channel.hold()
        self._channel = channel
        self._front_end_slots.connect(channel)

    def set_display_socket(self, socket: ReceivedFd) -> None:
        if self._display is not None:
            self._display.cancel()
        gpu = self.gpu
        with ExitStack() as stack:
            stream = StreamSocket.of(socket)
            stack.callback(stream.close)
            pictures = gpu.scanouts.pictures
            channel = DisplayChannel(self.name, stream, pictures, gpu.quota, gpu.counters)
            gpu.attach_display(channel)
            self._display = self._tasks.create_task(self._show(channel))
            # A task that is cancelled before it starts does not get to the end of `run`.
            self._display.add_done_callback(lambda _: channel.close())
            stack.pop_all()

    async def end(self) -> None:
        for task in (self._failure, self._display):
            if task is not None:
                task.cancel()
        await self._operations.close()

    async def alive(self) -> None:
        await self._executor.check_threads()

    async def free(self) -> None:
        try:
            async with asyncio.timeout(PATIENCE):
                await self._hold()
        except TimeoutError:  # a thread hangs: `close` does not wait for it
            return
        task = asyncio.current_task()
        # First, so that no other VM's agent sets them. A device that is being stopped or removed
        # gets no other agent, and the VM keeps the slots.
        if self.slots is not None and task is not None and not task.cancelling():
            await self.slots.clear()
        try:
            await self.gpu.empty()
        except FileHeldError as error:
            log.warning("memory freed later device=%s: %s", self.name, error)

    def close(self) -> None:
        self._timelines.drop()  # what completes from here on has nobody to answer
        self._executor.close()
        self._front_end_slots.connect(None)
        self.gpu.close()
        self._memory.table = MemoryTable()

    # The configuration space

    def config(self) -> bytes:
        return self.gpu.config_space.read()

    def write_config(self, offset: int, data: bytes) -> None:
        self.gpu.config_space.write(offset, data)

    # The rings

    async def start_queue(self, index: int, queue: Virtqueue) -> None:
        """Start a queue.

        A control queue that starts at index 0 belongs to a new driver, for which the device is
        reset. At another index, the driver continues after a pause of the VM, and everything that
        it has made is kept. If this session has not had the driver yet, what it has made is lost.
        """
        handler = self._queues[index]
        handler.queue = queue
        if index == CONTROL_QUEUE:
            if queue.setup.fresh:
                await self.reset()
            elif not self._driven:
                self.state_lost = True
                log.warning(_STATE_LOST, self.name, ResponseType.ERR_INVALID_RESOURCE_ID)
                self.gpu.report_lost_state()
            self._driven = True
            await self.gpu.plans.prepare()
            self._timelines.resume()
            self.gpu.resume()
            self._operations.resume()
            queue.start(handler.handle, handler.fast_path, handler.request_size)
            if self._channel is not None and queue.running:
                self._channel.resume()
        else:
            queue.start(handler.handle, request_size=handler.request_size)

    async def stop_queue(self, index: int) -> None:
        """Stop a queue; the VMM's operations go on, because it may use a paused VM's device.

        Requests to the front-end wait until the control queue runs again, as QEMU would die of one.
        """
        if index == CONTROL_QUEUE:
            await self._hold()
            # Last, so that no command of the guest finds the channel held before it is cancelled.
            if self._channel is not None:
                self._channel.hold()

    async def reset(self) -> None:
        await self._operations.stop("the device was reset meanwhile")
        try:
            await self._reset()
        finally:
            self._operations.resume()

    async def _reset(self) -> None:
        await self._hold()
        self._timelines.drop()
        for handler in self._queues.values():
            handler.forget()
        if self._channel is not None:
            self._channel.drop()
        self.state_lost = False
        self._front_end_slots.forget()  # a front-end removes its own mappings itself
        if self.slots is not None:
            await self.slots.clear()
        await self.gpu.empty()
        self.gpu.reset()
        if self._driven:
            self._driven = False
            self.gpu.count_reset()

    async def quiesce(self) -> None:
        """Complete or hold all work, and stop the VMM's operations; no others start until a queue
        is started, or the device is reset."""
        await self._operations.stop("the device is being saved")
        await self._hold()

    async def _hold(self) -> None:
        await self.gpu.quiesce()
        self._timelines.hold()

    async def save(self) -> DeviceState:
        """Return the device's state, once every command that was taken has been answered.

        Raises `VgpudError` where a blob's bytes are lost, or in a renderer's memory.
        """
        self._timelines.resume()
        self.gpu.resume()
        await self._timelines.drained()
        await self.quiesce()
        queues = (handler.queue for handler in self._queues.values())
        rings = tuple(None if queue is None else queue.save() for queue in queues)
        return DeviceState(self._driven, self.gpu.save(), rings)

    async def restore(self, state: object) -> None:
        """Take over a saved state; the session restores the rings.

        Raises `VgpudError` where something of it can't be made on this host.
        """
        assert isinstance(state, DeviceState)
        self._driven = state.driven
        await self.gpu.plans.prepare()
        await self.gpu.restore(state.gpu)

    # The control API

    def reconfigure(self, spec: DeviceSpec) -> None:
        """Apply what can change of the specification while a front-end is connected."""
        outputs = self.gpu.scanouts.outputs
        self.gpu.reconfigure(spec)
        changed = self.gpu.scanouts.outputs != outputs and not self.gpu.has_display
        if changed and self._channel is not None:
            self._channel.config_changed()

    async def resize(self, scanout_id: int, width: int, height: int) -> None:
        """Offer the guest another mode, in pixels.

        A driver that does not run is notified when it does; one that starts reads the modes anyway.
        Raises `InvalidScanoutId` for an output that does not exist, `HostError` where the front-end
        does not notify the guest.
        """
        async with self._resizing:
            outputs = self.gpu.scanouts.outputs
            self.gpu.resize(scanout_id, width, height)
            try:
                if self._channel is None or not self._channel.open:
                    advice = "the front-end has set no back-end channel"
                    raise HostError("CONFIG_CHANGE_MSG", OSError(errno.ENOTCONN, ""), advice)
                await self._channel.confirm_config_change()
            except BaseException:
                before = outputs[scanout_id]
                self.gpu.resize(scanout_id, before.width, before.height)
                raise
            self.gpu.announce_resize(scanout_id)

    async def perform(self, operation: Coroutine[Any, Any, T]) -> T:
        """Run an operation that the guest has not requested, and return its result.

        Raises what it raises, and `Interrupted` if a reset or the end of the session cancels it.
        """
        return await self._operations.run(operation, self._tasks)

    def problems(self) -> list[str]:
        """Return why queues are stopped, a sentence for each that a guest has broken."""
        found = (handler.problem for handler in self._queues.values())
        return [problem for problem in found if problem is not None]

    @property
    def mappings(self) -> FrontEndMappings:
        """The mappings that the front-end has made."""
        return self._front_end_slots.mapped

    async def _show(self, channel: DisplayChannel) -> None:
        try:
            await channel.run()
        except* PeerError as errors:
            # The guest continues: its scanouts can still be read, and a new socket may be set.
            log.warning("display closed device=%s: %s", self.name, errors.exceptions[0])
        finally:
            self.gpu.detach_display(channel)
