"""The report of doctor: the facts, the plans that follow from them, and the remedies.

Each kind of VM gets a plan for each kind of blob, by the default policy.
"""

from __future__ import annotations

import grp
import os
import pwd
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, Final

from vgpud import __version__
from vgpud.cli.doctor.remedies import Owner, Remedy, Who, remedies
from vgpud.coherency import kvm_mode, planner
from vgpud.coherency.facts import Facts, GuestMtrr
from vgpud.coherency.kvm_mode import Finding, HonorGuestPat, KvmMode, Vendor
from vgpud.coherency.plan import Plan
from vgpud.coherency.planner import PlanRow
from vgpud.coherency.probes.device_access import DeviceAccess
from vgpud.coherency.probes.front_end import FrontEndFacts
from vgpud.coherency.probes.host import HostFacts
from vgpud.coherency.slot_policy import DEFAULT_RULE
from vgpud.errors import Unsupported
from vgpud.gpu.memory_types import map_info_name
from vgpud.memory.backing import HostBacking


class PatState(StrEnum):
    """Whether the guest's PAT decides its memory types."""

    HONORED = "honored"
    IGNORED = "ignored"
    EMULATED = "emulated"
    UNKNOWN = "unknown"


class VmKind(StrEnum):
    """The kind of VM: who runs the guest, and so sets its slots."""

    OWN = "own"
    QEMU_HONOR_GUEST_PAT = "qemu-kvm-honor-guest-pat"
    QEMU_KVM = "qemu-kvm"
    QEMU_TCG = "qemu-tcg"


_STATES: Final = {
    KvmMode.FLAG: PatState.HONORED,
    KvmMode.QUIRK_DISABLED: PatState.HONORED,
    KvmMode.VFIO: PatState.HONORED,
    KvmMode.SVM: PatState.HONORED,
    KvmMode.NESTED: PatState.UNKNOWN,
    KvmMode.FORCED_WB: PatState.IGNORED,
    KvmMode.EMULATED: PatState.EMULATED,
    KvmMode.UNKNOWN: PatState.UNKNOWN,
}

_QEMU: Final = "qemu-system-x86_64"


@dataclass(frozen=True, slots=True)
class VmPlans:
    """A kind of VM on this host, what its KVM does with guest PAT, and the plans by backing."""

    kind: VmKind
    finding: Finding
    plans: dict[HostBacking, PlanRow]

    @property
    def guest_pat(self) -> PatState:
        """Whether the guest's PAT decides in such a VM."""
        return _STATES[self.finding.mode]


@dataclass(frozen=True, slots=True)
class Report:
    """An examined host."""

    facts: HostFacts
    vms: tuple[VmPlans, ...]
    remedies: tuple[Remedy, ...]

    @property
    def guest_pat(self) -> PatState:
        """The best state on this host: in vgpud's own VM or in an agent's, if there is KVM."""
        return self.vms[0].guest_pat

    def to_json(self) -> dict[str, Any]:
        """Return the report as JSON values."""
        return {
            "version": __version__,
            **self.facts.to_json(),
            "guest_pat": self.guest_pat.value,
            "vms": [
                {
                    "vm": vm.kind.value,
                    "kvm_mode": vm.finding.mode.value,
                    "guest_pat": vm.guest_pat.value,
                    "reason": vm.finding.reason,
                }
                for vm in self.vms
            ],
            "plans": [
                {"vm": vm.kind.value, **row_json(row)}
                for vm in self.vms
                for row in vm.plans.values()
            ],
            "remedies": [
                {
                    "for": remedy.gain.value,
                    "problem": remedy.problem,
                    "remedy": remedy.remedy,
                    "commands": list(remedy.commands),
                }
                for remedy in self.remedies
            ],
        }


def examine(facts: HostFacts, root: Path = Path("/")) -> Report:
    """Draw the conclusions from the facts of the host at `root`."""
    vms = tuple(
        VmPlans(kind, finding, {backing: _row(finding.mode, backing) for backing in HostBacking})
        for kind, finding in _vms(facts)
    )
    pins = any(row.plan is not None and row.plan.pinned for vm in vms for row in vm.plans.values())
    return Report(facts, vms, remedies(facts, _who(facts, root), pins=pins))


