"""The state of a device that a guest depends on, as frozen values that can be saved and restored.

The handles (descriptors, mappings, charges, memory slots) are not part of it, but are made again
from it. `Gpu.save` and its parts return these values; `Gpu.restore` and its parts take them, in a
device that no driver has used yet. They are plain numbers, bytes and tuples; there is no file
format yet. Source: virtio 1.3, 5.7 "GPU Device".
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias
from uuid import UUID

from vgpud.coherency.slot_policy import MemoryType
from vgpud.gpu.spec import PreferredMode
from vgpud.gpu.wire.header import Rect
from vgpud.gpu.wire.protocol import BlobMem, ContextId, Format, ResourceId, ScanoutId
from vgpud.gpu.wire.value import value
from vgpud.vhost.ring_setup import RingState

Pages: TypeAlias = tuple[tuple[int, int], ...]
"""A scatter-gather list: (guest-physical address, length in bytes) of each entry."""


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
    """A blob's offset in the window, in bytes; `mapped` is False if it is parked."""

    offset: int
    mapped: bool


@dataclass(frozen=True, slots=True)
class HostBlobState:
    """A blob in host memory: the guest's, or the VMM's own (ids of 2**32 and more).

    `memory_type` is what the guest was told when it mapped the blob.
    """

    id: ResourceId
    blob_mem: BlobMem
    size: int
    mappable: bool
    memory_type: MemoryType
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
    """What one output shows: `rect` of a framebuffer, which begins at `offset` of a resource.

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
    """A scanout's cursor; `image` is 64 x 64 pixels of B, G, R, A, None if it never had one. A
    cursor that is not `enabled` is hidden."""

    scanout: int
    x: int
    y: int
    hot_x: int
    hot_y: int
    image: bytes | None
    enabled: bool


@dataclass(frozen=True, slots=True)
class GpuState:
    """All that the driver and the VMM have made in a GPU.

    `events` are the pending bits of events_read in the configuration space.
    """

    outputs: tuple[PreferredMode, ...]
    events: int
    resources: tuple[ResourceState, ...] = ()
    vmm_blobs: tuple[HostBlobState, ...] = ()
    contexts: tuple[ContextState, ...] = ()
    scanouts: tuple[ScanoutState, ...] = ()
    cursors: tuple[CursorState, ...] = ()


@dataclass(frozen=True, slots=True)
class DeviceState:
    """A whole device: the GPU, and its rings by index.

    `driven`: a driver has started it since the last reset.
    """

    driven: bool
    gpu: GpuState
    rings: tuple[RingState | None, ...]
