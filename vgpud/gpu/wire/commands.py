"""Every command a driver can put on the control or the cursor queue, as values with their layouts.

Fields are in the order of the wire and hold what was sent, unchecked: the device checks formats,
ids and rectangles. Counts are left out, since the data that they count is a field.
`vgpud.gpu.wire.command_codec` says what a declaration means.

Specification: virtio 1.3, 5.7.6.8 "controlq (2d)", 5.7.6.9 "controlq (3d)", 5.7.6.10 "cursorq".
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Self

from vgpud.gpu.errors import InvalidParameter
from vgpud.gpu.wire.command_codec import Command, CommandWithEntries, Values, command
from vgpud.gpu.wire.header import Box, Bytes, Header, Rect
from vgpud.gpu.wire.mem_entries import MemEntries
from vgpud.gpu.wire.protocol import (
    CONTEXT_INIT_CAPSET_ID_MASK,
    NO_RESOURCE,
    CommandType,
    ResourceId,
    ScanoutId,
)
from vgpud.gpu.wire.value import value

DEBUG_NAME_SIZE: Final = 64
"""Bytes of CTX_CREATE's `debug_name`."""

# 5.7.6.8 controlq (2d)


@command(CommandType.GET_DISPLAY_INFO)
@value
class GetDisplayInfo(Command):
    """Ask for the outputs and their preferred sizes."""

    header: Header


@command(CommandType.GET_EDID, "I4x")
@value
class GetEdid(Command):
    """Ask for the EDID of an output."""

    header: Header
    scanout: ScanoutId


@command(CommandType.RESOURCE_CREATE_2D, "IIII")
@value
class ResourceCreate2D(Command):
    """Create an image on the host; sizes in pixels, `format` a `protocol.Format` if it is valid."""

    header: Header
    resource_id: ResourceId
    format: int
    width: int
    height: int


@command(CommandType.RESOURCE_UNREF, "I4x")
@value
class ResourceUnref(Command):
    """Destroy a resource."""

    header: Header
    resource_id: ResourceId


@command(CommandType.SET_SCANOUT, "II", shape=Rect)
@value
class SetScanout(Command):
    """Show a rectangle of a resource on an output; resource 0 turns the output off."""

    header: Header
    rect: Rect
    scanout_id: ScanoutId
    resource_id: ResourceId


@command(CommandType.RESOURCE_FLUSH, "I4x", shape=Rect)
@value
class ResourceFlush(Command):
    """Bring a rectangle of a resource to the outputs that show it."""

    header: Header
    rect: Rect
    resource_id: ResourceId


@command(CommandType.TRANSFER_TO_HOST_2D, "QI4x", shape=Rect)
@value
class TransferToHost2D(Command):
    """Copy a rectangle from the backing, `offset` bytes in, to the host's image."""

    header: Header
    rect: Rect
    offset: int
    resource_id: ResourceId


@command(CommandType.RESOURCE_ATTACH_BACKING, "II")
@dataclass(frozen=True, slots=True, eq=False)
class ResourceAttachBacking(CommandWithEntries):
    """Give a resource its guest memory."""

    header: Header
    resource_id: ResourceId
    entries: MemEntries

    @classmethod
    def unpack(cls, header: Header, values: Values, request: Bytes) -> Self:
        """Build the command; raise `InvalidParameter` if it brings less than it counts."""
        resource_id, count = values
        return cls(header, resource_id, cls.entries_after(request, count))

    def values(self) -> Values:
        """Return resource_id, nr_entries."""
        return (self.resource_id, len(self.entries))


@command(CommandType.RESOURCE_DETACH_BACKING, "I4x")
@value
class ResourceDetachBacking(Command):
    """Take a resource's guest memory from it."""

    header: Header
    resource_id: ResourceId


@command(CommandType.GET_CAPSET_INFO, "I4x")
@value
class GetCapsetInfo(Command):
    """Ask for the id, version and size of the capability set at an index."""

    header: Header
    capset_index: int


@command(CommandType.GET_CAPSET, "II")
@value
class GetCapset(Command):
    """Ask for a capability set itself."""

    header: Header
    capset_id: int
    capset_version: int


@command(CommandType.RESOURCE_ASSIGN_UUID, "I4x")
@value
class ResourceAssignUuid(Command):
    """Ask for a name by which other devices of the guest can share a resource."""

    header: Header
    resource_id: ResourceId


@command(CommandType.RESOURCE_CREATE_BLOB, "IIIIQQ")
@dataclass(frozen=True, slots=True, eq=False)
class ResourceCreateBlob(CommandWithEntries):
    """Create a resource of plain bytes, in guest memory, on the host or in both; size in bytes."""

    header: Header
    resource_id: ResourceId
    blob_mem: int
    blob_flags: int
    blob_id: int
    size: int
    entries: MemEntries

    @classmethod
    def unpack(cls, header: Header, values: Values, request: Bytes) -> Self:
        """Build the command; raise `InvalidParameter` if it brings less than it counts."""
        resource_id, blob_mem, blob_flags, count, blob_id, size = values
        entries = cls.entries_after(request, count)
        return cls(header, resource_id, blob_mem, blob_flags, blob_id, size, entries)

    def values(self) -> Values:
        """Return resource_id, blob_mem, blob_flags, nr_entries, blob_id, size."""
        first = (self.resource_id, self.blob_mem, self.blob_flags)
        return (*first, len(self.entries), self.blob_id, self.size)


