"""The GPUs of this host, their device nodes, and how each can be kept from snooping.

Nodes are found by pyudev; on another host's recorded /sys, which libudev would not read, by
following the same links. Must not import anything above `host`. Source: the kernel's
include/uapi/drm (xe_drm.h, amdgpu_drm.h, i915_drm.h), drivers/gpu/drm/vgem.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Final

import pyudev

from vgpud.host import probe_files as files

NON_SNOOPING: Final = MappingProxyType(
    {
        "xe": "cpu_caching WC, with a non-coherent pat_index",
        "amdgpu": "AMDGPU_GEM_CREATE_CPU_GTT_USWC",
        "i915": "I915_GEM_CREATE_EXT_SET_PAT, from Meteor Lake on",
        "vgem": "dumb buffers, mapped WC",
    }
)
"""The allocation by which a driver's buffers are not snooped, or mapped WC in the host."""

_NODE: Final = re.compile(r"(card|renderD)\d+")


@dataclass(frozen=True, slots=True)
class GpuNode:
    """A device node, such as /dev/dri/renderD128, and whether this user may open it."""

    path: str
    accessible: bool


@dataclass(frozen=True, slots=True)
class Gpu:
    """One device of subsystem drm: `device` is its bus address or name, `non_snooping` the
    allocation that its driver offers, None where none is known."""

    device: str
    driver: str | None
    nodes: tuple[GpuNode, ...]
    non_snooping: str | None


@dataclass(frozen=True, slots=True)
class Found:
    """A node as the kernel lists it: its device's place in /sys identifies the GPU."""

    path: str
    device: str
    driver: str | None


def probe(root: Path = files.ROOT) -> tuple[Gpu, ...]:
    """The GPUs of this host, or of the one whose /sys and /dev are recorded below `root`."""
    found: dict[str, list[Found]] = {}
    for node in sorted(_nodes(root), key=lambda node: node.path):
        found.setdefault(node.device, []).append(node)
    return tuple(_gpu(root, device, nodes) for device, nodes in found.items())


def _nodes(root: Path) -> list[Found]:
    if root == files.ROOT:
        try:
            return list(by_udev("drm", _NODE))
        except ImportError:  # No libudev in this system: pyudev looks for it when it is used.
            pass
    return list(by_links(root, "drm", _NODE))


def _gpu(root: Path, device: str, nodes: list[Found]) -> Gpu:
    driver = nodes[0].driver
    return Gpu(
        device=Path(device).name,
        driver=driver,
        nodes=tuple(GpuNode(node.path, _may_open(root / node.path.lstrip("/"))) for node in nodes),
        non_snooping=NON_SNOOPING.get(driver) if driver else None,
    )


def _may_open(path: Path) -> bool:
    return os.access(path, os.R_OK | os.W_OK, effective_ids=True)


def by_udev(subsystem: str, names: re.Pattern[str]) -> Iterator[Found]:
    """The nodes of this host's devices of a subsystem that have one of these names."""
    for device in pyudev.Context().list_devices(subsystem=subsystem):
        # Connectors have no node.
        if device.device_node is not None and names.fullmatch(device.sys_name):
            parent = device.parent
            if parent is None:
                yield Found(device.device_node, device.sys_path, None)
            else:
                driver = _driver(parent.driver, parent.sys_name)
                yield Found(device.device_node, parent.sys_path, driver)


def by_links(root: Path, subsystem: str, names: re.Pattern[str]) -> Iterator[Found]:
    """The same by the links of /sys below `root`, without udev."""
    for link in (root / "sys/class" / subsystem).glob("*"):
        name = re.search(r"^DEVNAME=(.+)$", files.text(link / "uevent") or "", re.MULTILINE)
        if name and names.fullmatch(link.name):
            if not (link / "device").exists():
                yield Found(f"/dev/{name[1]}", str(link.resolve()), None)
                continue
            parent = (link / "device").resolve()
            driver = parent / "driver"
            bound = driver.readlink().name if driver.is_symlink() else None
            yield Found(f"/dev/{name[1]}", str(parent), _driver(bound, parent.name))


def _driver(bound: str | None, device: str) -> str:
    """Devices without hardware, such as vgem's, have the driver's name and at most a stand-in for a
    driver."""
    return device if bound in {None, "faux_driver"} else str(bound)
