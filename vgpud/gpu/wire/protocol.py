"""The numbers of the virtio-GPU device: command and response types, feature bits, enumerations.

Names are those of the specification without the VIRTIO_GPU_ prefix.

Specification: virtio 1.3, 5.7 "GPU Device"; `blob_alignment` and its feature bit are of virtio 1.4.
"""

from __future__ import annotations

from enum import IntEnum, IntFlag
from typing import Final, NewType

ResourceId = NewType("ResourceId", int)
"""A guest's name for a resource; 0 means "none"."""

ContextId = NewType("ContextId", int)
"""A guest's name for a rendering context; 0 means "none"."""

ScanoutId = NewType("ScanoutId", int)
"""The index of an output, from 0."""

NO_RESOURCE: Final = ResourceId(0)
NO_CONTEXT: Final = ContextId(0)


class Feature(IntEnum):
    """Bit numbers (not masks) of the device's own features. Source: 5.7.3 "Feature bits"."""

    VIRGL = 0
    EDID = 1
    RESOURCE_UUID = 2
    RESOURCE_BLOB = 3
    CONTEXT_INIT = 4
    BLOB_ALIGNMENT = 5


class CommandType(IntEnum):
    """What a driver may ask. Source: 5.7.6.7 `enum virtio_gpu_ctrl_type`, VIRTIO_GPU_CMD_*."""

    GET_DISPLAY_INFO = 0x0100
    RESOURCE_CREATE_2D = 0x0101
    RESOURCE_UNREF = 0x0102
    SET_SCANOUT = 0x0103
    RESOURCE_FLUSH = 0x0104
    TRANSFER_TO_HOST_2D = 0x0105
    RESOURCE_ATTACH_BACKING = 0x0106
    RESOURCE_DETACH_BACKING = 0x0107
    GET_CAPSET_INFO = 0x0108
    GET_CAPSET = 0x0109
    GET_EDID = 0x010A
    RESOURCE_ASSIGN_UUID = 0x010B
    RESOURCE_CREATE_BLOB = 0x010C
    SET_SCANOUT_BLOB = 0x010D

    CTX_CREATE = 0x0200
    CTX_DESTROY = 0x0201
    CTX_ATTACH_RESOURCE = 0x0202
    CTX_DETACH_RESOURCE = 0x0203
    RESOURCE_CREATE_3D = 0x0204
    TRANSFER_TO_HOST_3D = 0x0205
    TRANSFER_FROM_HOST_3D = 0x0206
    SUBMIT_3D = 0x0207
    RESOURCE_MAP_BLOB = 0x0208
    RESOURCE_UNMAP_BLOB = 0x0209

    UPDATE_CURSOR = 0x0300
    MOVE_CURSOR = 0x0301


class ResponseType(IntEnum):
    """What the device may answer. Source: as CommandType's, VIRTIO_GPU_RESP_*."""

    OK_NODATA = 0x1100
    OK_DISPLAY_INFO = 0x1101
    OK_CAPSET_INFO = 0x1102
    OK_CAPSET = 0x1103
    OK_EDID = 0x1104
    OK_RESOURCE_UUID = 0x1105
    OK_MAP_INFO = 0x1106

    ERR_UNSPEC = 0x1200
    ERR_OUT_OF_MEMORY = 0x1201
    ERR_INVALID_SCANOUT_ID = 0x1202
    ERR_INVALID_RESOURCE_ID = 0x1203
    ERR_INVALID_CONTEXT_ID = 0x1204
    ERR_INVALID_PARAMETER = 0x1205


class Flag(IntFlag):
    """Bits of a header's `flags`. Source: 5.7.6.7, VIRTIO_GPU_FLAG_*."""

    FENCE = 1 << 0
    INFO_RING_IDX = 1 << 1


class ConfigEvent(IntFlag):
    """Bits of the config space's `events_read` and `events_clear`. Source: 5.7.4."""

    DISPLAY = 1 << 0


class Format(IntEnum):
    """Pixel formats of 2D resources; the name spells the bytes in memory order. Source: 5.7.6.8."""

    B8G8R8A8_UNORM = 1
    B8G8R8X8_UNORM = 2
    A8R8G8B8_UNORM = 3
    X8R8G8B8_UNORM = 4
    R8G8B8A8_UNORM = 67
    X8B8G8R8_UNORM = 68
    A8B8G8R8_UNORM = 121
    R8G8B8X8_UNORM = 134


class BlobMem(IntEnum):
    """Where a blob's memory is; 0 is invalid. Source: 5.7.6.8, VIRTIO_GPU_BLOB_MEM_*."""

    GUEST = 1
    HOST3D = 2
    HOST3D_GUEST = 3


class BlobFlag(IntFlag):
    """What a blob will be used for. Source: 5.7.6.8, VIRTIO_GPU_BLOB_FLAG_USE_*."""

    USE_MAPPABLE = 1 << 0
    USE_SHAREABLE = 1 << 1
    USE_CROSS_DEVICE = 1 << 2


class MapInfo(IntEnum):
    """The memory type a guest is told to map a blob with. Source: 5.7.6.9, VIRTIO_GPU_MAP_CACHE_*.

    Linux compares the whole of `map_info` with these values: any other bit, and the guest
    quietly falls back to its default type.
    """

    NONE = 0
    CACHED = 1
    UNCACHED = 2
    WC = 3


class CapsetId(IntEnum):
    """Capability sets, which name a context's type. Source: 5.7.6.8, VIRTIO_GPU_CAPSET_*.

    DMA is vgpud's own. Linux keeps the ids it was offered in the bits of an int, so an id of its
    own stays below 32; 30 is as far from the assigned ones as that lets it be.
    """

    VIRGL = 1
    VIRGL2 = 2
    GFXSTREAM_VULKAN = 3
    VENUS = 4
    CROSS_DOMAIN = 5
    DRM = 6
    DMA = 30


class ShmId(IntEnum):
    """Shared memory regions of the device. Source: 5.7.7 "Shared memory regions"."""

    HOST_VISIBLE = 1


MAX_SCANOUTS: Final = 16
"""Outputs in one OK_DISPLAY_INFO response (VIRTIO_GPU_MAX_SCANOUTS)."""

CONTEXT_INIT_CAPSET_ID_MASK: Final = 0xFF
"""The bits of CTX_CREATE's `context_init` that hold a capset id."""

RESOURCE_FLAG_Y_0_TOP: Final = 1 << 0
"""RESOURCE_CREATE_3D's flag for an image whose first row is its top."""

CONTROL_QUEUE: Final = 0
CURSOR_QUEUE: Final = 1
"""Queue indices. Source: 5.7.2 "Virtqueues"."""
