"""Commands as a driver writes them: short to say, with the right header each."""

from __future__ import annotations

from vgpud.gpu.wire import commands, dma
from vgpud.gpu.wire.command_codec import Command
from vgpud.gpu.wire.header import Box, Header, Rect
from vgpud.gpu.wire.mem_entries import mem_entries
from vgpud.gpu.wire.protocol import BlobFlag, BlobMem, CapsetId, ContextId, Format, ResourceId
from vgpud.gpu.wire.protocol import ScanoutId as Scanout

MAPPABLE = int(BlobFlag.USE_MAPPABLE)
BGRX = Format.B8G8R8X8_UNORM
CTX = 1


def header(kind: type[Command], ctx: int = 0) -> Header:
    return Header(kind.command_type, ctx_id=ContextId(ctx))


def display_info() -> Command:
    return commands.GetDisplayInfo(header(commands.GetDisplayInfo))


def get_edid(scanout: int) -> Command:
    return commands.GetEdid(header(commands.GetEdid), Scanout(scanout))


def create_2d(resource: int, width: int, height: int, pixel_format: int = BGRX) -> Command:
    kind = commands.ResourceCreate2D
    return kind(header(kind), ResourceId(resource), pixel_format, width, height)


def create_3d(
    resource: int, width: int, height: int, *, target: int = 2, depth: int = 1, layers: int = 1
) -> Command:
    kind = commands.ResourceCreate3D
    return kind(
        header(kind), ResourceId(resource), target, BGRX, 0, width, height, depth, layers, 0, 0, 0
    )


def unref(resource: int) -> Command:
    return commands.ResourceUnref(header(commands.ResourceUnref), ResourceId(resource))


def attach_backing(resource: int, *pieces: tuple[int, int]) -> Command:
    kind = commands.ResourceAttachBacking
    return kind(header(kind), ResourceId(resource), mem_entries(*pieces))


def detach_backing(resource: int) -> Command:
    kind = commands.ResourceDetachBacking
    return kind(header(kind), ResourceId(resource))


def transfer(resource: int, rect: Rect, offset: int = 0) -> Command:
    kind = commands.TransferToHost2D
    return kind(header(kind), rect, offset, ResourceId(resource))


def transfer_3d(
    resource: int, box: Box, *, offset: int = 0, stride: int = 0, level: int = 0
) -> Command:
    kind = commands.TransferToHost3D
    return kind(header(kind), box, offset, ResourceId(resource), level, stride, 0)


def transfer_back(resource: int, box: Box, *, offset: int = 0, stride: int = 0) -> Command:
    kind = commands.TransferFromHost3D
    return kind(header(kind), box, offset, ResourceId(resource), 0, stride, 0)


def set_scanout(scanout: int, resource: int, rect: Rect) -> Command:
    kind = commands.SetScanout
    return kind(header(kind), rect, Scanout(scanout), ResourceId(resource))


def set_scanout_blob(
    scanout: int,
    resource: int,
    rect: Rect,
    size: tuple[int, int],
    *,
    stride: int,
    offset: int = 0,
    pixel_format: int = BGRX,
) -> Command:
    kind = commands.SetScanoutBlob
    return kind(
        header(kind),
        rect,
        Scanout(scanout),
        ResourceId(resource),
        *size,
        pixel_format,
        (stride, 0, 0, 0),
        (offset, 0, 0, 0),
    )


def flush(resource: int, rect: Rect) -> Command:
    return commands.ResourceFlush(header(commands.ResourceFlush), rect, ResourceId(resource))


def assign_uuid(resource: int) -> Command:
    return commands.ResourceAssignUuid(header(commands.ResourceAssignUuid), ResourceId(resource))


def update_cursor(
    scanout: int, resource: int, x: int = 0, y: int = 0, hot_x: int = 0, hot_y: int = 0
) -> Command:
    kind = commands.UpdateCursor
    return kind(header(kind), Scanout(scanout), x, y, ResourceId(resource), hot_x, hot_y)


def move_cursor(scanout: int, x: int, y: int, resource: int = 1) -> Command:
    kind = commands.MoveCursor
    return kind(header(kind), Scanout(scanout), x, y, ResourceId(resource))


def ctx_create(ctx: int = CTX, context_init: int = CapsetId.DMA) -> Command:
    return commands.CtxCreate(header(commands.CtxCreate, ctx), context_init, b"test")


def ctx_destroy(ctx: int = CTX) -> Command:
    return commands.CtxDestroy(header(commands.CtxDestroy, ctx))


def ctx_attach(resource: int, ctx: int = CTX) -> Command:
    kind = commands.CtxAttachResource
    return kind(header(kind, ctx), ResourceId(resource))


def ctx_detach(resource: int, ctx: int = CTX) -> Command:
    kind = commands.CtxDetachResource
    return kind(header(kind, ctx), ResourceId(resource))


def capset_info(index: int) -> Command:
    return commands.GetCapsetInfo(header(commands.GetCapsetInfo), index)


def get_capset(capset: int, version: int) -> Command:
    return commands.GetCapset(header(commands.GetCapset), capset, version)


def create_blob(
    resource: int,
    size: int,
    mem: int = BlobMem.HOST3D,
    *pieces: tuple[int, int],
    flags: int = MAPPABLE,
    ctx: int = CTX,
) -> Command:
    kind = commands.ResourceCreateBlob
    return kind(header(kind, ctx), ResourceId(resource), mem, flags, 0, size, mem_entries(*pieces))


def guest_blob(resource: int, *pieces: tuple[int, int], size: int | None = None) -> Command:
    total = sum(length for _, length in pieces) if size is None else size
    return create_blob(resource, total, BlobMem.GUEST, *pieces, flags=0, ctx=0)


def map_blob(resource: int, offset: int) -> Command:
    kind = commands.ResourceMapBlob
    return kind(header(kind), ResourceId(resource), offset)


def unmap_blob(resource: int) -> Command:
    return commands.ResourceUnmapBlob(header(commands.ResourceUnmapBlob), ResourceId(resource))


def submit(*packets: dma.Packet, ctx: int = CTX, tail: bytes = b"") -> Command:
    return commands.Submit3D(header(commands.Submit3D, ctx), dma.encode(packets) + tail)


def fill(resource: int, offset: int, length: int, pattern: int) -> dma.Packet:
    return dma.Fill(ResourceId(resource), offset, length, pattern)


def copy(src: int, dst: int, src_offset: int, dst_offset: int, length: int) -> dma.Packet:
    return dma.Copy(ResourceId(src), ResourceId(dst), src_offset, dst_offset, length)


def blit(src: int, dst: int, cpp: int, *more: int) -> dma.Packet:
    return dma.Blit(ResourceId(src), ResourceId(dst), cpp, *more)


def crc32(src: int, dst: int, src_offset: int, length: int, dst_offset: int) -> dma.Packet:
    return dma.Crc32(ResourceId(src), ResourceId(dst), src_offset, length, dst_offset)
