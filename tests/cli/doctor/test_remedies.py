"""Remedies: the right command for each problem, and none for a host without problems."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.cli.doctor import hosts
from vgpud.cli.doctor.remedies import (
    MEMORY_LIMIT,
    Gain,
    Owner,
    Remedy,
    Who,
    kernel_has_quirk,
    remedies,
    size,
)
from vgpud.coherency.probes.host import HostFacts
from vgpud.daemon.config import Config

KVM_GROUP = Owner("kvm", group_may=True)
ROOTS = Owner(None, group_may=False)
WHO = Who("me", {"/dev/kvm": KVM_GROUP, "/dev/dri/renderD128": Owner("render", group_may=True)})


def of(facts: HostFacts, who: Who = WHO) -> list[Remedy]:
    """What would help on a host where some plan pins pages."""
    return list(remedies(facts, who, pins=True))


def gains(facts: HostFacts) -> list[Gain]:
    """What would be gained, in order."""
    return [remedy.gain for remedy in of(facts)]


def only(facts: HostFacts, who: Who = WHO) -> Remedy:
    """The one thing that would help."""
    [remedy] = of(facts, who)
    return remedy


def test_what_lacks_nothing() -> None:
    assert of(hosts.AMD) == []
    # QEMU's KVM is not ours, and sets no flag.
    assert of(hosts.FLAGGED) == []


def test_a_qemu_that_must_say_it_in_words() -> None:
    remedy = only(hosts.INTEL)
    assert remedy.gain is Gain.GUEST_PAT
    assert remedy.commands == ("qemu-system-x86_64 -accel kvm,honor-guest-pat=on ...",)


def test_an_old_kernel_and_qemu() -> None:
    kernel, qemu = of(hosts.INTEL_OLD)
    assert "6.12.43+deb13-amd64 is too old" in kernel.problem
    for word in ("6.16", "6.12.78", "-accel kvm,honor-guest-pat=on", "KVM_MEM_NON_COHERENT_DMA"):
        assert word in kernel.remedy
    assert kernel.commands == ("sudo apt install -t trixie-backports linux-image-amd64",)
    assert "knows no honor-guest-pat" in qemu.problem
    assert qemu.commands == ("sudo apt install -t trixie-backports qemu-system-x86",)


def test_commands_are_for_the_distribution_that_is_there() -> None:
    fedora = replace(hosts.INTEL_OLD.system, name="Fedora Linux 44", debian=None)
    assert [remedy.commands for remedy in of(replace(hosts.INTEL_OLD, system=fedora))] == [(), ()]
    bookworm = replace(hosts.INTEL_OLD.system, debian="bookworm")
    kernel, qemu = of(replace(hosts.INTEL_OLD, system=bookworm))
    assert kernel.commands == ("sudo apt install -t bookworm-backports linux-image-amd64",)
    assert qemu.commands == ()  # Too old there.


def test_a_processor_that_can_not() -> None:
    remedy = only(hosts.INTEL_NO_SELF_SNOOP)
    assert "self-snoop" in remedy.remedy
    assert "KVM_MEM_NON_COHERENT_DMA" in remedy.remedy
    assert remedy.commands == ()


def test_a_kernel_that_should_but_does_not() -> None:
    remedy = only(replace(hosts.INTEL, kvm=hosts.OLD_KVM))
    assert "could by its version" in remedy.problem


def test_paging_that_is_off() -> None:
    assert only(hosts.INTEL_NO_EPT).commands == (
        "sudo modprobe -r kvm_intel && sudo modprobe kvm_intel ept=1",
    )
    assert only(hosts.AMD_NO_NPT).commands == (
        "sudo modprobe -r kvm_amd && sudo modprobe kvm_amd npt=1",
    )


def test_a_kvm_of_neither_kind() -> None:
    remedy = only(hosts.OTHER)
    assert remedy.gain is Gain.GUEST_PAT
    assert "kvm_pvm" in remedy.problem
    assert "nested virtualization" in remedy.remedy


def test_a_host_that_is_itself_a_vm() -> None:
    """It comes before what would help on a bare machine, none of which the outer one heeds."""
    amd, intel = only(hosts.NESTED_AMD), only(hosts.NESTED_INTEL)
    assert "KVM_X86_QUIRK_NESTED_SVM_SHARED_PAT" in amd.remedy
    assert "-accel kvm,honor-guest-pat=on" in intel.remedy
    assert only(hosts.NESTED_FLAGGED) == intel
    old, qemu = of(hosts.NESTED_INTEL_OLD)
    assert old == intel
    assert qemu.gain is Gain.VMM
    for remedy in (amd, intel):
        assert remedy.gain is Gain.GUEST_PAT
        assert remedy.problem.startswith("This host is itself a VM")
        assert remedy.remedy.startswith("Run on the bare machine")
        assert 'guest_pat = "honored"' in remedy.remedy
        assert remedy.commands == ()
    # Only what is not in force here decides nothing: page tables that KVM shadows are used.
    assert only(hosts.in_vm(hosts.AMD_NO_NPT)) == only(hosts.AMD_NO_NPT)


def test_a_processor_that_is_not_seen() -> None:
    remedy = only(hosts.CPU_UNSEEN)
    assert remedy.gain is Gain.GUEST_PAT
    assert "/proc/cpuinfo" in remedy.remedy


def test_no_permission() -> None:
    kvm, gpu, udmabuf, limit = of(hosts.DENIED)
    assert kvm.commands == ("sudo usermod -aG kvm me",)
    assert "DeviceAllow=/dev/kvm rw" in kvm.remedy
    assert gpu.commands == ("sudo usermod -aG render me",)
    assert udmabuf.commands[0] == "sudo chgrp kvm /dev/udmabuf && sudo chmod 660 /dev/udmabuf"
    assert limit.gain is Gain.LIMITS
    assert "LimitMEMLOCK=infinity" in limit.remedy
    assert "8 MiB" in limit.problem


@pytest.mark.parametrize("owner", [ROOTS, Owner("kvm", group_may=False)])
def test_a_group_that_may_not_either(owner: Owner) -> None:
    kvm = of(hosts.DENIED, Who("me", {"/dev/kvm": owner}))[0]
    assert kvm.commands == (
        "sudo chgrp kvm /dev/kvm && sudo chmod 660 /dev/kvm",
        "sudo usermod -aG kvm me",
    )


def test_one_node_of_a_gpu_is_enough() -> None:
    gpu = hosts.DENIED.gpus[0]
    open_one = replace(gpu, nodes=(gpu.nodes[0], replace(gpu.nodes[1], accessible=True)))
    assert Gain.GPU not in gains(replace(hosts.DENIED, gpus=(open_one,)))


def test_a_limit_matters_only_where_pages_are_pinned() -> None:
    assert Gain.LIMITS in gains(hosts.DENIED)
    found = remedies(hosts.DENIED, WHO, pins=False)
    assert Gain.LIMITS not in [remedy.gain for remedy in found]
    enough = replace(hosts.DENIED.memory, locked_limit=MEMORY_LIMIT)
    assert Gain.LIMITS not in gains(replace(hosts.DENIED, memory=enough))


def test_the_limit_is_that_of_a_device() -> None:
    [spec] = Config.from_toml("").device_specs()
    assert spec.memory_limit == MEMORY_LIMIT


def test_no_kvm() -> None:
    assert gains(hosts.ABSENT) == [Gain.KVM, Gain.VMM, Gain.DMA_BUF]
    kvm, qemu, udmabuf = of(hosts.ABSENT)
    assert "firmware" in kvm.remedy
    assert kvm.commands == ("sudo modprobe kvm_intel",)
    assert "11.1" in qemu.remedy
    assert udmabuf.commands == ("sudo modprobe udmabuf",)
    kvm = of(hosts.ABSENT_IN_VM)[0]
    assert "nested" in kvm.remedy
    assert kvm.commands == ("sudo modprobe kvm_amd",)
    kvm = of(hosts.NODE_ABSENT)[0]
    assert kvm.commands == ("sudo mknod -m 660 /dev/kvm c 10 232",)


def test_root_is_given_commands_without_sudo() -> None:
    who = Who("root", {"/dev/udmabuf": KVM_GROUP})
    kvm, _, udmabuf = of(hosts.ABSENT, who)
    assert kvm.commands == ("modprobe kvm_intel",)
    assert udmabuf.commands == ("modprobe udmabuf",)


def test_a_kvm_that_fails() -> None:
    remedy = only(hosts.FAILED)
    assert "Device or resource busy" in remedy.problem


def test_what_does_not_work() -> None:
    assert [remedy.problem for remedy in of(hosts.BROKEN)] == [
        "/usr/bin/qemu-system-x86_64 could not be asked: no answer in 5 seconds.",
        "udmabuf does not work: UDMABUF_CREATE.",
    ]


@pytest.mark.parametrize("facts", hosts.HOSTS.values(), ids=hosts.HOSTS)
def test_the_most_wanted_comes_first_and_all_is_in_sentences(facts: HostFacts) -> None:
    found = of(facts)
    order = list(Gain)
    assert [order.index(remedy.gain) for remedy in found] == sorted(
        order.index(remedy.gain) for remedy in found
    )
    for remedy in found:
        for text in (remedy.problem, remedy.remedy):
            assert text.endswith(".")
            assert ".." not in text
            assert "None" not in text


@pytest.mark.parametrize(
    ("release", "has"),
    [
        ("6.16", True),
        ("6.16.0-rc1", True),
        ("6.15.11", False),
        ("6.18.44-fc-v657", True),
        ("7.0", True),
        ("6.12.77", False),
        ("6.12.78-amd64", True),
        ("6.12.90+deb13-amd64", True),
        ("6.13.80", False),
        ("6.1.0-40-amd64", False),
        ("5.10", False),
        ("nonsense", False),
    ],
)
def test_kernels_by_number(release: str, has: bool) -> None:
    assert kernel_has_quirk(release) is has


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 bytes"),
        (4096, "4 KiB"),
        (8 << 20, "8 MiB"),
        (3 << 29, "1.5 GiB"),
        (1 << 40, "1024 GiB"),
    ],
)
def test_sizes(count: int, text: str) -> None:
    assert size(count) == text
