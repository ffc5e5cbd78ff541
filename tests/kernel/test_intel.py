"""The memory types that KVM puts in force on Intel's processors, beside what vgpud says of them.

Bochs emulates VMX, and the kernel's own tracepoint shows the entries of the extended page tables
that KVM writes. An entry of RAM is always write-back; what differs is whether the guest's PAT is
ignored. Caches are not modelled: that a processor does what the entries say, only one can show.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final

import pytest

from tests.kernel import emulators
from tests.kernel.boots import BOOTS, Boots
from tests.kernel.build import Host
from tests.kernel.emulators import Machine, Processor
from tests.kernel.machine import JobError, run

pytestmark = [pytest.mark.guest, pytest.mark.timeout(1800)]

IGNORED: Final = ["WB, PAT ignored"]
HONOURED: Final = ["WB, PAT honoured"]
FLAG: Final = 8


@dataclass(frozen=True, slots=True)
class Expected:
    """What a host does: KVM's mode for a VM of vgpud's own, what the demo's guest is told, the
    flags of its slot, and the entries of the slot and of RAM; None where there is no EPT."""

    what: str
    mode: str
    told: str
    slot_flags: int
    window: list[str] | None
    ram: list[str] | None


HOSTS: Final = {
    "intel": Expected("patched", "flag", "WC", FLAG, HONOURED, IGNORED),
    "intel-plain": Expected("plain", "quirk-disabled", "WC", 0, HONOURED, HONOURED),
    "intel-no-self-snoop": Expected(
        "plain, no self-snoop", "forced-wb", "CACHED", 0, IGNORED, IGNORED
    ),
    "intel-no-ept": Expected("patched, no EPT", "forced-wb", "CACHED", 0, None, None),
}
TABLE: Final = "  {:<22} {:<9} {:<15} {:<7} {:<6} {:<18} {:<18}"


@dataclass(frozen=True, slots=True)
class Seen:
    """What was seen on a host: the whole report, and the parts of it that agree or do not."""

    report: dict[str, Any]

    @property
    def own(self) -> dict[str, Any]:
        """What doctor says of vgpud's own VM."""
        found: dict[str, Any] = self.report["doctor"]["vms"][0]
        assert found["vm"] == "own"
        return found

    @property
    def told(self) -> set[str]:
        """The memory types that the demo's guest was told."""
        return {line.split(" ")[0] for line in self._evidence(2)["map_info"]}

    @property
    def slot_flags(self) -> int:
        """The flags of the demo's slot, as KVM took it."""
        [slot] = self._evidence(3)["slots"]
        assert slot.endswith(": accepted")
        return int(slot.partition(" flags=")[2].split(" ")[0], 16)

    @property
    def entries(self) -> dict[str, Any]:
        """The page table entries of the demo's VM."""
        found: dict[str, Any] = self.report["demo"]["entries"]
        return found

    def _evidence(self, step: int) -> dict[str, Any]:
        found: dict[str, Any] = self.report["demo"]["steps"][step - 1]["evidence"]
        return found


@pytest.fixture(scope="module")
def seen(boots: Boots, report: Callable[[str], None]) -> Iterator[Callable[[str], Seen]]:
    """A function of a boot's name that returns what was seen there."""
    found: dict[str, Seen] = {}

    def get(name: str) -> Seen:
        if name not in found:
            job = boots.job(name)
            report(f"{name}: {job.boot:.1f} s to init, {job.total:.1f} s in all")
            assert job.status == 0, job.text
            found[name] = Seen(json.loads(job.files["vm_trials.json"]))
        return found[name]

    yield get
    if found:
        report(TABLE.format("host", "doctor", "mode", "told", "flags", "window's EPT", "RAM's EPT"))
    for name, one in found.items():
        report(
            TABLE.format(
                HOSTS[name].what,
                one.own["guest_pat"],
                one.own["kvm_mode"],
                *one.told,
                f"{one.slot_flags:#x}",
                *(
                    "no EPT" if one.report["doctor"]["kvm"]["tdp"] is False else ", ".join(types)
                    for types in (one.entries["window"], one.entries["ram"])
                ),
            )
        )


def hosts(*names: str) -> pytest.MarkDecorator:
    """Give a test each of these hosts, whose boots it then needs; all of them by default."""
    return pytest.mark.parametrize(
        "name", [pytest.param(name, marks=pytest.mark.boots(name)) for name in names or HOSTS]
    )


@hosts()
def test_the_processor_is_the_one_that_is_meant(seen: Callable[[str], Seen], name: str) -> None:
    flags = seen(name).report["cpu"].partition("\nflags")[2].split("\n")[0].split()
    assert "vmx" in flags
    assert "hypervisor" not in flags
    assert ("ss" in flags) == ("clearcpuid=ss" not in BOOTS[name].arguments)
    assert seen(name).report["doctor"]["kvm"]["vendor"] == "vmx"


