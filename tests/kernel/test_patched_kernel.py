"""vgpud on a kernel that has KVM_MEM_NON_COHERENT_DMA, which it must find without configuration.

One boot of a host with that kernel, in QEMU, runs everything, and one without it part of that; the
tests check the results. KVM in there is real and on an AMD-like processor, but caches are not
modelled: this is about the ABI and the way through vgpud, not about what the processor then does.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.kernel.boots import Boots
from tests.kernel.build import Host, open_host
from tests.kernel.emulators import Machine
from tests.kernel.machine import Job, JobError, run
from tests.rig.build import Rig
from tests.rig.chroot import RigUnavailableError

# A boot with its checks ends within machine.TIMEOUT_S, and another one may run before it.
pytestmark = [
    pytest.mark.guest,
    pytest.mark.boots("amd", "amd-plain"),
    pytest.mark.timeout(1800),
]

ACCEPTED = {
    "fresh slot without the flag",
    "dirty log set on a live slot",
    "slot deleted",
    "fresh slot with the flag",
    "the same again",
    "dirty log set on a flagged slot",
    "dirty log cleared on a flagged slot",
    "flagged slot moved",
    "flagged slot deleted, flags 0",
    "number used again without the flag",
    "slot deleted again",
    "number used again with the flag",
    "flagged slot deleted, flags 8",
    "fresh slot with the flag, read-only",
}
REFUSED = {
    "flag set on a live slot": "EINVAL",
    "flag cleared on a live slot": "EINVAL",
    "flagged slot over a flagged slot": "EEXIST",
    "nothing deleted": "EINVAL",
    "fresh slot with the next flag": "EINVAL",
}


@pytest.fixture(scope="module")
def job(boots: Boots, report: Callable[[str], None]) -> Job:
    """What the checks left behind on the kernel with the flag."""
    return checked(boots, "amd", report)


@pytest.fixture(scope="module")
def control(boots: Boots, report: Callable[[str], None]) -> Job:
    """What they left on the same kernel without it: the patch is all that is between the two."""
    return checked(boots, "amd-plain", report)


def checked(boots: Boots, name: str, report: Callable[[str], None]) -> Job:
    """What the checks of a boot left behind."""
    done = boots.job(name)
    report(f"{name}: {done.boot:.1f} s to init, {done.total:.1f} s with all checks")
    for line in done.lines:
        report(f"  {line}")
    assert done.status == 0, done.text
    return done


def answer(job: Job, name: str) -> str:
    """What one of the checks printed; it must have succeeded and complained of nothing."""
    said = job.files[name].decode()
    errors = job.files[f"{name}.errors"].decode()
    assert int(job.files[f"{name}.status"]) == 0, f"{said}\n{errors}\n{job.text}"
    assert errors == ""
    return said


def test_the_kernel_keeps_to_the_abi_of_the_flag(job: Job, report: Callable[[str], None]) -> None:
    found = json.loads(answer(job, "trials.json"))
    expected: dict[str, str] = {}
    for call in ("v1", "v2"):
        expected |= {f"{call}: {what}": "ok" for what in ACCEPTED}
        expected |= {f"{call}: {what}": outcome for what, outcome in REFUSED.items()}
    expected["v2: guest_memfd with the flag"] = "EINVAL"
    expected["v2: guest_memfd without the flag"] = "ok"
    assert found["trials"] == expected
    report(f"  a flagged slot made and deleted: {found['add_delete_us']} us (median)")


def test_our_own_slots_and_buffers_of_drivers_do_too(job: Job) -> None:
    said = answer(job, "suites.txt")
    assert " passed" in said
    # CI=true: a test that finds no KVM fails. None may skip for any other reason.
    assert "skipped" not in said


def test_doctor_finds_the_flag_and_plans_with_it(job: Job) -> None:
    found: dict[str, Any] = json.loads(answer(job, "doctor.json"))
    assert found["kvm"]["api_version"] == 12
    assert found["kvm"]["vendor"] == "svm"
    assert found["kvm"]["non_coherent_dma_flag"] is True
    assert found["guest_pat"] == "honored"
    own = [plan for plan in found["plans"] if plan["vm"] == "own"]
    assert {plan["backing"] for plan in own} == {"ram-wb", "ram-wc", "mmio"}
    for plan in own:
        assert plan["kvm_mode"] == "flag"
        assert plan["map_info"] == "wc"
        assert plan["vm_setup"] == []
    # Memory of the device is no RAM for KVM: it needs no flag.
    flags = {plan["backing"]: plan["slot_flags"] for plan in own}
    assert flags["ram-wb"] == flags["ram-wc"] == 8
    assert "guest-pat" not in {remedy["for"] for remedy in found["remedies"]}


def test_doctor_says_so_to_people(job: Job) -> None:
    assert "KVM_MEM_NON_COHERENT_DMA" in answer(job, "doctor.txt")


def test_the_four_steps_hold_through_a_flagged_slot(job: Job) -> None:
    found = json.loads(answer(job, "demo.json"))
    assert [(step["step"], step["ok"]) for step in found["steps"]] == [
        (number, True) for number in (1, 2, 3, 4)
    ]
    told, written = (step["evidence"] for step in found["steps"][1:3])
    assert told["map_info"]
    for line in told["map_info"]:
        assert line.startswith("WC (3) ")
    assert "instead" not in told
    [slot] = written["slots"]
    assert " flags=0x8 (NON_COHERENT_DMA) " in slot
    assert slot.endswith(": accepted")
    for line in written["mapped"]:
        assert line.endswith(": WC")
    assert job.files["vgpud-demo.png"].startswith(b"\x89PNG")


def test_the_trials_tell_a_kernel_without_the_flag_apart(control: Job) -> None:
    found = json.loads(answer(control, "trials.json"))["trials"]
    flagged = {outcome for what, outcome in found.items() if "with the flag" in what}
    assert flagged == {"EINVAL"}
    for call in ("v1", "v2"):
        assert found[f"{call}: fresh slot without the flag"] == "ok"


def test_without_the_flag_another_plan_is_used_and_named(control: Job) -> None:
    found: dict[str, Any] = json.loads(answer(control, "doctor.json"))
    assert found["kvm"]["non_coherent_dma_flag"] is False
    # AMD's KVM needs no flag for it.
    assert found["guest_pat"] == "honored"
    for plan in found["plans"]:
        assert plan["slot_flags"] == 0
        assert plan["kvm_mode"] == ("emulated" if plan["vm"] == "qemu-tcg" else "svm")
    steps = json.loads(answer(control, "demo.json"))["steps"]
    assert [step["ok"] for step in steps] == [True] * 4
    assert "AMD" in steps[1]["evidence"]["instead"]
    [slot] = steps[2]["evidence"]["slots"]
    assert " flags=0x0 " in slot


@pytest.mark.boots("amd-nested")
def test_in_a_vm_the_flag_is_taken_and_nothing_is_promised(
    boots: Boots, report: Callable[[str], None]
) -> None:
    """The outer hypervisor may use this host's PAT in place of the guest's."""
    done = checked(boots, "amd-nested", report)
    found: dict[str, Any] = json.loads(answer(done, "doctor.json"))
    assert found["kvm"]["nested"] is True
    assert found["kvm"]["non_coherent_dma_flag"] is True
    own = found["vms"][0]
    assert (own["kvm_mode"], own["guest_pat"]) == ("nested", "unknown")
    assert "KVM_X86_QUIRK_NESTED_SVM_SHARED_PAT" in own["reason"]
    steps = json.loads(answer(done, "demo.json"))["steps"]
    assert [step["ok"] for step in steps] == [True] * 4
    for line in steps[1]["evidence"]["map_info"]:
        assert line.startswith("CACHED (1) ")
    [slot] = steps[2]["evidence"]["slots"]
    assert " flags=0x0 " in slot


def test_boots_that_nobody_waits_for_are_ended(kernel_host: Host) -> None:
    boots = Boots(kernel_host, ["amd"])
    boots.start()
    time.sleep(1)
    started = time.monotonic()
    boots.close()
    assert time.monotonic() - started < 30
    with pytest.raises(JobError):
        boots.job("amd")


def test_where_nothing_was_built_the_reason_is_said(
    rig: Rig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VGPUD_KERNEL", str(tmp_path))
    with pytest.raises(RigUnavailableError, match="tests/kernel/run build makes them"):
        open_host()


def test_a_guest_that_dies_is_an_error_with_its_last_words(kernel_host: Host) -> None:
    with pytest.raises(JobError, match=r"before its command did(.|\n)*\nlast words\n"):
        run(
            kernel_host,
            Machine(kernel_host.patched),
            "echo last words; echo o >/proc/sysrq-trigger; sleep 60",
        )
