"""The feature bits that devices offer. Source: virtio 1.3, 5.7.3 "Feature bits"."""

from __future__ import annotations

from vgpud.gpu.wire.protocol import Feature

FEATURES = (
    1 << Feature.EDID
    | 1 << Feature.RESOURCE_UUID
    | 1 << Feature.RESOURCE_BLOB
    | 1 << Feature.BLOB_ALIGNMENT
)
"""The feature bits of every device."""

CONTEXT_FEATURES = (
    1 << Feature.VIRGL  # without it, a Linux guest makes no host blobs
    | 1 << Feature.CONTEXT_INIT
)
"""The feature bits of a device that has a renderer."""
