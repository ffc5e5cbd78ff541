"""All facts about this host on which plans and `vgpud doctor` rest.

Each kind of facts has a module of its own in this package. A fact that could not be found is None,
and counts as false where a plan needs it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from vgpud.coherency.probes import drm as probe_drm
from vgpud.coherency.probes import kvm as probe_kvm
from vgpud.coherency.probes import qemu as probe_qemu
from vgpud.coherency.probes import system as probe_system
from vgpud.coherency.probes.drm import GpuFacts
from vgpud.coherency.probes.kvm import KvmFacts
from vgpud.coherency.probes.qemu import QemuFacts
from vgpud.coherency.probes.system import CpuFacts, MemoryFacts, SystemFacts
from vgpud.uapi import kernel_files as probe_files


@dataclass(frozen=True, slots=True)
class HostFacts:
    """The facts about a host; `qemu` is None if it has no QEMU."""

    system: SystemFacts
    cpu: CpuFacts
    kvm: KvmFacts
    memory: MemoryFacts
    gpus: tuple[GpuFacts, ...]
    qemu: QemuFacts | None

    def to_json(self) -> dict[str, Any]:
        """Return the facts as JSON values."""
        return asdict(self)


def probe(
    root: Path = probe_files.ROOT, qemu_programs: Sequence[str] = probe_qemu.PROGRAMS
) -> HostFacts:
    """Find all facts, with files and devices below `root`. Raises nothing.

    It takes a few milliseconds, and tens of them if there is a QEMU to run.
    """
    return HostFacts(
        system=probe_system.system(root),
        cpu=probe_system.cpu(root),
        kvm=probe_kvm.probe(root),
        memory=probe_system.memory(root),
        gpus=probe_drm.probe(root),
        qemu=probe_qemu.probe(qemu_programs),
    )
