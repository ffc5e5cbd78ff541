"""Commands to and from bytes: one table that says how each struct is laid out.

Owns `decode` and `encode`, and offers the values of `vgpud.gpu.wire.commands` beside them. Decoding
is on every command's way (tens of thousands a second): hence a table looked up by type, not a chain
of cases.

Specification: virtio 1.3, 5.7.6.7 to 5.7.6.10.
"""

from __future__ import annotations

from dataclasses import astuple, dataclass, fields
from struct import Struct
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import numpy as np

from vgpud.gpu.errors import InvalidParameter, Unspecified
from vgpud.gpu.wire.commands import (
    MEM_ENTRY,
    Command,
    CtxAttachResource,
    CtxCreate,
    CtxDestroy,
    CtxDetachResource,
    GetCapset,
    GetCapsetInfo,
    GetDisplayInfo,
    GetEdid,
    MemEntries,
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
from vgpud.gpu.wire.header import HEADER_SIZE, Box, Bytes, Header, Rect, decode_header
from vgpud.gpu.wire.protocol import CommandType

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = [
    "DEBUG_NAME_SIZE",
    "MEM_ENTRY",
    "Box",
    "Command",
    "CtxAttachResource",
    "CtxCreate",
    "CtxDestroy",
    "CtxDetachResource",
    "GetCapset",
    "GetCapsetInfo",
    "GetDisplayInfo",
    "GetEdid",
    "Header",
    "MemEntries",
    "MoveCursor",
    "Rect",
    "ResourceAssignUuid",
    "ResourceAttachBacking",
    "ResourceCreate2D",
    "ResourceCreate3D",
    "ResourceCreateBlob",
    "ResourceDetachBacking",
    "ResourceFlush",
    "ResourceMapBlob",
    "ResourceUnmapBlob",
    "ResourceUnref",
    "SetScanout",
    "SetScanoutBlob",
    "Submit3D",
    "TransferFromHost3D",
    "TransferToHost2D",
    "TransferToHost3D",
    "UpdateCursor",
    "command_type",
    "decode",
    "decode_body",
    "decode_header",
    "encode",
    "mem_entries",
]

DEBUG_NAME_SIZE: Final = 64
"""Bytes of CTX_CREATE's `debug_name`."""

_Fields: TypeAlias = tuple[Any, ...]  # what struct unpacks and packs: ints, and the debug name


@dataclass(frozen=True, slots=True)
class _Wire:
    """How one command's struct, after the header, becomes a value and comes from it."""

    kind: CommandType
    command: type[Command]
    layout: Struct
    build: Callable[[Header, _Fields, Bytes], Command]
    fields: Callable[[Any], _Fields]  # Any: the command class beside it, by construction
    tail: Callable[[Any], bytes]


def decode(request: Bytes) -> Command:
    """Decode one request of the control or cursor queue; bytes after the struct are ignored.

    Raises `Unspecified` if the request is short or of no known type, `InvalidParameter` if it
    counts more entries or bytes than it brings.
    """
    header = decode_header(request)
    if header is None:
        raise Unspecified(f"request of {len(request)} bytes, a header is {HEADER_SIZE}")
    return decode_body(header, request)


def decode_body(header: Header, request: Bytes) -> Command:
    """Decode a request whose header has been read already; as `decode` otherwise."""
    wire = _BY_TYPE.get(header.type)
    if wire is None:
        raise Unspecified(f"unknown command {header.type:#06x}")
    layout = wire.layout
    if len(request) < HEADER_SIZE + layout.size:
        raise Unspecified(
            f"{wire.kind.name}: request of {len(request)} bytes, "
            f"the struct is {HEADER_SIZE + layout.size}",
        )
    return wire.build(header, layout.unpack_from(request, HEADER_SIZE), request)


def encode(command: Command) -> bytes:
    """Encode a command as a driver would.

    ValueError if its header is of another command's type, or a debug name is too long.
    """
    wire = _BY_CLASS[type(command)]
    if command.header.type != wire.kind:
        raise ValueError(f"{wire.command.__name__} with a header of type {command.header.type:#x}")
    return command.header.pack() + wire.layout.pack(*wire.fields(command)) + wire.tail(command)


def command_type(command: type[Command]) -> CommandType:
    """Return the type that a command class has on the wire."""
    return _BY_CLASS[command].kind


def mem_entries(*pieces: tuple[int, int]) -> MemEntries:
    """Make memory entries of (guest-physical address, length in bytes) pairs."""
    entries = np.array([(addr, length, 0) for addr, length in pieces], dtype=MEM_ENTRY)
    entries.flags.writeable = False
    return entries


def _flat(kind: CommandType, command: type[Command], layout: str) -> _Wire:
    """Lay out a command whose fields are numbers, one after the other."""
    names = [field.name for field in fields(command) if field.name != "header"]
    make: Callable[..., Command] = command

    def build(header: Header, values: _Fields, _request: Bytes) -> Command:
        return make(header, *values)

    def flatten(value: object) -> _Fields:
        return tuple(getattr(value, name) for name in names)

    return _Wire(kind, command, Struct("<" + layout), build, flatten, _no_tail)


def _shaped(kind: CommandType, command: type[Command], shape: type[Rect | Box], rest: str) -> _Wire:
    """Lay out a command that begins with a rectangle or a box and goes on with numbers."""
    name, *names = [field.name for field in fields(command) if field.name != "header"]
    count = len(fields(shape))
    make: Callable[..., Command] = command

    def build(header: Header, values: _Fields, _request: Bytes) -> Command:
        return make(header, shape(*values[:count]), *values[count:])

    def build_with_rect(header: Header, values: _Fields, _request: Bytes) -> Command:
        x, y, width, height, first, second = values  # two slices less
        return make(header, Rect(x, y, width, height), first, second)

    def build_with_rect_only(header: Header, values: _Fields, _request: Bytes) -> Command:
        x, y, width, height, only = values
        return make(header, Rect(x, y, width, height), only)

    def flatten(value: object) -> _Fields:
        return (*astuple(getattr(value, name)), *(getattr(value, name) for name in names))

    quick = {1: build_with_rect_only, 2: build_with_rect} if shape is Rect else {}
    layout = Struct(f"<{count}I{rest}")
    return _Wire(kind, command, layout, quick.get(len(names), build), flatten, _no_tail)


def _no_tail(_command: Command) -> bytes:
    return b""


def _read_entries(command: CommandType, count: int, request: Bytes, offset: int) -> MemEntries:
    """Copy `count` entries at `offset`, so that nothing can change them between check and use."""
    room = (len(request) - offset) // MEM_ENTRY.itemsize
    if count > room:
        raise InvalidParameter(
            f"{command.name}: {count} memory entries counted, {room} brought",
        )
    end = offset + count * MEM_ENTRY.itemsize
    return np.frombuffer(bytes(request[offset:end]), MEM_ENTRY)


def _entries_tail(command: ResourceAttachBacking | ResourceCreateBlob) -> bytes:
    return command.entries.tobytes()


_ATTACH_BACKING = Struct("<II")  # resource_id, nr_entries


def _build_attach_backing(header: Header, values: _Fields, request: Bytes) -> Command:
    resource_id, count = values
    offset = HEADER_SIZE + _ATTACH_BACKING.size
    entries = _read_entries(CommandType.RESOURCE_ATTACH_BACKING, count, request, offset)
    return ResourceAttachBacking(header, resource_id, entries)


def _attach_backing_fields(command: ResourceAttachBacking) -> _Fields:
    return (command.resource_id, len(command.entries))


_CREATE_BLOB = Struct("<IIIIQQ")  # resource_id, blob_mem, blob_flags, nr_entries, blob_id, size


def _build_create_blob(header: Header, values: _Fields, request: Bytes) -> Command:
    resource_id, blob_mem, blob_flags, count, blob_id, size = values
    offset = HEADER_SIZE + _CREATE_BLOB.size
    entries = _read_entries(CommandType.RESOURCE_CREATE_BLOB, count, request, offset)
    return ResourceCreateBlob(header, resource_id, blob_mem, blob_flags, blob_id, size, entries)


def _create_blob_fields(command: ResourceCreateBlob) -> _Fields:
    return (
        command.resource_id,
        command.blob_mem,
        command.blob_flags,
        len(command.entries),
        command.blob_id,
        command.size,
    )


def _build_set_scanout_blob(header: Header, values: _Fields, _request: Bytes) -> Command:
    scanout_id, resource_id, width, height, pixel_format = values[4:9]
    return SetScanoutBlob(
        header,
        Rect(*values[:4]),
        scanout_id,
        resource_id,
        width,
        height,
        pixel_format,
        values[9:13],
        values[13:17],
    )


def _set_scanout_blob_fields(command: SetScanoutBlob) -> _Fields:
    return (
        *astuple(command.rect),
        command.scanout_id,
        command.resource_id,
        command.width,
        command.height,
        command.format,
        *command.strides,
        *command.offsets,
    )


def _build_ctx_create(header: Header, values: _Fields, _request: Bytes) -> Command:
    # The name is for logs: a length beyond its 64 bytes means no more than all of them.
    nlen, context_init, debug_name = values
    return CtxCreate(header, context_init, debug_name[:nlen])


def _ctx_create_fields(command: CtxCreate) -> _Fields:
    if len(command.debug_name) > DEBUG_NAME_SIZE:
        raise ValueError(f"a debug name of {len(command.debug_name)} bytes")
    return (len(command.debug_name), command.context_init, command.debug_name)


_SUBMIT_3D = Struct("<I4x")  # size


def _build_submit_3d(header: Header, values: _Fields, request: Bytes) -> Command:
    (size,) = values
    start = HEADER_SIZE + _SUBMIT_3D.size
    if size > len(request) - start:
        raise InvalidParameter(
            f"SUBMIT_3D: {size} bytes counted, {len(request) - start} brought",
        )
    return Submit3D(header, bytes(request[start : start + size]))


def _submit_3d_fields(command: Submit3D) -> _Fields:
    return (len(command.data),)


def _submit_3d_tail(command: Submit3D) -> bytes:
    return command.data


# fmt: off
_TABLE: Final = (
    _flat(CommandType.GET_DISPLAY_INFO, GetDisplayInfo, ""),
    _flat(CommandType.RESOURCE_CREATE_2D, ResourceCreate2D, "IIII"),
    _flat(CommandType.RESOURCE_UNREF, ResourceUnref, "I4x"),
    _shaped(CommandType.SET_SCANOUT, SetScanout, Rect, "II"),
    _shaped(CommandType.RESOURCE_FLUSH, ResourceFlush, Rect, "I4x"),
    _shaped(CommandType.TRANSFER_TO_HOST_2D, TransferToHost2D, Rect, "QI4x"),
    _Wire(CommandType.RESOURCE_ATTACH_BACKING, ResourceAttachBacking, _ATTACH_BACKING,
          _build_attach_backing, _attach_backing_fields, _entries_tail),
    _flat(CommandType.RESOURCE_DETACH_BACKING, ResourceDetachBacking, "I4x"),
    _flat(CommandType.GET_CAPSET_INFO, GetCapsetInfo, "I4x"),
    _flat(CommandType.GET_CAPSET, GetCapset, "II"),
    _flat(CommandType.GET_EDID, GetEdid, "I4x"),
    _flat(CommandType.RESOURCE_ASSIGN_UUID, ResourceAssignUuid, "I4x"),
    _Wire(CommandType.RESOURCE_CREATE_BLOB, ResourceCreateBlob, _CREATE_BLOB,
          _build_create_blob, _create_blob_fields, _entries_tail),
    _Wire(CommandType.SET_SCANOUT_BLOB, SetScanoutBlob, Struct("<4IIIIII4x4I4I"),
          _build_set_scanout_blob, _set_scanout_blob_fields, _no_tail),

    _Wire(CommandType.CTX_CREATE, CtxCreate, Struct(f"<II{DEBUG_NAME_SIZE}s"),
          _build_ctx_create, _ctx_create_fields, _no_tail),
    _flat(CommandType.CTX_DESTROY, CtxDestroy, ""),
    _flat(CommandType.CTX_ATTACH_RESOURCE, CtxAttachResource, "I4x"),
    _flat(CommandType.CTX_DETACH_RESOURCE, CtxDetachResource, "I4x"),
    _flat(CommandType.RESOURCE_CREATE_3D, ResourceCreate3D, "11I4x"),
    _shaped(CommandType.TRANSFER_TO_HOST_3D, TransferToHost3D, Box, "QIIII"),
    _shaped(CommandType.TRANSFER_FROM_HOST_3D, TransferFromHost3D, Box, "QIIII"),
    _Wire(CommandType.SUBMIT_3D, Submit3D, _SUBMIT_3D,
          _build_submit_3d, _submit_3d_fields, _submit_3d_tail),
    _flat(CommandType.RESOURCE_MAP_BLOB, ResourceMapBlob, "I4xQ"),
    _flat(CommandType.RESOURCE_UNMAP_BLOB, ResourceUnmapBlob, "I4x"),

    _flat(CommandType.UPDATE_CURSOR, UpdateCursor, "III4xIII4x"),
    _flat(CommandType.MOVE_CURSOR, MoveCursor, "III4xIII4x"),
)
# fmt: on

_BY_TYPE: Final[dict[int, _Wire]] = {int(wire.kind): wire for wire in _TABLE}
_BY_CLASS: Final[dict[type[Command], _Wire]] = {wire.command: wire for wire in _TABLE}
