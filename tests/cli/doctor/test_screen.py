"""The screen: it fits on every kind of host, and what it says of plans is true and complete."""

from __future__ import annotations

import json
import re
from dataclasses import replace

import pytest

from tests.cli.doctor import hosts
from vgpud.cli.doctor import Report, examine, render, render_table
from vgpud.cli.doctor.report import VmKind
from vgpud.cli.doctor.screen import WIDTH
from vgpud.coherency.kvm_mode import KvmMode
from vgpud.coherency.planner import table
from vgpud.coherency.probes.host import HostFacts
from vgpud.coherency.slot_policy import MemoryType
from vgpud.gpu.memory_types import map_info_name
from vgpud.memory.backing import HostBacking

EVERY = pytest.mark.parametrize("facts", hosts.HOSTS.values(), ids=hosts.HOSTS)
LINES = 66
"""What a tall window shows."""


def verdict(facts: HostFacts) -> str:
    """The second paragraph, in one line."""
    return render(examine(facts)).split("\n\n")[1].replace("\n", " ")


@EVERY
def test_it_fits(facts: HostFacts) -> None:
    lines = render(examine(facts)).splitlines()
    assert max(map(len, lines)) <= WIDTH
    assert len(lines) <= LINES
    assert all(line == line.rstrip() for line in lines)
    assert "None" not in " ".join(lines)


@EVERY
def test_screen_and_json_agree(facts: HostFacts) -> None:
    report = examine(facts)
    screen, found = render(report), json.loads(json.dumps(report.to_json()))
    words = {"honored": "honoured"}
    for vm in found["vms"]:
        assert f"guest PAT {words.get(vm['guest_pat'], vm['guest_pat'])}" in screen
    for remedy in found["remedies"]:
        assert all(command in screen for command in remedy["commands"])
    assert ("Nothing to remedy." in screen) == (not found["remedies"])


@EVERY
def test_no_guest_is_told_what_kvm_would_not_let_it_have(facts: HostFacts) -> None:
    for vm in examine(facts).vms:
        plan = vm.plans[HostBacking.RAM_WB].plan
        assert plan is not None
        if vm.guest_pat in {"ignored", "unknown"}:
            assert plan.memory_type is MemoryType.WB
        else:
            assert plan.memory_type is MemoryType.WC


@pytest.mark.parametrize(
    ("facts", "guest_pat", "words"),
    [
        (hosts.INTEL, "honored", "can map blobs write-combined here"),
        (hosts.INTEL_OLD, "ignored", "can't have write-combined blobs here"),
        (hosts.FLAGGED, "honored", "KVM_MEM_NON_COHERENT_DMA"),
        (hosts.AMD, "honored", "AMD's KVM always honours"),
        (hosts.AMD_NO_NPT, "ignored", "can't have write-combined blobs here"),
        (hosts.OTHER, "unknown", "is not known"),
        (hosts.NESTED_INTEL, "unknown", "this host is itself a VM"),
        (hosts.NESTED_AMD, "unknown", "this host is itself a VM"),
        (hosts.CPU_UNSEEN, "unknown", "whether this host is itself a VM can't be seen"),
        (hosts.DENIED, "unknown", "could not be tried"),
        (hosts.ABSENT, "emulated", "There is no KVM here"),
    ],
)
def test_the_verdict(facts: HostFacts, guest_pat: str, words: str) -> None:
    assert examine(facts).guest_pat == guest_pat
    assert words in verdict(facts)


@pytest.mark.parametrize(
    ("facts", "kinds"),
    [
        (hosts.INTEL, list(VmKind)),
        (hosts.DENIED, list(VmKind)),
        # QEMU would not start there: this KVM lacks the quirk, or this QEMU lacks the option.
        (hosts.INTEL_NO_SELF_SNOOP, [VmKind.OWN, VmKind.QEMU_KVM, VmKind.QEMU_TCG]),
        (hosts.INTEL_OLD, [VmKind.OWN, VmKind.QEMU_KVM, VmKind.QEMU_TCG]),
        (hosts.AMD, [VmKind.OWN, VmKind.QEMU_KVM, VmKind.QEMU_TCG]),
        (hosts.ABSENT, [VmKind.QEMU_TCG]),
    ],
)
def test_which_vms_there_can_be(facts: HostFacts, kinds: list[VmKind]) -> None:
    assert [vm.kind for vm in examine(facts).vms] == kinds


