"""A report of doctor as text, for a screen of 100 columns."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from typing import Final

from vgpud import __version__
from vgpud.cli.doctor.measured import MeasurementResult, advice
from vgpud.cli.doctor.remedies import size
from vgpud.cli.doctor.report import PatState, Report, VmKind, VmPlans
from vgpud.coherency.facts import Facts
from vgpud.coherency.kvm_mode import Vendor
from vgpud.coherency.plan import Duty, Plan, VmSetup
from vgpud.coherency.planner import PlanRow
from vgpud.coherency.probes.device_access import DeviceAccess
from vgpud.coherency.probes.drm import GpuFacts
from vgpud.coherency.probes.host import HostFacts
from vgpud.coherency.probes.kvm import KvmFacts
from vgpud.coherency.slot_policy import MemoryType
from vgpud.gpu.memory_types import map_info_name
from vgpud.memory.backing import HostBacking
from vgpud.microvm.measure import Setup

WIDTH: Final = 100
_LABEL: Final = 20

_VERDICTS: Final = {
    PatState.HONORED: (
        "Guests can map blobs write-combined here, in the VMs that are listed so below: {reason}."
    ),
    PatState.IGNORED: (
        "Guests can't have write-combined blobs here ({reason}): vgpud maps them cached and flushes"
        " them where guest and device hand them over."
    ),
    PatState.UNKNOWN: (
        "Whether guests can have write-combined blobs here is not known ({reason}): vgpud maps them"
        " cached and flushes them where guest and device hand them over, which is right either way."
    ),
    PatState.EMULATED: (
        "There is no KVM here: guests are emulated, and nothing overrides their PAT; vgpud flushes"
        " blobs where guest and device hand them over."
    ),
}

_STATES: Final = {
    PatState.HONORED: "honoured",
    PatState.IGNORED: "ignored",
    PatState.EMULATED: "emulated",
    PatState.UNKNOWN: "unknown",
}

_VMS: Final = {
    VmKind.OWN: "VM of vgpud's own, or of a slot agent",
    VmKind.QEMU_HONOR_GUEST_PAT: "QEMU with -accel kvm,honor-guest-pat=on",
    VmKind.QEMU_KVM: "QEMU with -accel kvm",
    VmKind.QEMU_TCG: "QEMU with -accel tcg",
}

_BACKINGS: Final = {
    HostBacking.RAM_WB: "memfd",
    HostBacking.RAM_WC: "GPU buffer",
    HostBacking.MMIO: "video memory",
}

_MAPPED: Final = {
    MemoryType.WB: "cached",
    MemoryType.UC: "uncached",
    MemoryType.WC: "write-combined",
}

_SETUP: Final = {
    VmSetup.DISABLE_IGNORE_GUEST_PAT: "quirk disabled before the first run",
    VmSetup.NON_COHERENT_VFIO: "kvm-vfio group with non-coherent DMA",
}


def render(report: Report) -> str:
    """Return the text of a report, as `vgpud doctor` prints it."""
    return "\n".join(_screen(report))


def _screen(report: Report) -> Iterator[str]:
    facts = report.facts
    cpu = (facts.cpu.model or "unknown processor") + (" in a VM" if facts.cpu.hypervisor else "")
    system = f"{facts.system.name}, Linux {facts.system.kernel}, {cpu}"
    yield from _wrapped(f"vgpud {__version__}: {system}")
    yield ""
    yield from _wrapped(_VERDICTS[report.guest_pat].format(reason=report.vms[0].finding.reason))
    yield ""
    yield "This host"
    for label, text in _facts(facts):
        yield from _labelled(label, text)
    yield ""
    yield "How a guest maps its host blobs (policy: wc, else flush), and what vgpud does"
    for vm in report.vms:
        yield from _vm(vm, facts)
    yield "  Guest PAT: the guest's choice of memory types. Blobs of its own pages stay cached."
    yield ""
    if not report.remedies:
        yield "Nothing to remedy."
        return
    yield "What would help"
    for number, remedy in enumerate(report.remedies, start=1):
        text = f"{remedy.problem} {remedy.remedy}"
        yield from _wrapped(text, first=f"{number:3}. ", rest="     ")
        for command in remedy.commands:
            yield f"       {command}"


def _facts(facts: HostFacts) -> Iterator[tuple[str, str]]:
    yield from _kvm(facts.kvm)
    yield "itself a VM", _yes(facts.kvm.nested)
    yield "self-snoop", _yes(facts.cpu.self_snoop)
    yield "cache line flush", ", ".join(("clflush", *facts.cpu.flush))
    yield "QEMU", _qemu(facts)
    for gpu in facts.gpus:
        yield "GPU", _gpu(gpu)
    if not facts.gpus:
        yield "GPU", "none"
    udmabuf = facts.memory.udmabuf
    yield "udmabuf", "yes" if udmabuf.state is DeviceAccess.USABLE else udmabuf.state
    pools = [f"{pool.total} of {size(pool.size)}" for pool in facts.memory.huge_pages]
    yield "huge pages", ", ".join(pools) or "none"
    limit = facts.memory.locked_limit
    yield "locked memory", "no limit" if limit is None else f"{size(limit)} at most"


def _kvm(kvm: KvmFacts) -> Iterator[tuple[str, str]]:
    by = {
        Vendor.VMX: "Intel VMX",
        Vendor.SVM: "AMD SVM",
        Vendor.OTHER: "neither Intel's nor AMD's",
    }
    through = f"{kvm.module} ({by[kvm.vendor]})" if kvm.module and kvm.vendor else "no module"
    if kvm.state is not DeviceAccess.USABLE:
        yield "KVM", f"{kvm.state}; {through}"
        yield "nested paging", _tdp(kvm)
        return
    yield "KVM", f"API {kvm.api_version}, {kvm.memslots} memory slots, by {through}"
    yield (
        "slot flag",
        f"KVM_MEM_NON_COHERENT_DMA: {_yes(kvm.non_coherent_dma_flag)}, {kvm.flag_trial}",
    )
    offered = "can be disabled" if kvm.ignore_guest_pat_quirk else "can't be disabled"
    yield "quirk", f"IGNORE_GUEST_PAT: {offered} (of all quirks, these can: {kvm.quirks:#x})"
    yield "nested paging", f"{_tdp(kvm)}; kvm-vfio: {_yes(kvm.vfio)}"


def _tdp(kvm: KvmFacts) -> str:
    name = {Vendor.VMX: "EPT ", Vendor.SVM: "NPT "}.get(kvm.vendor or Vendor.OTHER, "")
    return f"{name}{_yes(kvm.tdp)}; tdp_mmu: {_yes(kvm.tdp_mmu)}"


def _qemu(facts: HostFacts) -> str:
    qemu = facts.qemu
    if qemu is None:
        return "none found"
    if qemu.version is None:
        return f"{qemu.path} gives no answer: {qemu.problem}"
    knows = "unknown"
    if qemu.honor_guest_pat is not None:
        knows = _yes(qemu.honor_guest_pat)
        knows += f", default {qemu.default}" if qemu.default else ""
    return f"{qemu.version}, knows honor-guest-pat: {knows}"


def _gpu(gpu: GpuFacts) -> str:
    nodes = ", ".join(
        node.path.removeprefix("/dev/dri/") + ("" if node.accessible else " (denied)")
        for node in gpu.nodes
    )
    snooping = gpu.non_snooping or "no non-snooping allocation known"
    return f"{gpu.driver} {gpu.device}: {nodes}; {snooping}"


def _vm(vm: VmPlans, facts: HostFacts) -> Iterator[str]:
    yield f"  {_VMS[vm.kind]}: guest PAT {_STATES[vm.guest_pat]}"
    yield from _wrapped(vm.finding.reason, first="    because ", rest="    ")
    shown = HostBacking if facts.gpus else (HostBacking.RAM_WB,)
    # One line for backings with the same plan.
    for text, group in groupby(shown, key=lambda backing: _plan(vm.plans[backing])):
        places = ", ".join(_BACKINGS[backing] for backing in group)
        yield from _wrapped(f"{places}: {text}", first="    - ", rest="      ")


def _plan(row: PlanRow) -> str:
    plan = row.plan
    if plan is None:
        return f"refused: {row.reason}"
    parts = [_MAPPED[plan.memory_type]]
    if plan.slot_flags:
        parts.append(f"slot flags {plan.slot_flags:#x}")
    parts += [_SETUP[step] for step in plan.vm_setup]
    flushes = []
    if plan.before_hand_over is Duty.FLUSH:
        flushes.append("before the guest gets it")
    if Duty.FLUSH in (plan.sync.to_device, plan.sync.from_device):
        flushes.append("at each sync point")
    parts.append("flushed " + " and ".join(flushes) if flushes else "no flush")
    if plan.device_snoops:
        parts.append("the device snoops")
    return "; ".join(parts)


def render_measured(measured: MeasurementResult, report: Report) -> str:
    """Return the text that `--measure` adds: a line for each set-up."""
    lines = ["Measured in guest code, in time stamp counts a load"]
    if measured.problem:
        lines += _wrapped(f"This failed: {measured.problem}", first="  ", rest="  ")
    for row in measured.rows:
        counts = ""
        if row.hit is not None:
            counts = f"; cached {row.hit:g}, flushed {row.miss:g}, WC mapping {row.wc:g}"
        lines += _labelled(_MEASURED[row.setup], f"{row.verdict} ({row.reason}){counts}")
    if text := advice(report, measured.rows):
        lines += _wrapped(text, first="  ", rest="  ")
    return "\n".join(lines)


_MEASURED: Final = {
    Setup.NEITHER: "as it is",
    Setup.FLAG: "slot flag",
    Setup.QUIRK_DISABLED: "quirk disabled",
}


def render_table(rows: Iterable[PlanRow]) -> str:
    """Return the planner's whole table, with a numbered list of reasons at its end."""
    reasons: dict[str, int] = {}
    lines: list[str] = []
    for facts, of_facts in groupby(rows, key=lambda row: row.facts):
        group = list(of_facts)
        setup = {step: None for row in group if row.plan for step in row.plan.vm_setup}
        lines += ["", _heading(facts), *(f"  VM set-up: {_SETUP[step]}" for step in setup)]
        lines.append(_cells(_TABLE))
        for row in group:
            number = reasons.setdefault(row.reason, len(reasons) + 1)
            lines.append(_cells([*_row(row), str(number)]))
    lines += ["", "Why"]
    for reason, number in reasons.items():
        lines += _wrapped(reason, first=f"{number:4}  ", rest="      ")
    return "\n".join(lines[1:])