def _vms(facts: HostFacts) -> Iterator[tuple[VmKind, Finding]]:
    """Yield the kinds of VM that can run here; the one about which most is known comes first."""
    kvm, qemu = facts.kvm, facts.qemu
    if kvm.state is not DeviceAccess.ABSENT:
        yield VmKind.OWN, kvm_mode.of_own_vm(kvm)
        # Without these, QEMU refuses to start with the option.
        knows = qemu is None or qemu.honor_guest_pat is not False
        if kvm.vendor is Vendor.VMX and kvm.ignore_guest_pat_quirk is not False and knows:
            honoring = FrontEndFacts(0, _QEMU, 1, HonorGuestPat.ON)
            yield VmKind.QEMU_HONOR_GUEST_PAT, kvm_mode.of_front_end(kvm, honoring)
        yield VmKind.QEMU_KVM, kvm_mode.of_front_end(kvm, FrontEndFacts(0, _QEMU, 1))
    yield VmKind.QEMU_TCG, kvm_mode.of_front_end(kvm, FrontEndFacts(0, _QEMU, 0))


def _row(mode: KvmMode, backing: HostBacking) -> PlanRow:
    # SeaBIOS and OVMF leave the BARs uncached; where a guest's MTRRs have no effect, that is the
    # safe assumption.
    facts = Facts(mode, backing, GuestMtrr.UC, device_snoops=False)
    try:
        plan = planner.plan(facts, DEFAULT_RULE)
    except Unsupported as error:
        return PlanRow(facts, DEFAULT_RULE, None, str(error))
    return PlanRow(facts, DEFAULT_RULE, plan, plan.reason)


def row_json(row: PlanRow) -> dict[str, Any]:
    """Return a row of the planner's table as JSON values; where the policy refuses, nulls."""
    return {
        "kvm_mode": row.facts.kvm.value,
        "backing": row.facts.backing.value,
        "guest_mtrr": row.facts.mtrr.value,
        "snooping_device": row.facts.device_snoops,
        "memory_type": row.rule.memory_type.value,
        "fallback": row.rule.fallback.value,
        **(dict.fromkeys(_PLAN_KEYS) if row.plan is None else _plan_json(row.plan)),
        "reason": row.reason,
    }


_PLAN_KEYS: Final = (
    *("map_info", "slot_flags", "vm_setup", "before_hand_over", "host_read", "host_write"),
    *("device_snoops", "sync_to_device", "sync_from_device", "pinned"),
)


def _plan_json(plan: Plan) -> dict[str, Any]:
    values = (
        map_info_name(plan.memory_type),
        plan.slot_flags,
        [step.value for step in plan.vm_setup],
        plan.before_hand_over.value,
        plan.host_read.value,
        plan.host_write.value,
        plan.device_snoops,
        plan.sync.to_device.value,
        plan.sync.from_device.value,
        plan.pinned,
    )
    return dict(zip(_PLAN_KEYS, values, strict=True))


def _who(facts: HostFacts, root: Path) -> Who:
    paths = [facts.kvm.path, "/dev/udmabuf"]
    paths += [node.path for gpu in facts.gpus for node in gpu.nodes]
    owners = {path: _owner(root, path) for path in paths}
    return Who(_user(), {path: owner for path, owner in owners.items() if owner is not None})


def _owner(root: Path, path: str) -> Owner | None:
    try:
        found = (root / path.lstrip("/")).stat()
    except OSError:
        return None
    group = _group(found.st_gid) if found.st_gid else None
    return Owner(group, found.st_mode & _GROUP_RW == _GROUP_RW)


_GROUP_RW: Final = stat.S_IRGRP | stat.S_IWGRP


def _user() -> str:
    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        return str(os.geteuid())


def _group(gid: int) -> str:
    try:
        return grp.getgrgid(gid).gr_name
    except KeyError:
        return str(gid)
