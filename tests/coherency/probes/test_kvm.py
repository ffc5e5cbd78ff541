"""KVM's facts: on the real /dev/kvm against an independent reading, and the trials against VMs of
every kind that there is."""

from __future__ import annotations

import errno
import fcntl
import os
import struct
from pathlib import Path
from typing import IO, cast

import pytest

from tests.support.fake_vm import FakeVm, refusing
from tests.support.kvm_host import has_flag, open_kvm
from vgpud.coherency.probes import kvm as probe_kvm
from vgpud.coherency.probes.kvm import KvmFacts, probe
from vgpud.errors import HostError
from vgpud.native.cpu import cpu_features
from vgpud.uapi.kvm import Quirk, Vm
from vgpud.uapi.memslot import SlotFlag

KVM = Path("/dev/kvm")
FLAG = SlotFlag.NON_COHERENT_DMA


@pytest.fixture(scope="module")
def facts() -> KvmFacts:
    """KVM here; without it there is nothing to compare."""
    with open_kvm():
        return probe()


def test_it_agrees_with_bare_ioctls(facts: KvmFacts) -> None:
    with KVM.open("r+b", buffering=0) as kvm:
        assert facts.state == "usable"
        assert facts.api_version == fcntl.ioctl(kvm, 0xAE00, 0) == 12
        assert facts.memslots == fcntl.ioctl(kvm, 0xAE03, 10)
        assert facts.user_memory2 == bool(fcntl.ioctl(kvm, 0xAE03, 231))
        assert facts.quirks == fcntl.ioctl(kvm, 0xAE03, 213)
        assert facts.ignore_guest_pat_quirk == bool(facts.quirks & 1 << 9)
        with os.fdopen(fcntl.ioctl(kvm, 0xAE01, 0), "r+b", buffering=0) as vm:
            # KVM_CREATE_DEVICE, as a mere question.
            assert facts.vfio == answers(vm, 0xC00CAEE0, struct.pack("=III", 4, 0, 1))


def answers(vm: IO[bytes], request: int, argument: bytes) -> bool:
    """Whether an ioctl succeeds."""
    try:
        fcntl.ioctl(vm, request, argument)
    except OSError:
        return False
    return True


def test_it_agrees_with_a_flagged_slot(facts: KvmFacts) -> None:
    with open_kvm() as kvm:
        assert facts.non_coherent_dma_flag == has_flag(kvm)


def test_it_agrees_with_sysfs(facts: KvmFacts) -> None:
    assert facts.module is None or Path("/sys/module", facts.module).is_dir()
    assert (facts.vendor, facts.module) in {("vmx", "kvm_intel"), ("svm", "kvm_amd")} or (
        facts.vendor == "other" and facts.module not in {"kvm_intel", "kvm_amd"}
    )


def test_it_agrees_with_cpuid(facts: KvmFacts) -> None:
    assert facts.nested == ("hypervisor" in cpu_features())


def test_it_leaves_nothing_open(facts: KvmFacts) -> None:
    before = sorted(Path("/proc/self/fd").iterdir())
    assert probe() == facts
    assert sorted(Path("/proc/self/fd").iterdir()) == before


def test_a_link_to_the_device_will_do(facts: KvmFacts, tmp_path: Path) -> None:
    (tmp_path / "dev").mkdir()
    (tmp_path / "dev" / "kvm").symlink_to(KVM)
    found = probe(tmp_path)
    assert (found.state, found.memslots) == ("usable", facts.memslots)
    # By its /sys, this host has no processor module.
    assert (found.vendor, found.module, found.tdp) == ("other", None, None)


def test_without_kvm(tmp_path: Path) -> None:
    found = probe(tmp_path)
    assert (found.state, found.vendor, found.memslots) == ("absent", None, None)
    assert found.problem == f"open {tmp_path}/dev/kvm: No such file or directory"
    assert found.advice


def test_without_permission(other_user: Path) -> None:
    (other_user / "dev").mkdir()
    (other_user / "dev" / "kvm").touch(mode=0)
    found = probe(other_user)
    assert (found.state, found.memslots, found.non_coherent_dma_flag) == ("denied", None, None)
    assert "Permission denied" in found.problem
    assert "usermod" in found.advice


def test_what_is_no_kvm_at_all(tmp_path: Path) -> None:
    (tmp_path / "dev").mkdir()
    (tmp_path / "dev" / "kvm").write_text("")
    found = probe(tmp_path)
    assert found.state == "failed"
    assert "Inappropriate ioctl" in found.problem
    assert found.memslots is None


def recorded(
    root: Path, *, modules: dict[str, dict[str, str]], flags: str = "", vendor: str = ""
) -> Path:
    """Another host's /sys and /proc, as far as they are looked at."""
    for module, parameters in modules.items():
        directory = root / "sys/module" / module / "parameters"
        directory.mkdir(parents=True)
        for name, value in parameters.items():
            (directory / name).write_text(value + "\n")
    (root / "proc").mkdir()
    (root / "proc/cpuinfo").write_text(
        f"processor\t: 0\nvendor_id\t: {vendor}\nflags\t\t: fpu {flags}\n\nprocessor\t: 1\n"
    )
    return root


