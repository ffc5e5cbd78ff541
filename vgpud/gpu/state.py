"""What a guest depends on, as values: everything that a device has to be again after it was saved.

A value says what a thing is; the handles that make it real (a descriptor, a mapping, a charge, a
memory slot) are made from it again. `Gpu.save` and the parts make these values, `Gpu.restore` and
the parts make themselves from them, in a device that a driver has not used yet. Plain numbers,
bytes and tuples: there is no file format yet. Source: virtio 1.3, 5.7 "GPU Device".
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias
from uuid import UUID

from vgpud.gpu.spec import PreferredMode
from vgpud.gpu.wire.header import Rect
from vgpud.gpu.wire.protocol import BlobMem, ContextId, Format, ResourceId, ScanoutId
from vgpud.gpu.wire.value import value
from vgpud.vhost.ring_setup import RingState

Pages: TypeAlias = tuple[tuple[int, int], ...]
"""A list of backing pages: (guest-physical address, length in bytes)."""


@dataclass(frozen=True, slots=True)
class ImageState:
    """A 2D resource: `pixels` are its rows without gaps, in host memory."""

    id: ResourceId
    width: int
    height: int
    format: Format
    pixels: bytes
    backing: Pages | None
    uuid: UUID | None


@dataclass(frozen=True, slots=True)
class GuestBlobState:
    """A blob in guest memory, whose bytes are the guest's own."""

    id: ResourceId
    size: int
    backing: Pages | None
    uuid: UUID | None


@dataclass(frozen=True, slots=True)
class PlacementState:
    """Where a blob is in the window, in bytes; `mapped` is False for one that is parked."""

    offset: int
    mapped: bool


@dataclass(frozen=True, slots=True)
class HostBlobState:
    """A blob in host memory: the guest's, or the VMM's own (ids of 2**32 and more)."""

    id: ResourceId
    blob_mem: BlobMem
    size: int
    mappable: bool
    contents: bytes
    placement: PlacementState | None
    backing: Pages | None
    uuid: UUID | None


ResourceState: TypeAlias = ImageState | GuestBlobState | HostBlobState


@dataclass(frozen=True, slots=True)
class ContextState:
    """A context, and the resources attached to it, in ascending order."""

    id: ContextId
    capset_id: int
    name: bytes
    attached: tuple[ResourceId, ...]


@value
class ScanoutState:
    """What one output shows: `rect` of a framebuffer that is a resource's bytes from `offset` on.

    `stride` is bytes from row to row; `width` and `height` are the framebuffer's, in pixels.
    """

    id: ScanoutId
    resource: ResourceId
    rect: Rect
    width: int
    height: int
    format: Format
    stride: int
    offset: int


@dataclass(frozen=True, slots=True)
class CursorState:
    """A scanout's cursor; `image` is 64 x 64 pixels of B, G, R, A, None for one that is hidden."""

    scanout: int
    x: int
    y: int
    hot_x: int
    hot_y: int
    image: bytes | None


@dataclass(frozen=True, slots=True)
class GpuState:
    """All that the driver and the VMM have made of a GPU. `events` are the pending bits of
    events_read in the configuration space."""

    outputs: tuple[PreferredMode, ...]
    events: int
    resources: tuple[ResourceState, ...] = ()
    vmm_blobs: tuple[HostBlobState, ...] = ()
    contexts: tuple[ContextState, ...] = ()
    scanouts: tuple[ScanoutState, ...] = ()
    cursors: tuple[CursorState, ...] = ()


@dataclass(frozen=True, slots=True)
class DeviceState:
    """A whole device: the GPU, and its rings by index. `driven`: a driver has started it."""

    driven: bool
    gpu: GpuState
    rings: tuple[RingState | None, ...]
