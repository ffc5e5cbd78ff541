"""One of each command, every field with a value of its own: what the tests of the layouts share."""

from __future__ import annotations

from vgpud.gpu.wire.command_codec import Command
from vgpud.gpu.wire.commands import (
    CtxAttachResource,
    CtxCreate,
    CtxDestroy,
    CtxDetachResource,
    GetCapset,
    GetCapsetInfo,
    GetDisplayInfo,
    GetEdid,
    MoveCursor,
    ResourceAssignUuid,
    ResourceAttachBacking,
    ResourceCreate2D,
    ResourceCreate3D,
    ResourceCreateBlob,
    ResourceDetachBacking,
    ResourceFlush,
    ResourceMapBlob,
    ResourceUnmapBlob,
    ResourceUnref,
    SetScanout,
    SetScanoutBlob,
    Submit3D,
    TransferFromHost3D,
    TransferToHost2D,
    TransferToHost3D,
    UpdateCursor,
)
from vgpud.gpu.wire.header import Box, Header, Rect
from vgpud.gpu.wire.mem_entries import mem_entries
from vgpud.gpu.wire.protocol import ContextId, ResourceId, ScanoutId


def header(command: type[Command]) -> Header:
    """A header of a command's type in which no two bytes are alike."""
    return Header(command.command_type, 0xF1F2F3F4, 0x0102030405060708, ContextId(0xC1C2C3C4), 0xD1)


RESOURCE = ResourceId(0xA1A2A3A4)
SCANOUT = ScanoutId(0xB1B2B3B4)
RECT = Rect(0x11121314, 0x21222324, 0x31323334, 0x41424344)
BOX = Box(0x11121314, 0x21222324, 0x31323334, 0x41424344, 0x51525354, 0x61626364)
ENTRIES = mem_entries((0x1122334455667788, 0x99AABBCC), (0x0000FFFF12345000, 0x1000))

# What the driver's header calls each struct and, in the order of our fields, each of its fields.
_RECT = "r.x r.y r.width r.height"
_BOX = "box.x box.y box.z box.w box.h box.d"
_TRANSFER = f"{_BOX} offset resource_id level stride layer_stride"
_PLANES = " ".join(f"{name}[{plane}]" for name in ("strides", "offsets") for plane in range(4))
_CURSOR = "pos.scanout_id pos.x pos.y resource_id hot_x hot_y"

COMMANDS: list[tuple[Command, str, str]] = [
    (GetDisplayInfo(header(GetDisplayInfo)), "ctrl_hdr", ""),
    (GetEdid(header(GetEdid), SCANOUT), "cmd_get_edid", "scanout"),
    (
        ResourceCreate2D(header(ResourceCreate2D), RESOURCE, 67, 0x31323334, 0x41424344),
        "resource_create_2d",
        "resource_id format width height",
    ),
    (ResourceUnref(header(ResourceUnref), RESOURCE), "resource_unref", "resource_id"),
    (
        SetScanout(header(SetScanout), RECT, SCANOUT, RESOURCE),
        "set_scanout",
        f"{_RECT} scanout_id resource_id",
    ),
    (
        ResourceFlush(header(ResourceFlush), RECT, RESOURCE),
        "resource_flush",
        f"{_RECT} resource_id",
    ),
    (
        TransferToHost2D(header(TransferToHost2D), RECT, 0x8182838485868788, RESOURCE),
        "transfer_to_host_2d",
        f"{_RECT} offset resource_id",
    ),
    (
        ResourceAttachBacking(header(ResourceAttachBacking), RESOURCE, ENTRIES),
        "resource_attach_backing",
        "resource_id nr_entries",
    ),
    (
        ResourceDetachBacking(header(ResourceDetachBacking), RESOURCE),
        "resource_detach_backing",
        "resource_id",
    ),
    (GetCapsetInfo(header(GetCapsetInfo), 0x01020304), "get_capset_info", "capset_index"),
    (
        GetCapset(header(GetCapset), 30, 0x01020304),
        "get_capset",
        "capset_id capset_version",
    ),
    (
        ResourceAssignUuid(header(ResourceAssignUuid), RESOURCE),
        "resource_assign_uuid",
        "resource_id",
    ),
    (
        ResourceCreateBlob(
            header(ResourceCreateBlob),
            RESOURCE,
            2,
            5,
            0x7172737475767778,
            0x8182838485868788,
            ENTRIES,
        ),
        "resource_create_blob",
        "resource_id blob_mem blob_flags blob_id size nr_entries",
    ),
    (
        SetScanoutBlob(
            header(SetScanoutBlob),
            RECT,
            SCANOUT,
            RESOURCE,
            0x51525354,
            0x61626364,
            134,
            (0x01, 0x0102, 0x010203, 0x01020304),
            (0x05, 0x0506, 0x050607, 0x05060708),
        ),
        "set_scanout_blob",
        f"{_RECT} scanout_id resource_id width height format {_PLANES}",
    ),
    (
        CtxCreate(header(CtxCreate), 0x01020304, b"a context"),
        "ctx_create",
        "context_init debug_name nlen",
    ),
    (CtxDestroy(header(CtxDestroy)), "ctx_destroy", ""),
    (CtxAttachResource(header(CtxAttachResource), RESOURCE), "ctx_resource", "resource_id"),
    (CtxDetachResource(header(CtxDetachResource), RESOURCE), "ctx_resource", "resource_id"),
    (
        ResourceCreate3D(header(ResourceCreate3D), RESOURCE, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11),
        "resource_create_3d",
        "resource_id target format bind width height depth array_size last_level nr_samples flags",
    ),
    (
        TransferToHost3D(header(TransferToHost3D), BOX, 0x8182838485868788, RESOURCE, 1, 2, 3),
        "transfer_host_3d",
        _TRANSFER,
    ),
    (
        TransferFromHost3D(header(TransferFromHost3D), BOX, 0x81828384858687, RESOURCE, 1, 2, 3),
        "transfer_host_3d",
        _TRANSFER,
    ),
    (Submit3D(header(Submit3D), b"a stream of commands"), "cmd_submit", "size"),
    (
        ResourceMapBlob(header(ResourceMapBlob), RESOURCE, 0x8182838485868788),
        "resource_map_blob",
        "resource_id offset",
    ),
    (
        ResourceUnmapBlob(header(ResourceUnmapBlob), RESOURCE),
        "resource_unmap_blob",
        "resource_id",
    ),
    (
        UpdateCursor(header(UpdateCursor), SCANOUT, 0xFFFFFFF0, 0x21222324, RESOURCE, 7, 8),
        "update_cursor",
        _CURSOR,
    ),
    (
        MoveCursor(header(MoveCursor), SCANOUT, 0xFFFFFFF0, 0x21222324, RESOURCE, 7, 8),
        "update_cursor",
        _CURSOR,
    ),
]

# Commands with something after the struct, and how many bytes of the samples that is.
TAILS: dict[type[Command], int] = {
    ResourceAttachBacking: ENTRIES.nbytes,
    ResourceCreateBlob: ENTRIES.nbytes,
    Submit3D: len(b"a stream of commands"),
}
