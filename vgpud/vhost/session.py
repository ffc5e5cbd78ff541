"""One front-end's session: every vhost-user request, and the device that it drives.

Owns the connection, the queues, guest memory and the device of one session; all of it goes when the
front-end goes. What may be said when is `vhost.wire.connection`; this is what is done about it.
Source: the vhost-user specification, "Front-end message types" and "Starting and stopping rings".
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Mapping
from contextlib import ExitStack
from time import perf_counter
from typing import Any, TypeAlias, TypeVar

from vgpud.coherency.planner import KvmMode
from vgpud.errors import HostError, PeerError
from vgpud.gpu.counters import Counters
from vgpud.gpu.gpu import FEATURES, Gpu
from vgpud.gpu.links import Links
from vgpud.gpu.ports import Publish, unheard
from vgpud.gpu.queues import GpuQueue
from vgpud.gpu.spec import DeviceSpec
from vgpud.gpu.timelines import Timelines
from vgpud.gpu.wire.protocol import CONTROL_QUEUE, CURSOR_QUEUE, ShmId
from vgpud.memory.dirty_log import DirtyLog
from vgpud.memory.render_nodes import RenderNodes
from vgpud.slots.front_end import FrontendSlots
from vgpud.slots.owner import TableSlots
from vgpud.unix import eventfd
from vgpud.unix.fd import Fd
from vgpud.unix.stream_socket import FdSocket
from vgpud.vhost.guest_memory import GuestMemory
from vgpud.vhost.operations import Errands
from vgpud.vhost.split_ring import F_EVENT_IDX, F_INDIRECT_DESC
from vgpud.vhost.virtqueue import QUANTUM, VirtQueue
from vgpud.vhost.vring import RingAddress
from vgpud.vhost.wire import messages
from vgpud.vhost.wire.connection import SUPPORTED, BackendSession, Received
from vgpud.vhost.wire.messages import Reply, Request
from vgpud.vhost.wire.protocol import F_LOG_ALL, F_PROTOCOL_FEATURES, VRING_F_LOG, ProtocolFeature

log = logging.getLogger(__name__)

F_VERSION_1 = 1 << 32

OFFERED = FEATURES | F_VERSION_1 | F_INDIRECT_DESC | F_EVENT_IDX

QUEUES = {CONTROL_QUEUE: "control", CURSOR_QUEUE: "cursor"}

Fds: TypeAlias = list[Fd]
T = TypeVar("T")


class FrontEndSession:
    """A connected front-end. `run` it; `gpu` can be looked at meanwhile.

    `look` sees what decides the guest's memory types. `slots` sets the memory slots where the
    front-end is not to be asked for mappings; that and `counters` outlive the session.
    """

    def __init__(
        self,
        socket: FdSocket,
        spec: DeviceSpec,
        *,
        look: Callable[[], KvmMode] = lambda: KvmMode.UNKNOWN,
        slots: TableSlots | None = None,
        counters: Counters | None = None,
        publish: Publish = unheard,
        nodes: RenderNodes | None = None,
        blob_ids: Iterator[int] | None = None,
    ) -> None:
        self._socket = socket
        self._spec = spec
        self._session = BackendSession(OFFERED, SUPPORTED)
        self._memory = GuestMemory()
        self._timelines = Timelines(spec.name)
        self._slots = FrontendSlots()
        self._publish = publish
        self.slots = slots
        """Who sets memory slots, if that is not the front-end."""
        self.gpu = Gpu(
            spec,
            self._memory,
            slots if slots is not None else self._slots,
            self._timelines,
            look,
            counters=counters,
            publish=publish,
            nodes=nodes,
            blob_ids=blob_ids,
        )
        self._driven = False  # by a guest's driver, which a reset takes away
        self._errands = Errands()
        self._resizing = asyncio.Lock()  # one at a time, so that each can be undone
        self._queues: dict[int, VirtQueue] = {}
        self._log: DirtyLog | None = None
        self._handlers: dict[type[Request], Callable[[Any, Fds], Awaitable[Reply | None]]] = {
            messages.GetFeatures: self._get_features,
            messages.SetFeatures: self._set_features,
            messages.GetProtocolFeatures: self._get_protocol_features,
            messages.SetProtocolFeatures: self._nothing,  # the session keeps them
            messages.GetQueueNum: self._get_queue_num,
            messages.SetOwner: self._nothing,
            messages.ResetOwner: self._nothing,
            messages.ResetDevice: self._reset_device,
            messages.SetMemTable: self._set_mem_table,
            messages.SetLogBase: self._set_log_base,
            messages.SetLogFd: self._nothing,  # signalling it is up to us, and nobody waits for it
            messages.SetVringNum: self._set_vring_num,
            messages.SetVringAddr: self._set_vring_addr,
            messages.SetVringBase: self._set_vring_base,
            messages.GetVringBase: self._get_vring_base,
            messages.SetVringKick: self._set_vring_kick,
            messages.SetVringCall: self._set_vring_call,
            messages.SetVringErr: self._set_vring_err,
            messages.SetVringEnable: self._set_vring_enable,
            messages.SetBackendReqFd: self._set_backend_req_fd,
            messages.GetConfig: self._get_config,
            messages.SetConfig: self._set_config,
            messages.GpuSetSocket: self._gpu_set_socket,
            messages.GetShmemConfig: self._get_shmem_config,
        }

    async def run(self) -> None:
        """Serves the front-end until it closes the connection.

        Raises an exception group with a `PeerError` where it broke the protocol.
        """
        with ExitStack() as cleanup:
            cleanup.callback(self._close)
            async with asyncio.TaskGroup() as tasks:
                self._tasks = tasks
                self._links = Links(self._spec.name, self.gpu, self._slots, tasks)
                for index, name in QUEUES.items():
                    handler = GpuQueue(self.gpu, self._timelines, cursor=index == CURSOR_QUEUE)
                    queue = VirtQueue(
                        self._spec.name,
                        name,
                        self._memory,
                        handler.handle,
                        tasks,
                        None if index == CURSOR_QUEUE else handler.transfers,
                    )
                    handler.queue = self._queues[index] = queue
                failure = tasks.create_task(self._timelines.failed())
                await self._serve()
                failure.cancel()
                self._links.cancel()
                await self._errands.close()
                for queue in self._queues.values():
                    await queue.stop()

    def reconfigure(self, spec: DeviceSpec) -> None:
        """Take from another specification what can change while a front-end is connected."""
        outputs = self.gpu.scanouts.outputs
        self.gpu.reconfigure(spec)
        if self.gpu.scanouts.outputs != outputs and not self.gpu.has_display:
            self._slots.config_changed()

    async def alive(self) -> None:
        """Returns once both threads of the device have done something new."""
        await self._timelines.answered()

    async def resize(self, scanout_id: int, width: int, height: int) -> None:
        """Offer the guest another mode, in pixels.

        Raises `GuestError` for an output that is not there, HostError where the front-end does not
        pass it on.
        """
        async with self._resizing:
            outputs = self.gpu.scanouts.outputs
            self.gpu.resize(scanout_id, width, height)
            try:
                await self._slots.confirm_config_change()
            except BaseException:
                before = outputs[scanout_id]
                self.gpu.resize(scanout_id, before.width, before.height)
                raise
            self.gpu.tell_resized(scanout_id)

    async def run_errand(self, errand: Coroutine[Any, Any, T]) -> T:
        """Do what somebody else wants; raises what it raises, and `GuestError` if a reset or the
        end of the session came first."""
        return await self._errands.run(errand, self._tasks)

    def mappings(self) -> Mapping[int, int]:
        """What the front-end has mapped itself: lengths by offset in the window, in bytes."""
        return self._slots.mapped

    async def _serve(self) -> None:
        until = perf_counter() + QUANTUM
        while True:
            while isinstance(received := self._session.next_event(), Received):
                await self._socket.send(await self._handle(received))
            if perf_counter() >= until:  # a front-end that always has more to say
                await asyncio.sleep(0)
                until = perf_counter() + QUANTUM
            data, fds = await self._socket.recv(self._session.bytes_wanted)
            if not data:
                self._session.receive_eof()
                return
            self._session.receive_data(data, fds)

    async def _handle(self, received: Received) -> bytes:
        message = received.message
        fds = [Fd(fd) for fd in received.fds]
        try:
            reply = await self._handlers[type(message)](message, fds)
        except HostError as error:
            # Ours, not the front-end's: it is told if it asked to be, and can go on without.
            log.warning(
                "request failed device=%s request=%s: %s",
                self._spec.name,
                type(message).__name__,
                error,
            )
            return self._session.refuse(received)
        finally:
            for fd in fds:  # those that nobody took
                fd.close()
        return self._session.reply(received, reply)

    def _close(self) -> None:
        for fd in self._session.close():
            Fd(fd).close()
        for queue in self._queues.values():
            queue.close()
        self._timelines.close()
        self._slots.connect(None)
        self.gpu.close()
        self._memory.log = None
        self._memory.replace([])
        self._socket.close()

    def _queue(self, index: int) -> VirtQueue:
        queue = self._queues.get(index)
        if queue is None:
            raise PeerError(f"vring {index} of {len(QUEUES)}")
        return queue

    async def _start(self, index: int) -> None:
        """Starts a queue if it is ready.

        A control queue that is told to start at 0 belongs to a driver that starts afresh. One that
        starts elsewhere goes on after a pause of the VM, with everything that its driver has made.
        """
        queue, features = self._queue(index), self._session.features
        if not features & F_PROTOCOL_FEATURES:
            queue.setup.enabled = True
        if queue.running or not queue.ready:
            return
        if index == CONTROL_QUEUE:
            if queue.setup.fresh:
                await self._timelines.pause()
                await self._reset()
            queue.setup.fresh = False
            self._driven = True
            self._timelines.resume()
        queue.start(features)

    async def _reset(self) -> None:
        await self._errands.stop()
        self._timelines.drop()
        for queue in self._queues.values():
            queue.forget_unanswered()
        self.gpu.reset()
        self._slots.forget()  # a front-end takes back its own mappings itself
        if self.slots is not None:
            await self.slots.clear()
        if self._driven:
            self._driven = False
            self.gpu.counters.resets += 1
            self._publish("device.reset", "the guest's driver is gone, or starts afresh")

    # Features and memory

    async def _nothing(self, _: Request, __: Fds) -> None:
        """For what needs no doing."""

    async def _get_features(self, _: messages.GetFeatures, __: Fds) -> Reply:
        return messages.U64Reply(self._session.offered_features)

    async def _set_features(self, message: messages.SetFeatures, _: Fds) -> None:
        self._memory.log = self._log if message.features & F_LOG_ALL else None

    async def _get_protocol_features(self, _: messages.GetProtocolFeatures, __: Fds) -> Reply:
        return messages.U64Reply(self._session.offered_protocol_features)

    async def _get_queue_num(self, _: messages.GetQueueNum, __: Fds) -> Reply:
        return messages.U64Reply(len(QUEUES))

    async def _set_mem_table(self, message: messages.SetMemTable, fds: Fds) -> None:
        self._memory.replace(list(zip(message.regions, fds, strict=True)))
        for queue in self._queues.values():
            queue.remap()

    async def _set_log_base(self, message: messages.SetLogBase, fds: Fds) -> None:
        self._log = DirtyLog(fds[0], message.size, message.offset)
        if self._session.features & F_LOG_ALL:
            self._memory.log = self._log

    # Rings

    async def _set_vring_num(self, message: messages.SetVringNum, _: Fds) -> None:
        self._queue(message.index).setup.num = message.num

    async def _set_vring_addr(self, message: messages.SetVringAddr, _: Fds) -> None:
        queue = self._queue(message.index)
        logged = message.log if message.flags & VRING_F_LOG else None
        queue.set_address(RingAddress(message.desc, message.avail, message.used, logged))
        await self._start(message.index)

    async def _set_vring_base(self, message: messages.SetVringBase, _: Fds) -> None:
        setup = self._queue(message.index).setup
        setup.base, setup.fresh = message.base, message.base == 0

    async def _get_vring_base(self, message: messages.GetVringBase, _: Fds) -> Reply:
        queue = self._queue(message.index)
        if message.index == CONTROL_QUEUE:
            await self._timelines.pause()
        base = await queue.stop()
        queue.drop_kick()  # only a new one starts the ring again
        return messages.VringState(message.index, base)

    async def _set_vring_kick(self, message: messages.SetVringKick, fds: Fds) -> None:
        self._queue(message.index).set_kick(_event(fds))
        await self._start(message.index)

    async def _set_vring_call(self, message: messages.SetVringCall, fds: Fds) -> None:
        self._queue(message.index).set_call(_event(fds))

    async def _set_vring_err(self, message: messages.SetVringErr, fds: Fds) -> None:
        self._queue(message.index).set_err(_event(fds))

    async def _set_vring_enable(self, message: messages.SetVringEnable, _: Fds) -> None:
        queue = self._queue(message.index)
        queue.setup.enabled = message.enable
        if message.enable:
            await self._start(message.index)
        else:
            await queue.stop()

    # The device

    async def _reset_device(self, _: messages.ResetDevice, __: Fds) -> None:
        await self._timelines.pause()
        for queue in self._queues.values():
            await queue.stop()
            queue.setup.enabled, queue.setup.base = False, 0
        await self._reset()

    async def _get_config(self, message: messages.GetConfig, _: Fds) -> Reply:
        # Front-ends ask for what their own struct has, which may be more than ours.
        data = self.gpu.config()[message.offset : message.offset + message.size]
        data = data.ljust(message.size, b"\0")
        return messages.ConfigReply(message.offset, message.flags, data)

    async def _set_config(self, message: messages.SetConfig, _: Fds) -> None:
        self.gpu.write_config(message.offset, message.data)

    async def _get_shmem_config(self, _: messages.GetShmemConfig, __: Fds) -> Reply:
        sizes = [0] * (ShmId.HOST_VISIBLE + 1)
        sizes[ShmId.HOST_VISIBLE] = self._spec.window
        return messages.ShmemConfig(tuple(sizes))

    async def _set_backend_req_fd(self, _: messages.SetBackendReqFd, fds: Fds) -> None:
        acks = bool(self._session.protocol_features & ProtocolFeature.REPLY_ACK)
        self._links.connect_back_end(fds[0], reply_ack=acks)

    async def _gpu_set_socket(self, _: messages.GpuSetSocket, fds: Fds) -> None:
        self._links.connect_display(fds[0])


def _event(fds: Fds) -> Fd | None:
    return eventfd.adopt(Fd(fds[0].take())) if fds else None
