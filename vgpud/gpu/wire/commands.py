"""Every command a driver can put on the control or the cursor queue, as values.

Fields are in the order of the wire and hold what was sent, unjudged: a format, an id or a rectangle
may be nonsense, which is the device's business. Counts that say how much follows are left out: what
follows is here itself. How each one looks in bytes is the table in `vgpud.gpu.wire.command_codec`.

Specification: virtio 1.3, 5.7.6.8 "controlq (2d)", 5.7.6.9 "controlq (3d)", 5.7.6.10 "cursorq".
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from vgpud.gpu.wire.header import Box, Header, Rect
from vgpud.gpu.wire.protocol import CONTEXT_INIT_CAPSET_ID_MASK, NO_RESOURCE, ResourceId, ScanoutId
from vgpud.gpu.wire.value import value

if TYPE_CHECKING:
    from numpy.typing import NDArray

MEM_ENTRY = np.dtype([("addr", "<u8"), ("length", "<u4"), ("padding", "<u4")])
"""One piece of guest memory. Source: `struct virtio_gpu_mem_entry`."""
assert MEM_ENTRY.itemsize == 16

MemEntries: TypeAlias = "NDArray[np.void]"
"""A one-dimensional read-only array of MEM_ENTRY, a copy of the driver's."""


# 5.7.6.8 controlq (2d)


@value
class GetDisplayInfo:
    """Ask for the outputs and their preferred sizes."""

    header: Header


@value
class GetEdid:
    """Ask for the EDID of an output."""

    header: Header
    scanout: ScanoutId


@value
class ResourceCreate2D:
    """Create an image on the host; sizes in pixels, `format` a `protocol.Format` if it is valid."""

    header: Header
    resource_id: ResourceId
    format: int
    width: int
    height: int


@value
class ResourceUnref:
    """Destroy a resource."""

    header: Header
    resource_id: ResourceId


@value
class SetScanout:
    """Show a rectangle of a resource on an output; resource 0 turns the output off."""

    header: Header
    rect: Rect
    scanout_id: ScanoutId
    resource_id: ResourceId


@value
class ResourceFlush:
    """Bring a rectangle of a resource to the outputs that show it."""

    header: Header
    rect: Rect
    resource_id: ResourceId


@value
class TransferToHost2D:
    """Copy a rectangle from the backing, `offset` bytes in, to the host's image."""

    header: Header
    rect: Rect
    offset: int
    resource_id: ResourceId


@dataclass(frozen=True, slots=True, eq=False)
class ResourceAttachBacking:
    """Give a resource its guest memory."""

    header: Header
    resource_id: ResourceId
    entries: MemEntries

    def __eq__(self, other: object) -> bool:
        """Compare by value; an array's own equality has no single answer."""
        if not isinstance(other, ResourceAttachBacking):
            return NotImplemented
        return (self.header, self.resource_id) == (other.header, other.resource_id) and (
            np.array_equal(self.entries, other.entries)
        )

    def __hash__(self) -> int:
        """Hash what equality compares."""
        return hash((self.header, self.resource_id, self.entries.tobytes()))


@value
class ResourceDetachBacking:
    """Take a resource's guest memory from it."""

    header: Header
    resource_id: ResourceId


@value
class GetCapsetInfo:
    """Ask for the id, version and size of the capability set at an index."""

    header: Header
    capset_index: int


@value
class GetCapset:
    """Ask for a capability set itself."""

    header: Header
    capset_id: int
    capset_version: int


@value
class ResourceAssignUuid:
    """Ask for a name by which other devices of the guest can share a resource."""

    header: Header
    resource_id: ResourceId


@dataclass(frozen=True, slots=True, eq=False)
class ResourceCreateBlob:
    """Create a resource of plain bytes, in guest memory, on the host or in both; size in bytes."""

    header: Header
    resource_id: ResourceId
    blob_mem: int
    blob_flags: int
    blob_id: int
    size: int
    entries: MemEntries

    def __eq__(self, other: object) -> bool:
        """Compare by value; an array's own equality has no single answer."""
        if not isinstance(other, ResourceCreateBlob):
            return NotImplemented
        return self._scalars() == other._scalars() and np.array_equal(self.entries, other.entries)

    def __hash__(self) -> int:
        """Hash what equality compares."""
        return hash((self._scalars(), self.entries.tobytes()))

    def _scalars(self) -> tuple[object, ...]:
        return (
            self.header,
            self.resource_id,
            self.blob_mem,
            self.blob_flags,
            self.blob_id,
            self.size,
        )


@value
class SetScanoutBlob:
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


# 5.7.6.9 controlq (3d)


@value
class CtxCreate:
    """Create the context that the header names; `debug_name` is at most 64 bytes of any kind."""

    header: Header
    context_init: int
    debug_name: bytes

    @property
    def capset_id(self) -> int:
        """The capability set that says what kind of context this is; 0 means the default kind."""
        return self.context_init & CONTEXT_INIT_CAPSET_ID_MASK


@value
class CtxDestroy:
    """Destroy the context that the header names."""

    header: Header


@value
class CtxAttachResource:
    """Let the context that the header names use a resource."""

    header: Header
    resource_id: ResourceId


@value
class CtxDetachResource:
    """Undo a CtxAttachResource."""

    header: Header
    resource_id: ResourceId


@value
class ResourceCreate3D:
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


@value
class TransferToHost3D:
    """Copy a box from the backing to a renderer's resource; offset and strides in bytes."""

    header: Header
    box: Box
    offset: int
    resource_id: ResourceId
    level: int
    stride: int
    layer_stride: int


@value
class TransferFromHost3D:
    """Copy a box from a renderer's resource to the backing; offset and strides in bytes."""

    header: Header
    box: Box
    offset: int
    resource_id: ResourceId
    level: int
    stride: int
    layer_stride: int


@value
class Submit3D:
    """Run a command stream, in the language of the context that the header names."""

    header: Header
    data: bytes


@value
class ResourceMapBlob:
    """Map a blob into the host-visible window, `offset` bytes in."""

    header: Header
    resource_id: ResourceId
    offset: int


@value
class ResourceUnmapBlob:
    """Undo a ResourceMapBlob."""

    header: Header
    resource_id: ResourceId


# 5.7.6.10 cursorq


@value
class UpdateCursor:
    """Set a cursor's image and place; resource 0 hides it.

    `x` and `y` are u32 as sent: Linux puts negative places here, which wrap.
    """

    header: Header
    scanout_id: ScanoutId
    x: int
    y: int
    resource_id: ResourceId
    hot_x: int
    hot_y: int


@value
class MoveCursor:
    """Set a cursor's place. The fields after `y` are on the wire and mean nothing."""

    header: Header
    scanout_id: ScanoutId
    x: int
    y: int
    resource_id: ResourceId = NO_RESOURCE
    hot_x: int = 0
    hot_y: int = 0


Command: TypeAlias = (
    GetDisplayInfo
    | GetEdid
    | ResourceCreate2D
    | ResourceUnref
    | SetScanout
    | ResourceFlush
    | TransferToHost2D
    | ResourceAttachBacking
    | ResourceDetachBacking
    | GetCapsetInfo
    | GetCapset
    | ResourceAssignUuid
    | ResourceCreateBlob
    | SetScanoutBlob
    | CtxCreate
    | CtxDestroy
    | CtxAttachResource
    | CtxDetachResource
    | ResourceCreate3D
    | TransferToHost3D
    | TransferFromHost3D
    | Submit3D
    | ResourceMapBlob
    | ResourceUnmapBlob
    | UpdateCursor
    | MoveCursor
)
