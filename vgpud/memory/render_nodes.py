"""The GPUs of this host and their device nodes, also as they are added and removed.

Nodes are found by pyudev; without libudev, or in a recorded /sys, which libudev would not read, by
following the same links. `daemon.gpu_watch` refreshes the list when GPUs change. Source:
Documentation/ABI and drivers/gpu/drm/drm_sysfs.c of the kernel.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace
from functools import cache
from itertools import count
from pathlib import Path
from typing import Final

import pyudev

from vgpud.uapi import kernel_files as files
from vgpud.unix.file_names import file_name

SUBSYSTEM: Final = "drm"
NODE: Final = re.compile(r"(card|renderD)\d+")


@dataclass(frozen=True, slots=True)
class DrmNode:
    """A device node as the kernel lists it; its device's path in /sys identifies the GPU."""

    path: str
    device: str
    driver: str | None


@dataclass(frozen=True, slots=True)
class HostGpu:
    """One device of subsystem drm: its path in /sys, its driver, and its nodes in /dev, in order.

    `number` distinguishes it from devices that had the same path before.
    """

    sys_path: str
    driver: str | None
    nodes: tuple[str, ...]
    number: int = 0

    @property
    def name(self) -> str:
        """The device's address on its bus, or the name of one without hardware."""
        return Path(self.sys_path).name

    @property
    def primary(self) -> str | None:
        """The primary node, on which dumb buffers are made."""
        return self._node("card")

    @property
    def render(self) -> str | None:
        """The render node, which has no access to outputs."""
        return self._node("renderD")

    def __str__(self) -> str:
        return f"{self.name} ({', '.join([self.driver or 'no driver', *self.nodes])})"

    def _node(self, kind: str) -> str | None:
        return next((node for node in self.nodes if Path(node).name.startswith(kind)), None)


@dataclass(frozen=True, slots=True)
class GpuChanges:
    """The GPUs that were removed and added between two refreshes."""

    removed: tuple[HostGpu, ...]
    added: tuple[HostGpu, ...]


class RenderNodes:
    """The GPUs of this host, or of one whose /sys and /dev are recorded below `root`."""

    def __init__(self, root: Path = files.ROOT) -> None:
        self._root = root
        self._numbers = count(1)
        self.gpus: tuple[HostGpu, ...] = ()
        self.refresh()

    def __contains__(self, gpu: HostGpu) -> bool:
        return any(known.number == gpu.number for known in self.gpus)

    def find(self, node: str) -> HostGpu | None:
        """Return the GPU that has this node, or None.

        `node` is the kernel's name for it, or a link such as those in /dev/dri/by-path.
        """
        resolved = self.path(node).resolve()
        names = {node}
        if resolved.is_relative_to(self._root.resolve()):
            names.add(f"/{resolved.relative_to(self._root.resolve())}")
        return next((gpu for gpu in self.gpus if not names.isdisjoint(gpu.nodes)), None)

    def path(self, node: str) -> Path:
        """Return the path at which to open a node."""
        return self._root / file_name(node).lstrip("/")

    def refresh(self, lost: Collection[str] = ()) -> GpuChanges:
        """Read the list of GPUs again and return what has changed.

        `lost` are the names of nodes that were removed since the last refresh, such as "card0",
        though there may be new ones of that name now.
        """
        found = self._read()
        removed: list[HostGpu] = []
        kept: list[HostGpu] = []
        for gpu in self.gpus:
            now = found.get(gpu.sys_path)
            same = now is not None and now.driver == gpu.driver and {*gpu.nodes} <= {*now.nodes}
            if now is None or not same or {Path(node).name for node in gpu.nodes} & {*lost}:
                removed.append(gpu)
            else:  # it may have new nodes: the kernel registers them one after the other
                kept.append(replace(gpu, nodes=now.nodes))
                del found[gpu.sys_path]
        added = tuple(replace(gpu, number=next(self._numbers)) for gpu in found.values())
        self.gpus = tuple(sorted([*kept, *added], key=lambda gpu: gpu.nodes))
        return GpuChanges(tuple(removed), added)

    def _read(self) -> dict[str, HostGpu]:
        found: dict[str, HostGpu] = {}
        for node in sorted(enumerate_nodes(self._root), key=lambda node: node.path):
            gpu = found.get(node.device, HostGpu(node.device, node.driver, ()))
            found[node.device] = replace(gpu, nodes=(*gpu.nodes, node.path))
        return found


def enumerate_nodes(root: Path = files.ROOT) -> list[DrmNode]:
    """Return the nodes of all GPUs, by udev if it is available."""
    if root == files.ROOT:
        try:
            return list(by_udev(SUBSYSTEM, NODE))
        except ImportError:  # no libudev: pyudev loads it when it is used
            pass
    return list(by_links(root, SUBSYSTEM, NODE))


@cache
def udev() -> pyudev.Context:
    """Return pyudev's context, made once: pyudev runs a program to find libudev.

    Raises ImportError if there is no libudev.
    """
    return pyudev.Context()


def by_udev(subsystem: str, names: re.Pattern[str]) -> Iterator[DrmNode]:
    """Yield the nodes of this host's devices of a subsystem that have one of these names."""
    for device in udev().list_devices(subsystem=subsystem):
        # Connectors are devices without a node.
        if device.device_node is not None and names.fullmatch(device.sys_name):
            parent = device.parent
            if parent is None:
                yield DrmNode(device.device_node, device.sys_path, None)
            else:
                driver = _driver(parent.driver, parent.sys_name)
                yield DrmNode(device.device_node, parent.sys_path, driver)


def by_links(root: Path, subsystem: str, names: re.Pattern[str]) -> Iterator[DrmNode]:
    """Yield a subsystem's nodes that have one of these names, by links in /sys below `root`."""
    for link in (root / "sys/class" / subsystem).glob("*"):
        name = re.search(r"^DEVNAME=(.+)$", files.text(link / "uevent") or "", re.MULTILINE)
        if name and names.fullmatch(link.name):
            if not (link / "device").exists():
                yield DrmNode(f"/dev/{name[1]}", str(link.resolve()), None)
                continue
            parent = (link / "device").resolve()
            driver = parent / "driver"
            bound = driver.readlink().name if driver.is_symlink() else None
            yield DrmNode(f"/dev/{name[1]}", str(parent), _driver(bound, parent.name))


def _driver(bound: str | None, device: str) -> str:
    """Return the name of a device's driver.

    A device without hardware, such as vgem's, has its driver's name and at most a faux driver.
    """
    return device if bound in {None, "faux_driver"} else str(bound)