@hosts("intel", "intel-plain", "intel-no-self-snoop")
def test_without_help_the_guests_pat_is_ignored(seen: Callable[[str], Seen], name: str) -> None:
    entries = seen(name).report["trials"]["unflagged"]
    assert (entries["ram"], entries["window"]) == (IGNORED, IGNORED)


@hosts("intel")
def test_with_the_flag_it_is_honoured_in_that_slot_alone(
    seen: Callable[[str], Seen], name: str
) -> None:
    entries = seen(name).report["trials"]["flagged"]
    assert (entries["ram"], entries["window"]) == (IGNORED, HONOURED)


@hosts("intel-plain", "intel-no-self-snoop")
def test_a_kernel_without_the_patch_refuses_the_flag(
    seen: Callable[[str], Seen], name: str
) -> None:
    assert seen(name).report["trials"]["flagged"] == {"refused": "EINVAL"}


@hosts("intel", "intel-plain")
def test_without_the_quirk_it_is_honoured_in_the_whole_vm(
    seen: Callable[[str], Seen], name: str
) -> None:
    entries = seen(name).report["trials"]["quirk disabled"]
    assert (entries["ram"], entries["window"]) == (HONOURED, HONOURED)


@hosts("intel-no-self-snoop", "intel-no-ept")
def test_the_quirk_stays_where_the_processor_lacks_something(
    seen: Callable[[str], Seen], name: str
) -> None:
    assert seen(name).report["trials"]["quirk disabled"] == {"refused": "EINVAL"}


@hosts("intel-no-ept")
def test_without_ept_the_flag_is_taken_and_does_nothing(
    seen: Callable[[str], Seen], name: str
) -> None:
    """Shadow page tables have no memory types of their own: all of them select the first entry of
    the host's PAT, which is write-back."""
    found = seen(name).report
    assert found["doctor"]["kvm"]["tdp"] is False
    assert found["trials"]["flagged"]["host_pat_entries"] == [0]
    assert found["demo"]["entries"]["host_pat_entries"] == [0]


@hosts()
def test_what_doctor_says_and_the_guest_is_told_is_what_kvm_does(
    seen: Callable[[str], Seen], name: str
) -> None:
    one, expected = seen(name), HOSTS[name]
    assert [step["ok"] for step in one.report["demo"]["steps"]] == [True] * 4
    assert one.own["kvm_mode"] == expected.mode
    assert one.told == {expected.told}
    assert one.slot_flags == expected.slot_flags
    if expected.window is None:
        return
    assert (one.entries["window"], one.entries["ram"]) == (expected.window, expected.ram)
    # Whatever is expected: write-combining is promised where the guest's PAT is in force, only.
    honoured = one.entries["window"] == HONOURED
    assert honoured == (one.told == {"WC"}) == (one.own["guest_pat"] == "honored")


@pytest.mark.boots("intel-qemu")
def test_qemus_option_decides_and_its_default_is_off(
    boots: Boots, report: Callable[[str], None]
) -> None:
    job = boots.job("intel-qemu")
    assert job.status == 0, job.text
    found = json.loads(job.files["qemu_trials.json"])
    report(f"intel-qemu: {job.boot:.1f} s to init, {job.total:.1f} s in all")
    for option in ("on", "off", "default"):
        one = found[option]
        report(f"  QEMU {found['version']}, honor-guest-pat {option}: {', '.join(one['ram'])}")
        assert one["status"] == 1, one["said"]  # what isa-debug-exit makes of a 0
    assert found["on"]["ram"] == HONOURED
    assert found["off"]["ram"] == IGNORED
    assert found["default"]["ram"] == IGNORED


@pytest.mark.long
@pytest.mark.boots("intel-suites")
def test_slots_and_buffers_work_on_intels_processor_too(
    boots: Boots, report: Callable[[str], None]
) -> None:
    job = boots.job("intel-suites")
    said = job.files["suites.txt"].decode()
    report(f"intel-suites: {job.total:.1f} s in all: {said.splitlines()[-1].strip('= ')}")
    assert int(job.files["suites.txt.status"]) == 0, said
    assert " passed" in said
    assert "skipped" not in said


def test_an_emulator_that_does_not_start_is_an_error_at_once(
    kernel_host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(emulators, "BOCHS", "cpu: model=none\nlog: {scratch}/bochs.log\n")
    started = time.monotonic()
    with pytest.raises(JobError, match="before its command did"):
        run(kernel_host, Machine(kernel_host.plain, Processor.INTEL), "true")
    assert time.monotonic() - started < 30
