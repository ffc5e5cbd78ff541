"""The kernel, the processor and the memory of this host, as far as blobs depend on them.

Source: proc(5), sysfs(5), getrlimit(2); the kernel's Documentation/admin-guide/mm/hugetlbpage.rst.
"""

from __future__ import annotations

import os
import re
import resource
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from vgpud.coherency.probes.device_access import DeviceAccess
from vgpud.errors import HostError
from vgpud.memory import memfd
from vgpud.uapi import kernel_files as files
from vgpud.uapi import udmabuf
from vgpud.uapi.page import PAGE_SIZE
from vgpud.unix.fd import Fd

_CAP_IPC_LOCK: Final = 14  # capabilities(7)


@dataclass(frozen=True, slots=True)
class SystemFacts:
    """The kernel's release, the distribution's name, and for Debian the suite's."""

    kernel: str
    name: str
    debian: str | None


@dataclass(frozen=True, slots=True)
class CpuFacts:
    """The first processor.

    `self_snoop` is False also if the kernel has cleared it for an erratum; `flush` are the
    instructions for cache lines that it has besides clflush.
    """

    vendor: str
    model: str
    self_snoop: bool
    hypervisor: bool
    flush: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class HugePages:
    """A pool of huge pages: `size` in bytes, the others in pages."""

    size: int
    total: int
    free: int


@dataclass(frozen=True, slots=True)
class UdmabufFacts:
    """Whether a udmabuf can be made of a memfd, found by making one; `problem` says why not."""

    state: DeviceAccess
    problem: str = ""


@dataclass(frozen=True, slots=True)
class MemoryFacts:
    """Memory limits, huge pages and udmabuf.

    `locked_limit` is how many bytes this process may lock; None if there is no limit for it.
    """

    locked_limit: int | None
    huge_pages: tuple[HugePages, ...]
    udmabuf: UdmabufFacts


def system(root: Path = files.ROOT) -> SystemFacts:
    """Return the kernel's release, and the distribution by /etc/os-release."""
    lines = (files.text(root / "etc/os-release") or "").splitlines()
    fields = {key: value.strip("\"'") for key, _, value in (line.partition("=") for line in lines)}
    return SystemFacts(
        kernel=files.text(root / "proc/sys/kernel/osrelease") or os.uname().release,
        name=fields.get("PRETTY_NAME", "Linux"),
        debian=fields.get("VERSION_CODENAME") if fields.get("ID") == "debian" else None,
    )


def cpu(root: Path = files.ROOT) -> CpuFacts:
    """Return the facts about the first processor in /proc/cpuinfo below `root`."""
    flags = files.cpu_flags(root)
    return CpuFacts(
        vendor=files.cpu(root, "vendor_id"),
        model=files.cpu(root, "model name"),
        self_snoop="ss" in flags,
        hypervisor="hypervisor" in flags,
        flush=tuple(name for name in ("clflushopt", "clwb") if name in flags),
    )


def memory(root: Path = files.ROOT) -> MemoryFacts:
    """Return memory limits, the pools of huge pages, and whether a udmabuf can be made."""
    soft, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    unlimited = soft == resource.RLIM_INFINITY or _may_lock_all(root)
    return MemoryFacts(
        locked_limit=None if unlimited else soft,
        huge_pages=_huge_pages(root / "sys/kernel/mm/hugepages"),
        udmabuf=_udmabuf(root / "dev/udmabuf"),
    )


def _may_lock_all(root: Path) -> bool:
    """Return whether this process has CAP_IPC_LOCK, with which mlock(2) has no limit."""
    status = files.text(root / "proc/self/status") or ""
    effective = re.search(r"^CapEff:\s*([0-9a-f]+)$", status, re.MULTILINE)
    return bool(effective and int(effective[1], 16) & 1 << _CAP_IPC_LOCK)


def _huge_pages(directory: Path) -> tuple[HugePages, ...]:
    pools = []
    for path in directory.glob("hugepages-*kB"):
        size = int(path.name.removeprefix("hugepages-").removesuffix("kB")) * 1024
        total, free = (files.number(path / f"{kind}_hugepages") or 0 for kind in ("nr", "free"))
        pools.append(HugePages(size, total, free))
    return tuple(sorted(pools, key=lambda pool: pool.size))


def _udmabuf(path: Path) -> UdmabufFacts:
    try:
        device = Fd(os.open(path, os.O_RDWR | os.O_CLOEXEC))
    except OSError as error:
        return UdmabufFacts(DeviceAccess.after(error.errno), f"open {path}: {error.strerror}")
    try:
        with device, memfd.create("vgpud-probe", PAGE_SIZE) as pages:
            size = PAGE_SIZE
            Fd(udmabuf.create(device.fileno(), pages.fileno(), 0, size)).close()
    except HostError as error:
        return UdmabufFacts(DeviceAccess.FAILED, str(error))
    return UdmabufFacts(DeviceAccess.USABLE)
