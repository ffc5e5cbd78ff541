"""SUBMIT_3D in a DMA context: from a packet stream to work for the engine.

Everything is looked up and checked here, before any of it runs; a packet that does not hold ends
the stream where it stands. The packets themselves are `gpu.wire.dma`, the engine is
`memory.engine`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import assert_never

from vgpud.errors import VgpudError
from vgpud.gpu.contexts import Context, Contexts
from vgpud.gpu.errors import InvalidParameter
from vgpud.gpu.quota import Quota
from vgpud.gpu.wire import commands, dma
from vgpud.gpu.wire.protocol import ResourceId
from vgpud.gpu.work import Traffic, Work
from vgpud.memory.engine import Engine
from vgpud.memory.extents import Extents

CRC_SIZE = 4

PACKET_COST = 256
"""Bytes that a packet is reckoned to move beside its own, so that many empty ones are long work
too."""

ROW_COST = 64
"""Bytes that a row is reckoned to move beside its own."""

MEMORY_PER_BYTE = 16
"""Bytes that a stream takes while it waits, for each of its own: packets as objects, buffers."""


class DmaContext:
    """Makes `Work` of command streams."""

    def __init__(
        self, contexts: Contexts, engine: Engine, capset: dma.Capset, quota: Quota
    ) -> None:
        self._contexts = contexts
        self._engine = engine
        self._capset = capset
        self._quota = quota

    def submit(self, command: commands.Submit3D) -> Work:
        """Checks a SUBMIT_3D; the work has the steps before the first bad packet, and what is wrong
        with that one."""
        context = self._contexts.get(command.header.ctx_id)
        charge = self._quota.charge(MEMORY_PER_BYTE * len(command.data))
        stream = _Stream(self._engine)
        refusal = None
        cost = 0
        try:
            for packet in dma.decode(command.data, self._capset.max_packets):
                cost += PACKET_COST + stream.add(packet, self._contexts, context, self._capset)
        except VgpudError as error:
            refusal = error
        except BaseException:
            charge.release()
            raise
        touched = frozenset(stream.buffers)
        return Work(stream.run(), touched, cost, refusal, charge, stream.traffic)


class _Stream:
    """The checked packets of one SUBMIT_3D and the buffers that they are about."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self.packets: list[dma.Packet] = []
        self.buffers: dict[ResourceId, Extents] = {}
        self.traffic = Traffic()

    def add(
        self, packet: dma.Packet, contexts: Contexts, context: Context, capset: dma.Capset
    ) -> int:
        """Takes a packet if it holds, else raises `VgpudError`; returns the bytes it is
        reckoned to move."""
        for resource_id in _resources(packet):
            if resource_id not in self.buffers:
                self.buffers[resource_id] = contexts.attached(context, resource_id).contents()
        moved = self._check(packet)
        if moved > capset.max_blob_size:  # a guest blob can list its pages over and over
            raise InvalidParameter(
                f"a packet moves {moved:#x} bytes, max_blob_size is {capset.max_blob_size:#x}",
            )
        self.packets.append(packet)
        return moved + (ROW_COST * packet.height if isinstance(packet, dma.Blit) else 0)

    def run(self) -> Iterator[None]:
        """Runs the packets, stopping after each and within long ones."""
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
        buffers = self.buffers
        match packet:
            case dma.Nop():
                return 0
            case dma.Fill(resource_id, offset, length):
                buffers[resource_id].check(offset, length)
                return length
            case dma.Copy(src, dst, src_offset, dst_offset, length):
                buffers[src].check(src_offset, length)
                buffers[dst].check(dst_offset, length)
                return length
            case dma.Blit():
                rows, row_bytes = packet.height, packet.row_bytes
                buffers[packet.src].check_rect(
                    packet.src_offset, packet.src_stride, row_bytes, rows
                )
                buffers[packet.dst].check_rect(
                    packet.dst_offset, packet.dst_stride, row_bytes, rows
                )
                return row_bytes * rows
            case dma.Crc32(src, dst, src_offset, length, dst_offset):
                buffers[src].check(src_offset, length)
                buffers[dst].check(dst_offset, CRC_SIZE)
                return length
            case _ as unreachable:
                assert_never(unreachable)


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
