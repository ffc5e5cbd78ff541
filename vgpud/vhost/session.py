"""The session with a connected front-end: a handler for each vhost-user request.

The order of messages is checked in `vhost.wire.connection`; the device's part is `vhost.device`.
The socket, the rings, the memory table and the back-end channel belong to the session and end with
it. Source: the vhost-user specification, "Front-end message types" and "Starting
and stopping rings".
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from contextlib import ExitStack
from functools import partial
from time import perf_counter
from typing import Any, Final, TypeAlias

from vgpud.errors import HostError, PeerError, PeerGone, VgpudError, stored
from vgpud.memory.dirty_log import DirtyLog
from vgpud.memory.own_thread import in_own_thread
from vgpud.unix.file_kind import FileKind
from vgpud.unix.received_fd import ReceivedFd, close_all
from vgpud.unix.stream_socket import StreamSocket
from vgpud.vhost.back_end_channel import BackEndChannel
from vgpud.vhost.device import Device
from vgpud.vhost.fault_watch import end_when_truncated
from vgpud.vhost.memory_table import MemoryTable
from vgpud.vhost.ring_life import RingLife
from vgpud.vhost.ring_views import RingAddress
from vgpud.vhost.split_ring import F_EVENT_IDX, F_INDIRECT_DESC
from vgpud.vhost.virtqueue import Virtqueue
from vgpud.vhost.wire import messages
from vgpud.vhost.wire.connection import SUPPORTED, Connection, Received
from vgpud.vhost.wire.protocol import (
    F_LOG_ALL,
    F_PROTOCOL_FEATURES,
    VRING_F_LOG,
    ProtocolFeature,
)
from vgpud.vhost.wire.replies import ConfigReply, MessageReply, ShmemConfig, U64Reply, VringState
from vgpud.vhost.wire.requests import Request

log = logging.getLogger(__name__)

F_VERSION_1: Final = 1 << 32

TRANSPORT_FEATURES: Final = F_VERSION_1 | F_INDIRECT_DESC | F_EVENT_IDX
"""The feature bits that are offered for every device, because the rings implement them."""

TURN: Final = 0.0005
"""Seconds of messages that follow each other without a pause, after which others have their turn.
One message more may follow, and a memory table takes milliseconds."""

CLOSING_PATIENCE: Final = 5.0
"""Seconds that it may take to close what a front-end sent, before that is logged."""

Fds: TypeAlias = list[ReceivedFd]
Handler: TypeAlias = Callable[[Any, Fds], Awaitable[MessageReply | None]]


class Session:
    """One front-end's session with `device` on `socket`; both are closed at its end."""

    def __init__(self, socket: StreamSocket, device: Device) -> None:
        self._socket = socket
        self._device = device
        protocol_features = SUPPORTED
        if not device.shared_memory:
            protocol_features &= ~ProtocolFeature.SHMEM
        if not device.config():
            protocol_features &= ~ProtocolFeature.CONFIG
        self._connection = Connection[ReceivedFd](
            device.features | TRANSPORT_FEATURES, protocol_features
        )
        self._memory = MemoryTable()
        self._log: DirtyLog | None = None
        self._queues: list[Virtqueue] = []
        self._back_end: asyncio.Task[None] | None = None
        self._handlers: dict[type[Request], Handler] = {
            messages.GetFeatures: self._get_features,
            messages.SetFeatures: self._set_features,
            messages.GetProtocolFeatures: self._get_protocol_features,
            messages.SetProtocolFeatures: self._nothing,  # kept by the connection
            messages.GetQueueNum: self._get_queue_num,
            messages.SetOwner: self._nothing,
            messages.ResetOwner: self._nothing,
            messages.ResetDevice: self._reset_device,
            messages.SetMemTable: self._set_mem_table,
            messages.SetLogBase: self._set_log_base,
            messages.SetLogFd: self._nothing,  # a back-end need not signal it
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
        """Serve the front-end until it closes the connection.

        Raises an exception group with a `PeerError` if it breaks the protocol.
        """
        try:
            await self._run()
        finally:
            await self._closed()

    async def _run(self) -> None:
        with ExitStack() as cleanup:
            cleanup.callback(self._close)
            try:
                await self._run_tasks()
            finally:
                await self._device.free()

    async def _run_tasks(self) -> None:
        async with asyncio.TaskGroup() as tasks:
            self._tasks = tasks
            self._queues = [
                Virtqueue(self._device.name, name, tasks) for name in self._device.queues
            ]
            watch = tasks.create_task(end_when_truncated(lambda: self._memory.any_faulted))
            self._device.open(tasks)
            try:
                await self._serve()
            except BaseException as error:
                for queue in self._queues:  # no kick is served while the tasks are ending
                    queue.close()
                if isinstance(error, VgpudError):
                    stored(error)  # the group that it becomes part of is a cycle
                raise
            watch.cancel()
            if self._back_end is not None:
                self._back_end.cancel()
            await self._device.end()
            for queue in self._queues:
                await queue.stop()

    async def _serve(self) -> None:
        until = perf_counter() + TURN
        while True:
            while isinstance(received := self._connection.next_event(), Received):
                answer = await self._handle(received)
                try:
                    await self._socket.send(answer)
                except PeerGone:
                    return
            if perf_counter() >= until:  # a front-end may send without a pause
                await asyncio.sleep(0)
                until = perf_counter() + TURN
            data, fds = await self._socket.recv(self._connection.bytes_wanted)
            if not data:
                self._connection.receive_eof()
                return
            self._connection.receive_data(data, fds)

    async def _handle(self, received: Received[ReceivedFd]) -> bytes:
        message = received.message
        fds = list(received.handles)
        try:
            reply = await self._handlers[type(message)](message, fds)
        except HostError as error:
            # The host's error, not the front-end's: the session goes on after a negative answer.
            log.warning(
                "request failed device=%s request=%s: %s",
                self._device.name,
                type(message).__name__,
                error,
            )
            return self._connection.refuse(received)
        finally:
            close_all(fds)  # those that no handler took
        return self._connection.reply(received, reply)

    def _close(self) -> None:
        close_all(self._connection.close())
        for queue in self._queues:
            queue.close()
        self._device.close()
        self._memory.track(None)
        self._memory.release()
        self._memory = MemoryTable()  # the session itself is freed later, as a cycle
        self._socket.close()

    async def _closed(self) -> None:
        """Wait until all that the front-end sent is closed, however long it makes that take: so it
        can't have more unclosed descriptors than one session has."""
        closing = asyncio.ensure_future(self._socket.closed())
        try:
            await asyncio.wait([closing], timeout=CLOSING_PATIENCE)
            if not closing.done():
                log.warning(
                    "descriptors still closing device=%s: the front-end sent a file whose "
                    "filesystem or peer does not answer; the device is free when it does",
                    self._device.name,
                )
            await closing
        finally:
            closing.cancel()

    def _queue(self, index: int) -> Virtqueue:
        if not 0 <= index < len(self._queues):
            raise PeerError(f"vring {index} of {len(self._queues)}")
        return self._queues[index]

    async def _start(self, index: int) -> None:
        """Have the device start a queue if it is ready."""
        queue, features = self._queue(index), self._connection.features
        if not features & F_PROTOCOL_FEATURES and not queue.setup.enabled:
            queue.set_enabled(True)  # without that feature, rings are enabled from the start
        if queue.life is RingLife.READY:
            queue.features = features
            await queue.halt()  # the handler of the ring that was here before, if it broke
            await self._device.start_queue(index, queue)

    async def _stop(self, index: int) -> int:
        """Stop a queue; return the index of the first available entry that has not been taken."""
        queue = self._queue(index)
        await queue.halt()  # first, because the device waits for what a handler does in a thread
        await self._device.stop_queue(index)
        return await queue.stop()

    # Features and memory

    async def _nothing(self, _: Request, __: Fds) -> None:
        """Do nothing, for requests that need no action."""

    async def _get_features(self, _: messages.GetFeatures, __: Fds) -> U64Reply:
        return U64Reply(self._connection.offered_features)

    async def _set_features(self, message: messages.SetFeatures, _: Fds) -> None:
        self._memory.track(self._log if message.features & F_LOG_ALL else None)

    async def _get_protocol_features(self, _: messages.GetProtocolFeatures, __: Fds) -> U64Reply:
        return U64Reply(self._connection.offered_protocol_features)

    async def _get_queue_num(self, _: messages.GetQueueNum, __: Fds) -> U64Reply:
        return U64Reply(len(self._queues))

    async def _set_mem_table(self, message: messages.SetMemTable, fds: Fds) -> None:
        former = self._memory
        regions = list(zip(message.regions, fds, strict=True))
        await former.prepare(regions)
        self._memory = former.with_regions(regions)
        for reason in self._memory.left_out:
            if reason not in former.left_out:
                log.warning("memory left out device=%s: %s", self._device.name, reason)
        try:
            self._device.set_memory(self._memory)
            for queue in self._queues:
                queue.set_memory(self._memory)
        finally:
            former.release(self._memory)

    async def _set_log_base(self, message: messages.SetLogBase, fds: Fds) -> None:
        fd = ReceivedFd(fds[0].take(), fds[0].closer)  # the thread's
        self._log = await in_own_thread(partial(DirtyLog, fd, message.size, message.offset))
        if self._connection.features & F_LOG_ALL:
            self._memory.track(self._log)

    # Rings

    async def _set_vring_num(self, message: messages.SetVringNum, _: Fds) -> None:
        self._queue(message.index).set_num(message.num)

    async def _set_vring_addr(self, message: messages.SetVringAddr, _: Fds) -> None:
        logged = message.log if message.flags & VRING_F_LOG else None
        address = RingAddress(message.desc, message.avail, message.used, logged)
        self._queue(message.index).set_address(address)
        await self._start(message.index)

    async def _set_vring_base(self, message: messages.SetVringBase, _: Fds) -> None:
        self._queue(message.index).set_base(message.base)

    async def _get_vring_base(self, message: messages.GetVringBase, _: Fds) -> VringState:
        base = await self._stop(message.index)
        self._queue(message.index).forget_kick()  # only another one starts the ring again
        return VringState(message.index, base)

    async def _set_vring_kick(self, message: messages.SetVringKick, fds: Fds) -> None:
        self._queue(message.index).set_kick(_event(fds))
        await self._start(message.index)

    async def _set_vring_call(self, message: messages.SetVringCall, fds: Fds) -> None:
        self._queue(message.index).set_call(_event(fds))

    async def _set_vring_err(self, message: messages.SetVringErr, fds: Fds) -> None:
        self._queue(message.index).set_err(_event(fds))

    async def _set_vring_enable(self, message: messages.SetVringEnable, _: Fds) -> None:
        self._queue(message.index).set_enabled(message.enable)
        if message.enable:
            await self._start(message.index)
        else:
            await self._stop(message.index)

    # The device

    async def _reset_device(self, _: messages.ResetDevice, __: Fds) -> None:
        for index, queue in enumerate(self._queues):
            await self._stop(index)
            queue.set_enabled(False)
            queue.setup.base = 0
        await self._device.reset()

    async def _get_config(self, message: messages.GetConfig, _: Fds) -> ConfigReply:
        # Front-ends ask for the size of their own struct, which may be larger than the device's.
        data = self._device.config()[message.offset : message.offset + message.size]
        data = data.ljust(message.size, b"\0")
        return ConfigReply(message.offset, message.flags, data)

    async def _set_config(self, message: messages.SetConfig, _: Fds) -> None:
        self._device.write_config(message.offset, message.data)

    async def _get_shmem_config(self, _: messages.GetShmemConfig, __: Fds) -> ShmemConfig:
        regions = self._device.shared_memory
        return ShmemConfig(
            tuple(regions.get(shmid, 0) for shmid in range(max(regions, default=-1) + 1))
        )

    async def _set_backend_req_fd(self, _: messages.SetBackendReqFd, fds: Fds) -> None:
        acks = bool(self._connection.protocol_features & ProtocolFeature.REPLY_ACK)
        with ExitStack() as stack:
            socket = StreamSocket.of(fds[0])
            stack.callback(socket.close)
            channel = BackEndChannel(socket, reply_ack=acks)
            if self._back_end is not None:
                self._back_end.cancel()
            self._device.set_back_end_channel(channel)
            self._back_end = self._tasks.create_task(channel.run())
            # A task that is cancelled before it starts does not get to the end of `run`.
            self._back_end.add_done_callback(lambda _: channel.close())
            stack.pop_all()

    async def _gpu_set_socket(self, _: messages.GpuSetSocket, fds: Fds) -> None:
        self._device.set_display_socket(fds[0])


def _event(fds: Fds) -> ReceivedFd | None:
    """Take an eventfd from the list, if there is one; raise PeerError for another file."""
    if not fds:
        return None
    if fds[0].kind is not FileKind.EVENTFD:
        raise PeerError("a descriptor was sent for a ring that is no eventfd")
    return fds.pop(0)
