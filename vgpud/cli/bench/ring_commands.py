"""The commands of `vgpud bench ring`: those that set up its resources, and those that are timed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from vgpud.gpu.wire import commands as c
from vgpud.gpu.wire import dma
from vgpud.gpu.wire.command_codec import Command
from vgpud.gpu.wire.header import Box, Header, Rect
from vgpud.gpu.wire.mem_entries import mem_entries
from vgpud.gpu.wire.protocol import (
    CONTROL_QUEUE,
    CURSOR_QUEUE,
    BlobFlag,
    BlobMem,
    CapsetId,
    CommandType,
    ContextId,
    Flag,
    Format,
    ResourceId,
    ScanoutId,
)
from vgpud.uapi.page import PAGE_SIZE

WIDTH: Final = 1280
HEIGHT: Final = 800
IMAGE_BYTES: Final = WIDTH * HEIGHT * 4
COPY_SIZE: Final = 8 << 20
COPIES: Final = 2
"""Copies that are pending at any time, so that the ring that copies is never idle."""

_IMAGE = ResourceId(1)
_SMALL = ResourceId(2)
_SOURCE = ResourceId(3)
_TARGET = ResourceId(4)
_CYCLED = ResourceId(5)
_CONTEXT = ContextId(1)
_FIRST_RING, _SECOND_RING = 1, 2
_NO_ENTRIES = mem_entries()


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of command, and the commands of a lap; their number is a power of two."""

    name: str
    queue: int
    commands: tuple[Command, ...]


def prepare(backing: int) -> list[Command]:
    """Return the commands that create an image, a context and blobs.

    The image's backing begins at the guest-physical address `backing`.
    """
    entries = mem_entries((backing, IMAGE_BYTES))
    fixed: list[Command] = [
        c.ResourceCreate2D(
            Header(CommandType.RESOURCE_CREATE_2D), _IMAGE, Format.B8G8R8X8_UNORM, WIDTH, HEIGHT
        ),
        c.ResourceAttachBacking(Header(CommandType.RESOURCE_ATTACH_BACKING), _IMAGE, entries),
        c.CtxCreate(_in_context(CommandType.CTX_CREATE), CapsetId.DMA, b"bench"),
    ]
    for resource, size in ((_SMALL, PAGE_SIZE), (_SOURCE, COPY_SIZE), (_TARGET, COPY_SIZE)):
        fixed.append(_create(resource, size))
        attach = _in_context(CommandType.CTX_ATTACH_RESOURCE)
        fixed.append(c.CtxAttachResource(attach, resource))
    return fixed


def concurrent_copies() -> list[Command]:
    """Return the long fenced copies, on a ring of their own."""
    packet = dma.Copy(_SOURCE, _TARGET, 0, 0, COPY_SIZE)
    return [_submit(packet, _SECOND_RING)] * COPIES


def _in_context(kind: CommandType) -> Header:
    return Header(kind, ctx_id=_CONTEXT)


def _create(resource: ResourceId, size: int) -> Command:
    return c.ResourceCreateBlob(
        _in_context(CommandType.RESOURCE_CREATE_BLOB),
        resource,
        BlobMem.HOST3D,
        BlobFlag.USE_MAPPABLE,
        0,
        size,
        _NO_ENTRIES,
    )


def _submit(packet: dma.Packet, ring: int) -> Command:
    flags = Flag.FENCE | Flag.INFO_RING_IDX
    header = Header(CommandType.SUBMIT_3D, flags, 1, _CONTEXT, ring)
    return c.Submit3D(header, dma.encode([packet]))


FENCED: Final = _submit(dma.Fill(_SMALL, 0, 64, 0x12345678), _FIRST_RING)
"""A submission with a fence, like an execbuffer, with so little work that it hardly counts."""

_RECT = Rect(0, 0, 16, 1)
_CURSOR = (ScanoutId(0), 100, 100)
_MAP_AT: Final = 1 << 20

KINDS: Final = (
    Kind(
        "TRANSFER_TO_HOST_2D 16x1",
        CONTROL_QUEUE,
        (c.TransferToHost2D(Header(CommandType.TRANSFER_TO_HOST_2D), _RECT, 0, _IMAGE),),
    ),
    Kind(
        "TRANSFER_TO_HOST_2D 64x64",
        CONTROL_QUEUE,
        (
            c.TransferToHost2D(
                Header(CommandType.TRANSFER_TO_HOST_2D), Rect(0, 0, 64, 64), 0, _IMAGE
            ),
        ),
    ),
    Kind(
        "TRANSFER_TO_HOST_3D 16x1",
        CONTROL_QUEUE,
        (
            c.TransferToHost3D(
                Header(CommandType.TRANSFER_TO_HOST_3D), Box(0, 0, 0, 16, 1, 1), 0, _IMAGE, 0, 0, 0
            ),
        ),
    ),
    Kind(
        "RESOURCE_FLUSH",
        CONTROL_QUEUE,
        (c.ResourceFlush(Header(CommandType.RESOURCE_FLUSH), _RECT, _IMAGE),),
    ),
    Kind(
        "SET_SCANOUT",
        CONTROL_QUEUE,
        (
            c.SetScanout(
                Header(CommandType.SET_SCANOUT), Rect(0, 0, WIDTH, HEIGHT), ScanoutId(0), _IMAGE
            ),
        ),
    ),
    Kind("SUBMIT_3D, fenced", CONTROL_QUEUE, (FENCED,)),
    Kind(
        "blob made, mapped, freed: 4",
        CONTROL_QUEUE,
        (
            _create(_CYCLED, PAGE_SIZE),
            c.ResourceMapBlob(Header(CommandType.RESOURCE_MAP_BLOB), _CYCLED, _MAP_AT),
            c.ResourceUnmapBlob(Header(CommandType.RESOURCE_UNMAP_BLOB), _CYCLED),
            c.ResourceUnref(Header(CommandType.RESOURCE_UNREF), _CYCLED),
        ),
    ),
    Kind("MOVE_CURSOR", CURSOR_QUEUE, (c.MoveCursor(Header(CommandType.MOVE_CURSOR), *_CURSOR),)),
)
