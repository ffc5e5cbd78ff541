"""SUBMIT_3D in a DMA context: from a packet stream to work for the engine.

Everything is looked up and checked here, before any of it runs; a packet that does not hold ends
the stream where it stands. The packets themselves are `wire.gpu.dma`, the engine is `host.dma`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import assert_never

import numpy as np

from vgpud.device.contexts import Context, Contexts
from vgpud.device.work import Work
from vgpud.errors import GuestError
from vgpud.host.dma import Engine
from vgpud.host.extents import Extents
from vgpud.wire.gpu import commands, dma
from vgpud.wire.gpu.protocol import ResourceId, ResponseType

CRC_SIZE = 4
PACKET_COST = 256
"""Bytes that a packet is reckoned to move beside its own, so that many empty ones are long work
too."""


class DmaContext:
    """Makes `Work` of command streams."""

    def __init__(self, contexts: Contexts, engine: Engine, capset: dma.Capset) -> None:
        self._contexts = contexts
        self._engine = engine
        self._capset = capset

    def submit(self, command: commands.Submit3D) -> Work:
        """Checks a SUBMIT_3D; the work has the steps before the first bad packet, and what is wrong
        with that one."""
        context = self._contexts.get(command.header.ctx_id)
        steps: list[Callable[[], None]] = []
        touched: set[ResourceId] = set()
        cost = 0
        refusal = None
        try:
            for packet in dma.decode(command.data, self._capset.max_packets):
                step, resources, moved = self._prepare(context, packet)
                most = self._capset.max_blob_size
                if moved > most:  # a guest blob can list its pages over and over
                    raise GuestError(
                        ResponseType.ERR_INVALID_PARAMETER,
                        f"a packet that moves {moved:#x} bytes, max_blob_size is {most:#x}",
                    )
                steps.append(step)
                touched.update(resources)
                cost += moved + PACKET_COST
        except GuestError as error:
            refusal = error
        return Work(tuple(steps), frozenset(touched), cost, refusal)

    def _prepare(
        self, context: Context, packet: dma.Packet
    ) -> tuple[Callable[[], None], tuple[ResourceId, ...], int]:
        engine = self._engine
        match packet:
            case dma.Nop():
                return _nothing, (), 0
            case dma.Fill(resource_id, offset, length, pattern):
                dst = self._contents(context, resource_id)
                dst.check(offset, length)
                return partial(engine.fill, dst, offset, length, pattern), (resource_id,), length
            case dma.Copy(src_id, dst_id, src_offset, dst_offset, length):
                src, dst = self._contents(context, src_id), self._contents(context, dst_id)
                src.check(src_offset, length)
                dst.check(dst_offset, length)
                return (
                    partial(engine.copy, dst, dst_offset, src, src_offset, length),
                    (src_id, dst_id),
                    length,
                )
            case dma.Blit():
                src = self._contents(context, packet.src)
                dst = self._contents(context, packet.dst)
                rows, row_bytes = packet.height, packet.row_bytes
                src.check_rect(packet.src_offset, packet.src_stride, row_bytes, rows)
                dst.check_rect(packet.dst_offset, packet.dst_stride, row_bytes, rows)
                step = partial(
                    engine.blit,
                    dst,
                    packet.dst_offset,
                    packet.dst_stride,
                    src,
                    packet.src_offset,
                    packet.src_stride,
                    row_bytes=row_bytes,
                    rows=rows,
                )
                return step, (packet.src, packet.dst), row_bytes * rows
            case dma.Crc32(src_id, dst_id, src_offset, length, dst_offset):
                src, dst = self._contents(context, src_id), self._contents(context, dst_id)
                src.check(src_offset, length)
                dst.check(dst_offset, CRC_SIZE)
                return (
                    partial(self._crc32, src, src_offset, length, dst, dst_offset),
                    (src_id, dst_id),
                    length,
                )
            case _ as unreachable:
                assert_never(unreachable)

    def _contents(self, context: Context, resource_id: ResourceId) -> Extents:
        return self._contexts.attached(context, resource_id).contents()

    def _crc32(
        self, src: Extents, src_offset: int, length: int, dst: Extents, dst_offset: int
    ) -> None:
        value = self._engine.crc32(src, src_offset, length)
        crc = Extents.from_array(np.frombuffer(value.to_bytes(CRC_SIZE, "little"), np.uint8))
        self._engine.copy(dst, dst_offset, crc, 0, CRC_SIZE)


def _nothing() -> None:
    """What a NOP does."""