@pytest.mark.parametrize(
    ("facts", "nested"),
    [(hosts.AMD, False), (hosts.NESTED_AMD, True), (hosts.NESTED_INTEL, True), (hosts.OTHER, True)],
)
def test_a_host_that_is_itself_a_vm_is_named(facts: HostFacts, nested: bool) -> None:
    report = examine(facts)
    assert re.search(rf"itself a VM +{'yes' if nested else 'no'}\n", render(report))
    assert report.to_json()["kvm"]["nested"] is nested


@pytest.mark.parametrize("facts", [hosts.NESTED_AMD, hosts.NESTED_FLAGGED, hosts.NESTED_INTEL])
def test_in_a_vm_only_an_emulator_s_guest_is_told_wc(facts: HostFacts) -> None:
    for vm in examine(facts).vms:
        emulated = vm.kind is VmKind.QEMU_TCG
        assert vm.finding.mode is (KvmMode.EMULATED if emulated else KvmMode.NESTED)
        for backing in (HostBacking.RAM_WB, HostBacking.RAM_WC):
            plan = vm.plans[backing].plan
            assert plan is not None
            assert plan.memory_type is (MemoryType.WC if emulated else MemoryType.WB)
            assert (plan.slot_flags, plan.vm_setup) == (0, ())


def test_the_default_of_honor_guest_pat_is_named_where_it_is_known() -> None:
    assert "knows honor-guest-pat: yes, default off\n" in render(examine(hosts.INTEL))
    assert hosts.INTEL.qemu is not None
    newer = replace(hosts.INTEL, qemu=replace(hosts.INTEL.qemu, version="11.2.0", default=None))
    assert "knows honor-guest-pat: yes\n" in render(examine(newer))
    # What is known of the program on the disk is not known of one that runs.
    for facts in (hosts.INTEL, newer):
        [qemu] = [vm for vm in examine(facts).vms if vm.kind is VmKind.QEMU_KVM]
        assert qemu.finding.mode is KvmMode.UNKNOWN
        assert "off by default in QEMU 11.1" in qemu.finding.reason


def test_a_flagged_slot_is_shown_for_our_own_vm_only() -> None:
    report = examine(hosts.FLAGGED)
    own, qemu = report.vms[0].plans[HostBacking.RAM_WB], report.vms[1].plans[HostBacking.RAM_WB]
    assert own.plan is not None
    assert qemu.plan is not None
    assert (own.plan.slot_flags, qemu.plan.slot_flags) == (8, 0)
    assert render(report).count("slot flags 0x8") == 1


def test_gpus_and_their_blobs_are_shown_where_there_are_any() -> None:
    screen = render(examine(hosts.DENIED))
    assert re.search(r"GPU +xe 0000:00:02.0: card0 \(denied\), renderD128 \(denied\)", screen)
    assert "GPU buffer" in screen
    screen = render(examine(hosts.OTHER))
    assert re.search(r"GPU +none", screen)
    assert "GPU buffer" not in screen


def test_json_has_the_plan_for_each_vm_and_each_kind_of_blob() -> None:
    report: Report = examine(hosts.INTEL)
    plans = report.to_json()["plans"]
    assert [(plan["vm"], plan["backing"]) for plan in plans] == [
        (vm.value, backing.value) for vm in VmKind for backing in HostBacking
    ]
    assert plans[0] == plans[0] | {
        "kvm_mode": "quirk-disabled",
        "memory_type": "wc",
        "map_info": "wc",
        "slot_flags": 0,
        "vm_setup": ["disable-ignore-guest-pat"],
        "device_snoops": False,
    }


def test_the_whole_table() -> None:
    rows = list(table())
    text = render_table(rows)
    assert max(map(len, text.splitlines())) <= WIDTH
    body, reasons = text.split("\nWhy\n")
    printed = re.findall(
        r"^  (wc|uc|wb), (flush|snoop|refuse) +(\w+)\b.* (\d+)$", body, re.MULTILINE
    )
    assert len(printed) == len(rows)
    numbered = dict(re.findall(r"^ *(\d+)  (.+)$", re.sub(r"\n {6}", " ", reasons), re.MULTILINE))
    for row, (memory_type, fallback, told, number) in zip(rows, printed, strict=True):
        assert (row.rule.memory_type, row.rule.fallback) == (memory_type, fallback)
        assert told == ("refused" if row.plan is None else map_info_name(row.plan.memory_type))
        assert numbered[number] == row.reason
