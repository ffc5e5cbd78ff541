"""The DMA renderer: contexts of capset 30, whose packets vgpud's own DMA engine executes.

A stream of packets is checked here before any of it runs; the first bad packet ends it. The
packets' format is `gpu.wire.dma`, the engine is `memory.engine`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from functools import partial
from time import perf_counter
from typing import TypeAlias, assert_never

from vgpud.errors import VgpudError, stored
from vgpud.gpu.counters import Counters
from vgpud.gpu.errors import InvalidParameter, InvalidResourceId
from vgpud.gpu.images import Images
from vgpud.gpu.quota import Charge, Quota
from vgpud.gpu.renderer import Capset
from vgpud.gpu.resources import Backing, GuestBlob, Resource
from vgpud.gpu.wire import commands, dma
from vgpud.gpu.wire.protocol import CapsetId, ContextId, ResourceId
from vgpud.gpu.work import Answer, Done, Start, Timeline, Traffic, Work, WorkExecutor
from vgpud.memory.engine import Engine, blit_cost, crc32_cost, order_memory
from vgpud.memory.extents import Extents
from vgpud.memory.steps import Place, cost

SCRATCH = 4 << 20
"""Bytes that the engine may allocate in addition to the quota, to copy between overlapping
buffers."""

PLAIN_TARGETS = (2, 5)
"""RESOURCE_CREATE_3D targets that are plain images: PIPE_TEXTURE_2D and PIPE_TEXTURE_RECT, whose
numbers virgl has from Gallium."""

CRC_SIZE = 4

PACKET_COST = 8_000
"""Nanoseconds that a packet takes in addition to what it moves."""

AT_ONCE = 512
"""Bytes of a stream that is checked at once: a dozen packets or so, or 128 that do nothing, which
takes a fraction of a millisecond."""

CHECKING = 0.0003
"""Seconds for which packets of a longer stream are checked before others are let run."""

MEMORY_PER_BYTE = 16
"""Bytes that a waiting stream takes for each byte of its own: packets as objects, buffers."""

Attached: TypeAlias = dict[ResourceId, Resource]


class DmaRenderer:
    """A `gpu.renderer.Renderer` of DMA contexts, whose blobs are allocated by the device's
    layout."""

    longest_stream = dma.MAX_STREAM
    lost = None
    allocates = False

    def __init__(
        self,
        executor: WorkExecutor,
        images: Images,
        quota: Quota,
        counters: Counters,
        max_blob_size: int,
    ) -> None:
        self._executor = executor
        self._images = images
        self._quota = quota
        self._counters = counters
        self._engine = Engine(SCRATCH)
        self._capset = dma.DmaCapset(dma.CAPSET_VERSION, dma.MAX_PACKETS, max_blob_size)
        self._contexts: dict[ContextId, Attached] = {}
        self.capsets = (Capset(CapsetId.DMA, dma.CAPSET_VERSION, self._capset.pack()),)

    def create_context(self, context: ContextId, capset_id: int, name: bytes) -> None:
        self._contexts[context] = {}

    def destroy_context(self, context: ContextId) -> None:
        del self._contexts[context]

    def attach(self, context: ContextId, resource: Resource) -> None:
        self._contexts[context][resource.id] = resource

    def detach(self, context: ContextId, resource: ResourceId) -> None:
        del self._contexts[context][resource]

    def create_resource(self, command: commands.ResourceCreate3D) -> Resource:
        """Make a resource that is a 2D image: one layer, one level, one sample."""
        layers = (command.depth, command.array_size, command.last_level, max(command.nr_samples, 1))
        if command.target not in PLAIN_TARGETS or layers != (1, 1, 0, 1):
            raise InvalidParameter(
                f"target {command.target}, depth {command.depth}, {command.array_size} layers, "
                f"level {command.last_level}, {command.nr_samples} samples: needs a 3D renderer",
            )
        return self._images.make(command.resource_id, command.format, command.width, command.height)

    async def create_blob(self, context: ContextId, blob_id: int, size: int) -> None:
        return None

    def transfer_to_host(self, command: commands.TransferToHost3D) -> Answer:
        return self._images.transfer_3d(command, to_host=True)

    def transfer_from_host(self, command: commands.TransferFromHost3D) -> Answer:
        return self._images.transfer_3d(command, to_host=False)

    def prepare(self, context: ContextId, ring: int | None, data: bytes) -> Start | None:
        """Check a stream, for the packets before the first bad one to be run.

        The submission ends with the error of the bad packet, if there is one.
        """
        if len(data) > AT_ONCE:
            return None
        stream = self._stream(context, ring, data)
        for _ in stream.check():  # it takes long, or a list has to be resolved
            stream.charge.release()
            return None
        return partial(self._submit, stream)

    async def prepare_long(self, context: ContextId, ring: int | None, data: bytes) -> Start:
        stream = self._stream(context, ring, data)
        try:
            for backing in stream.check():
                if backing is None:
                    await asyncio.sleep(0)
                else:
                    await backing.resolve(self._quota, self._executor)
        except BaseException:
            stream.charge.release()
            raise
        return partial(self._submit, stream)

    def _stream(self, context: ContextId, ring: int | None, data: bytes) -> _PacketStream:
        charge = self._quota.charge(MEMORY_PER_BYTE * len(data))
        attached = self._contexts[context]
        timeline = None if ring is None else (context, ring)
        return _PacketStream(self._engine, self._capset, context, timeline, attached, data, charge)

    def _submit(self, stream: _PacketStream, done: Done) -> None:
        resources = frozenset(stream.buffers)
        work = Work(stream.run(), resources, stream.cost, stream.refusal, stream.charge)
        self._executor.submit(stream.timeline, work, partial(self._done, stream.traffic, done))

    async def quiesce(self) -> None:
        """Do nothing: all work is the executor's, which the device pauses."""

    def resume(self) -> None:
        """Do nothing: the device resumes the executor."""

    def reset(self) -> None:
        self._contexts.clear()

    def close(self) -> None:
        self._contexts.clear()

    def _done(self, traffic: Traffic, done: Done, error: VgpudError | None) -> None:
        self._counters.moved(traffic)
        done(error)


