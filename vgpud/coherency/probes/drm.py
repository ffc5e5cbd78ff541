"""The GPUs of this host for doctor, and by which allocation each does not snoop.

Source: the kernel's include/uapi/drm (xe_drm.h, amdgpu_drm.h, i915_drm.h), drivers/gpu/drm/vgem.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Final

from vgpud.memory.render_nodes import DrmNode, enumerate_nodes
from vgpud.uapi import kernel_files as files

NON_SNOOPING: Final = MappingProxyType(
    {
        "xe": "cpu_caching WC, with a non-coherent pat_index",
        "amdgpu": "AMDGPU_GEM_CREATE_CPU_GTT_USWC",
        "i915": "I915_GEM_CREATE_EXT_SET_PAT, from Meteor Lake on",
        "vgem": "dumb buffers, mapped WC",
    }
)
"""By driver, the allocation whose buffers are not snooped, or are mapped WC in the host."""


@dataclass(frozen=True, slots=True)
class GpuNode:
    """A device node, such as /dev/dri/renderD128, and whether this user may open it."""

    path: str
    accessible: bool


@dataclass(frozen=True, slots=True)
class GpuFacts:
    """One device of subsystem drm.

    `device` is its bus address or name, `non_snooping` the allocation that its driver offers; None
    if none is known.
    """

    device: str
    driver: str | None
    nodes: tuple[GpuNode, ...]
    non_snooping: str | None


def probe(root: Path = files.ROOT) -> tuple[GpuFacts, ...]:
    """Return the GPUs of this host, or of one whose /sys and /dev are recorded below `root`."""
    found: dict[str, list[DrmNode]] = {}
    for node in sorted(enumerate_nodes(root), key=lambda node: node.path):
        found.setdefault(node.device, []).append(node)
    return tuple(_gpu(root, device, nodes) for device, nodes in found.items())


def _gpu(root: Path, device: str, nodes: list[DrmNode]) -> GpuFacts:
    driver = nodes[0].driver
    return GpuFacts(
        device=Path(device).name,
        driver=driver,
        nodes=tuple(GpuNode(node.path, _may_open(root / node.path.lstrip("/"))) for node in nodes),
        non_snooping=NON_SNOOPING.get(driver) if driver else None,
    )


def _may_open(path: Path) -> bool:
    return os.access(path, os.R_OK | os.W_OK, effective_ids=True)
