"""The GPUs of this host and their device nodes, as they are and as they come and go.

Nodes are found by pyudev; without libudev, or on another host's recorded /sys, which libudev would
not read, by following the same links. Owns the list, which is read anew when somebody says that
something has changed (`daemon.gpu_watch`). Source: Documentation/ABI and
drivers/gpu/drm/drm_sysfs.c of the kernel.
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

SUBSYSTEM: Final = "drm"
NODE: Final = re.compile(r"(card|renderD)\d+")


@dataclass(frozen=True, slots=True)
class Found:
    """A node as the kernel lists it: its device's place in /sys identifies the GPU."""

    path: str
    device: str
    driver: str | None


@dataclass(frozen=True, slots=True)
class Gpu:
    """One device of subsystem drm: its place in /sys, its driver, and its nodes in /dev, in order.

    `number` tells it from whatever was in the same place before.
    """

    place: str
    driver: str | None
    nodes: tuple[str, ...]
    number: int = 0

    @property
    def name(self) -> str:
        """Its address on its bus, or the name of one without hardware."""
        return Path(self.place).name

    @property
    def primary(self) -> str | None:
        """The node that makes plain buffers."""
        return self._node("card")

    @property
    def render(self) -> str | None:
        """The node for whoever has no business with its outputs."""
        return self._node("renderD")

    def __str__(self) -> str:
        return f"{self.name} ({', '.join([self.driver or 'no driver', *self.nodes])})"

    def _node(self, kind: str) -> str | None:
        return next((node for node in self.nodes if Path(node).name.startswith(kind)), None)


@dataclass(frozen=True, slots=True)
class Changes:
    """What a second look found."""

    removed: tuple[Gpu, ...]
    added: tuple[Gpu, ...]


class RenderNodes:
    """The GPUs of this host, or of the one whose /sys and /dev are recorded below `root`."""

    def __init__(self, root: Path = files.ROOT) -> None:
        self._root = root
        self._numbers = count(1)
        self.gpus: tuple[Gpu, ...] = ()
        self.refresh()

    def __contains__(self, gpu: Gpu) -> bool:
        return any(known.number == gpu.number for known in self.gpus)

    def find(self, node: str) -> Gpu | None:
        """The GPU that has this node, under the kernel's name for it or by a link such as those of
        /dev/dri/by-path."""
        resolved = self.path(node).resolve()
        names = {node}
        if resolved.is_relative_to(self._root.resolve()):
            names.add(f"/{resolved.relative_to(self._root.resolve())}")
        return next((gpu for gpu in self.gpus if not names.isdisjoint(gpu.nodes)), None)

    def path(self, node: str) -> Path:
        """Where to open a node."""
        return self._root / node.lstrip("/")

    def refresh(self, lost: Collection[str] = ()) -> Changes:
        """Look anew. `lost` are the names of nodes that went away since the last look, such as
        "card0", though there may be others of that name by now."""
        found = self._look()
        removed: list[Gpu] = []
        kept: list[Gpu] = []
        for gpu in self.gpus:
            now = found.get(gpu.place)
            same = now is not None and now.driver == gpu.driver and {*gpu.nodes} <= {*now.nodes}
            if now is None or not same or {Path(node).name for node in gpu.nodes} & {*lost}:
                removed.append(gpu)
            else:  # it may have got further nodes: they are registered one after the other
                kept.append(replace(gpu, nodes=now.nodes))
                del found[gpu.place]
        added = tuple(replace(gpu, number=next(self._numbers)) for gpu in found.values())
        self.gpus = tuple(sorted([*kept, *added], key=lambda gpu: gpu.nodes))
        return Changes(tuple(removed), added)

    def _look(self) -> dict[str, Gpu]:
        found: dict[str, Gpu] = {}
        for node in sorted(enumerate_nodes(self._root), key=lambda node: node.path):
            gpu = found.get(node.device, Gpu(node.device, node.driver, ()))
            found[node.device] = replace(gpu, nodes=(*gpu.nodes, node.path))
        return found


def enumerate_nodes(root: Path = files.ROOT) -> list[Found]:
    """The nodes of all GPUs, by udev where that can be had."""
    if root == files.ROOT:
        try:
            return list(by_udev(SUBSYSTEM, NODE))
        except ImportError:  # No libudev in this system: pyudev looks for it when it is used.
            pass
    return list(by_links(root, SUBSYSTEM, NODE))


@cache
def udev() -> pyudev.Context:
    """The library, looked for once: pyudev runs a program for that. Raises ImportError."""
    return pyudev.Context()


def by_udev(subsystem: str, names: re.Pattern[str]) -> Iterator[Found]:
    """The nodes of this host's devices of a subsystem that have one of these names."""
    for device in udev().list_devices(subsystem=subsystem):
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