class _PacketStream:
    """The checked packets of one SUBMIT_3D and the buffers that they use."""

    __slots__ = (
        "_attached",
        "_capset",
        "_context",
        "_data",
        "_engine",
        "_ordering",
        "buffers",
        "charge",
        "cost",
        "packets",
        "refusal",
        "timeline",
        "traffic",
    )

    def __init__(
        self,
        engine: Engine,
        capset: dma.DmaCapset,
        context: ContextId,
        timeline: Timeline,
        attached: Attached,
        data: bytes,
        charge: Charge,
    ) -> None:
        self._engine = engine
        self._capset = capset
        self._context = context
        self._attached = attached
        self._data = data
        self._ordering = 0  # bytes that are charged for the order of a copy
        self.timeline = timeline
        self.charge = charge
        self.packets: list[dma.Packet] = []
        self.buffers: dict[ResourceId, Extents] = {}
        self.traffic = Traffic()
        self.cost = 0
        self.refusal: VgpudError | None = None

    def check(self) -> Iterator[Backing | None]:
        """Check the packets before the first bad one, whose error becomes `refusal`.

        Yields None for others to run, and a backing that has to be resolved before the next packet
        is checked.
        """
        try:
            until = perf_counter() + CHECKING
            for packet in dma.decode(self._data, self._capset.max_packets):
                for resource_id in _resources(packet):
                    if resource_id not in self.buffers:
                        resource = self._resource(resource_id)
                        pages = resource.backing if isinstance(resource, GuestBlob) else None
                        if pages is not None and pages.stale:
                            yield pages
                        self.buffers[resource_id] = resource.contents()
                self.cost += PACKET_COST + self._check(packet)
                self.packets.append(packet)
                if perf_counter() >= until:
                    yield None
                    until = perf_counter() + CHECKING
        except VgpudError as error:
            self.refusal = stored(error)  # it waits for the packets before it
        self._data = b""

    def _resource(self, resource_id: ResourceId) -> Resource:
        resource = self._attached.get(resource_id)
        if resource is None:
            raise InvalidResourceId(
                f"resource {resource_id} is not attached to context {self._context}"
            )
        return resource

    def run(self) -> Iterator[None]:
        """Run the packets, stopping after each and within long ones."""
        for packet in self.packets:
            yield from self._run(packet)
            self._count(packet)
            yield

    def _run(self, packet: dma.Packet) -> Iterator[None]:
        buffers, engine = self.buffers, self._engine
        match packet:
            case dma.Nop():
                pass
            case dma.Fill(resource_id, offset, length, pattern):
                yield from engine.fill_steps(buffers[resource_id], offset, length, pattern)
            case dma.Copy(src, dst, src_offset, dst_offset, length):
                yield from engine.copy_steps(
                    buffers[dst], dst_offset, buffers[src], src_offset, length
                )
            case dma.Blit():
                yield from engine.blit_steps(
                    buffers[packet.dst],
                    packet.dst_offset,
                    packet.dst_stride,
                    buffers[packet.src],
                    packet.src_offset,
                    packet.src_stride,
                    packet.row_bytes,
                    packet.height,
                )
            case dma.Crc32(src, dst, src_offset, length, dst_offset):
                crc = yield from engine.crc32_steps(buffers[src], src_offset, length)
                buffers[dst].write(dst_offset, crc.to_bytes(CRC_SIZE, "little"))
            case _ as unreachable:
                assert_never(unreachable)

    def _count(self, packet: dma.Packet) -> None:
        match packet:
            case dma.Nop():
                pass
            case dma.Fill(resource_id, _, length):
                self._wrote(resource_id, length)
            case dma.Copy():
                self._did_read(packet.src, packet.length)
                self._wrote(packet.dst, packet.length)
            case dma.Blit():
                moved = packet.row_bytes * packet.height
                self._did_read(packet.src, moved)
                self._wrote(packet.dst, moved)
            case dma.Crc32():
                self._did_read(packet.src, packet.length)
                self._wrote(packet.dst, CRC_SIZE)
            case _ as unreachable:
                assert_never(unreachable)

    def _did_read(self, resource_id: ResourceId, length: int) -> None:
        if self.buffers[resource_id].access.flush_before_read:
            self.traffic.read += length
        else:
            self.traffic.snooped += length

    def _wrote(self, resource_id: ResourceId, length: int) -> None:
        if self.buffers[resource_id].access.non_temporal_write:
            self.traffic.written += length
        else:
            self.traffic.snooped += length

    def _check(self, packet: dma.Packet) -> int:
        """Check a packet; return about how many nanoseconds it takes."""
        buffers = self.buffers
        match packet:
            case dma.Nop():
                return 0
            case dma.Fill(resource_id, offset, length):
                buffers[resource_id].check(offset, length)
                self._check_size(length)
                return cost(length, 1, Place(buffers[resource_id], offset, length))
            case dma.Copy(src, dst, src_offset, dst_offset, length):
                buffers[src].check(src_offset, length)
                buffers[dst].check(dst_offset, length)
                to = Place(buffers[dst], dst_offset, length)
                source = Place(buffers[src], src_offset, length)
                return self._check_copy(to, source, length, 1)
            case dma.Blit():
                rows, row_bytes = packet.height, packet.row_bytes
                source = Place(buffers[packet.src], packet.src_offset, packet.src_stride)
                to = Place(buffers[packet.dst], packet.dst_offset, packet.dst_stride)
                for buffer, offset, stride in (source, to):
                    buffer.check_rect(offset, stride, row_bytes, rows)
                return self._check_copy(to, source, row_bytes, rows)
            case dma.Crc32(src, dst, src_offset, length, dst_offset):
                buffers[src].check(src_offset, length)
                buffers[dst].check(dst_offset, CRC_SIZE)
                self._check_size(length)
                return crc32_cost(Place(buffers[src], src_offset, length), length)
            case _ as unreachable:
                assert_never(unreachable)

    def _check_copy(self, to: Place, source: Place, row_bytes: int, rows: int) -> int:
        """Check the size of a copy, and charge what it takes to find its order; packets run one
        after the other, so the most that one takes."""
        self._check_size(row_bytes * rows)
        ordering = order_memory(to, source, row_bytes, rows)
        if ordering > self._ordering:
            self.charge.grow(ordering - self._ordering)
            self._ordering = ordering
        return blit_cost(to, source, row_bytes, rows)

    def _check_size(self, moved: int) -> None:
        """Raise `InvalidParameter` for a packet that moves too much: a guest blob can list the same
        pages many times."""
        limit = self._capset.max_blob_size
        if moved > limit:
            raise InvalidParameter(f"a packet moves {moved:#x} bytes, max_blob_size is {limit:#x}")


def _resources(packet: dma.Packet) -> tuple[ResourceId, ...]:
    match packet:
        case dma.Nop():
            return ()
        case dma.Fill(resource_id):
            return (resource_id,)
        case dma.Copy(src, dst) | dma.Blit(src, dst) | dma.Crc32(src, dst):
            return (src, dst)
        case _ as unreachable:
            assert_never(unreachable)