@command(CommandType.SET_SCANOUT_BLOB, "4IIIIII4x4I4I")
@value
class SetScanoutBlob(Command):
    """Show a rectangle of a blob, laid out as said here, on an output; strides in bytes."""

    header: Header
    rect: Rect
    scanout_id: ScanoutId
    resource_id: ResourceId
    width: int
    height: int
    format: int
    strides: tuple[int, int, int, int]
    offsets: tuple[int, int, int, int]

    @classmethod
    def unpack(cls, header: Header, values: Values, _request: Bytes) -> Self:
        """Build the command, whose strides and offsets are arrays of the struct."""
        scanout_id, resource_id, width, height, pixel_format = values[4:9]
        return cls(
            header,
            Rect(*values[:4]),
            scanout_id,
            resource_id,
            width,
            height,
            pixel_format,
            strides=values[9:13],
            offsets=values[13:17],
        )


# 5.7.6.9 controlq (3d)


@command(CommandType.CTX_CREATE, f"II{DEBUG_NAME_SIZE}s")
@value
class CtxCreate(Command):
    """Create the context that the header names; `debug_name` is at most 64 bytes of any kind."""

    header: Header
    context_init: int
    debug_name: bytes

    @property
    def capset_id(self) -> int:
        """The capability set that says what kind of context this is; 0 means the default kind."""
        return self.context_init & CONTEXT_INIT_CAPSET_ID_MASK

    @classmethod
    def unpack(cls, header: Header, values: Values, _request: Bytes) -> Self:
        """Build the command; a length beyond the name's 64 bytes means no more than all of them."""
        nlen, context_init, debug_name = values
        return cls(header, context_init, debug_name[:nlen])

    def values(self) -> Values:
        """Return nlen, context_init, debug_name; raise ValueError if the name is too long."""
        if len(self.debug_name) > DEBUG_NAME_SIZE:
            raise ValueError(f"a debug name of {len(self.debug_name)} bytes")
        return (len(self.debug_name), self.context_init, self.debug_name)


@command(CommandType.CTX_DESTROY)
@value
class CtxDestroy(Command):
    """Destroy the context that the header names."""

    header: Header


@command(CommandType.CTX_ATTACH_RESOURCE, "I4x")
@value
class CtxAttachResource(Command):
    """Let the context that the header names use a resource."""

    header: Header
    resource_id: ResourceId


@command(CommandType.CTX_DETACH_RESOURCE, "I4x")
@value
class CtxDetachResource(Command):
    """Undo a CtxAttachResource."""

    header: Header
    resource_id: ResourceId


@command(CommandType.RESOURCE_CREATE_3D, "11I4x")
@value
class ResourceCreate3D(Command):
    """Create a renderer's resource."""

    header: Header
    resource_id: ResourceId
    target: int
    format: int
    bind: int
    width: int
    height: int
    depth: int
    array_size: int
    last_level: int
    nr_samples: int
    flags: int


@command(CommandType.TRANSFER_TO_HOST_3D, "QIIII", shape=Box)
@value
class TransferToHost3D(Command):
    """Copy a box from the backing to a renderer's resource; offset and strides in bytes."""

    header: Header
    box: Box
    offset: int
    resource_id: ResourceId
    level: int
    stride: int
    layer_stride: int


@command(CommandType.TRANSFER_FROM_HOST_3D, "QIIII", shape=Box)
@value
class TransferFromHost3D(Command):
    """Copy a box from a renderer's resource to the backing; offset and strides in bytes."""

    header: Header
    box: Box
    offset: int
    resource_id: ResourceId
    level: int
    stride: int
    layer_stride: int


@command(CommandType.SUBMIT_3D, "I4x")
@value
class Submit3D(Command):
    """Run a command stream, in the language of the context that the header names."""

    header: Header
    data: bytes

    @classmethod
    def unpack(cls, header: Header, values: Values, request: Bytes) -> Self:
        """Build the command; raise `InvalidParameter` if it brings less than it counts."""
        (size,) = values
        end = cls.end + size
        if end > len(request):
            brought = len(request) - cls.end
            raise InvalidParameter(f"SUBMIT_3D: {size} bytes counted, {brought} brought")
        return cls(header, bytes(request[cls.end : end]))

    def values(self) -> Values:
        """Return the size of the command stream."""
        return (len(self.data),)

    def tail(self) -> bytes:
        """Return the command stream."""
        return self.data


@command(CommandType.RESOURCE_MAP_BLOB, "I4xQ")
@value
class ResourceMapBlob(Command):
    """Map a blob into the host-visible window, `offset` bytes in."""

    header: Header
    resource_id: ResourceId
    offset: int


@command(CommandType.RESOURCE_UNMAP_BLOB, "I4x")
@value
class ResourceUnmapBlob(Command):
    """Undo a ResourceMapBlob."""

    header: Header
    resource_id: ResourceId


# 5.7.6.10 cursorq


@command(CommandType.UPDATE_CURSOR, "III4xIII4x")
@value
class UpdateCursor(Command):
    """Set a cursor's image and position; resource 0 hides it.

    `x` and `y` are u32 as sent: Linux puts negative positions here, which wrap.
    """

    header: Header
    scanout_id: ScanoutId
    x: int
    y: int
    resource_id: ResourceId
    hot_x: int
    hot_y: int


@command(CommandType.MOVE_CURSOR, "III4xIII4x")
@value
class MoveCursor(Command):
    """Set a cursor's position; resource 0 hides it. The fields after that are ignored."""

    header: Header
    scanout_id: ScanoutId
    x: int
    y: int
    resource_id: ResourceId = NO_RESOURCE
    hot_x: int = 0
    hot_y: int = 0