MMU = {"kvm": {"tdp_mmu": "Y"}}


@pytest.mark.parametrize(
    ("modules", "flags", "expected"),
    [
        ({}, "vmx", (None, None, None, None)),
        ({"kvm": {"tdp_mmu": "Y"}}, "vmx", (None, None, None, None)),
        (MMU | {"kvm_intel": {"ept": "Y"}}, "vmx", ("vmx", "kvm_intel", True, True)),
        (MMU | {"kvm_intel": {"ept": "N"}}, "vmx", ("vmx", "kvm_intel", False, False)),
        (MMU | {"kvm_intel": {}}, "vmx", ("vmx", "kvm_intel", None, None)),
        (MMU | {"kvm_amd": {"npt": "1"}}, "svm", ("svm", "kvm_amd", True, True)),
        (MMU | {"kvm_amd": {"npt": "0"}}, "svm", ("svm", "kvm_amd", False, False)),
        # Loaded is loaded, also where the flags are not to be seen.
        (MMU | {"kvm_intel": {"ept": "Y"}}, "", ("vmx", "kvm_intel", True, True)),
        # Both are built in: the processor decides.
        (
            MMU | {"kvm_intel": {"ept": "Y"}, "kvm_amd": {"npt": "Y"}},
            "svm",
            ("svm", "kvm_amd", True, True),
        ),
        ({"kvm": {"tdp_mmu": "N"}, "kvm_pvm": {}}, "", ("other", "kvm_pvm", None, False)),
        (
            MMU | {"kvm_intel": {"ept": "Y"}, "kvm_amd": {"npt": "Y"}, "kvm_pvm": {}},
            "",
            ("other", "kvm_pvm", None, True),
        ),
    ],
)
def test_which_module_serves(
    tmp_path: Path,
    modules: dict[str, dict[str, str]],
    flags: str,
    expected: tuple[str | None, str | None, bool | None, bool | None],
) -> None:
    found = probe(recorded(tmp_path, modules=modules, flags=flags))
    assert (found.vendor, found.module, found.tdp, found.tdp_mmu) == expected


@pytest.mark.parametrize("module", ["kvm_intel", "kvm_amd", "kvm_pvm"])
@pytest.mark.parametrize(("flags", "nested"), [("vmx svm", False), ("svm hypervisor", True)])
def test_a_host_that_is_itself_a_vm(tmp_path: Path, module: str, flags: str, nested: bool) -> None:
    assert probe(recorded(tmp_path, modules={module: {}}, flags=flags)).nested is nested


def test_whether_a_host_is_itself_a_vm_is_not_known_without_its_processor(tmp_path: Path) -> None:
    assert probe(tmp_path).nested is None


def flag(vm: FakeVm) -> tuple[bool, str]:
    """What the probe finds out of a VM about the flag."""
    return probe_kvm._flag(cast(Vm, vm))


@pytest.mark.parametrize(
    ("memory", "accepted", "words"),
    [
        (FakeVm(flags=3), False, "refused (EINVAL)"),
        (FakeVm(flags=3 | FLAG, fixed_flags=FLAG), True, "kept it"),
        (FakeVm(flags=3 | FLAG), False, "another flag"),
    ],
    ids=["mainline", "patched", "another meaning"],
)
def test_the_flag_is_known_by_what_it_does(memory: FakeVm, accepted: bool, words: str) -> None:
    found, text = flag(memory)
    assert found is accepted
    assert words in text
    assert memory.slots == {}


def test_a_kernel_that_takes_no_slot_tells_nothing_of_the_flag() -> None:
    assert flag(FakeVm(refusing(errno.EINVAL))) == (
        False,
        "but a slot without it is refused as well",
    )


def test_another_failure_is_not_taken_for_an_answer() -> None:
    with pytest.raises(HostError):
        flag(FakeVm(refusing(errno.EIO)))


class Quirks:
    """A VM that refuses to disable quirks with this error, or with none does so."""

    def __init__(self, error: int | None) -> None:
        self.error = error

    def disable_quirks(self, quirks: Quirk) -> None:
        """As the facade's."""
        assert quirks == Quirk.IGNORE_GUEST_PAT
        if self.error is not None:
            raise HostError("KVM_ENABLE_CAP", OSError(self.error, ""))


def quirk(vm: Quirks) -> bool:
    """What the probe finds out of a VM about the quirk."""
    return probe_kvm._quirk(cast(Vm, vm))


def test_the_quirk_is_known_by_disabling_it() -> None:
    assert quirk(Quirks(None)) is True
    assert quirk(Quirks(errno.EINVAL)) is False
    with pytest.raises(HostError):
        quirk(Quirks(errno.EIO))