_TABLE: Final = (
    *("policy", "map_info", "slot", "hand-over", "host reads", "host writes"),
    *("device", "sync", "pinned", "why"),
)
_COLUMNS: Final = (11, 11, 5, 10, 11, 13, 8, 8, 7, 4)


def _cells(cells: Sequence[str]) -> str:
    padded = (f"{cell:{width}}" for cell, width in zip(cells, _COLUMNS, strict=True))
    return ("  " + " ".join(padded)).rstrip()


def _heading(facts: Facts) -> str:
    snoops = "snooping" if facts.device_snoops else "non-snooping"
    return f"KVM {facts.kvm}, backing {facts.backing}, guest MTRR {facts.mtrr}, {snoops} device"


def _row(row: PlanRow) -> list[str]:
    policy = f"{row.rule.memory_type}, {row.rule.fallback}"
    plan = row.plan
    if plan is None:
        return [policy, "refused", *("-" for _ in _TABLE[2:-1])]
    return [policy, map_info_name(plan.memory_type), *_steps(plan)]


def _steps(plan: Plan) -> Iterator[str]:
    yield f"{plan.slot_flags:#x}" if plan.slot_flags else "-"
    yield _short(plan.before_hand_over)
    yield plan.host_read
    yield plan.host_write
    yield "snoops" if plan.device_snoops else "-"
    there, back = _short(plan.sync.to_device), _short(plan.sync.from_device)
    yield there if there == back else f"{there}/{back}"
    yield _yes(plan.pinned)


def _short(duty: Duty) -> str:
    return "-" if duty is Duty.NOTHING else duty.value


def _yes(fact: bool | None) -> str:
    return {True: "yes", False: "no", None: "unknown"}[fact]


def _labelled(label: str, text: str) -> list[str]:
    return _wrapped(text, first=f"  {label:{_LABEL - 2}}", rest=" " * _LABEL)


def _wrapped(text: str, first: str = "", rest: str = "") -> list[str]:
    return textwrap.wrap(
        text,
        WIDTH,
        initial_indent=first,
        subsequent_indent=rest,
        break_on_hyphens=False,
        break_long_words=False,
    )
