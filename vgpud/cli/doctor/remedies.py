"""The remedies for what a host lacks: each names the command or option to use.

They follow from the facts; the caller looks up the names of users and groups in the commands.
Source of the kernel versions: the first releases with KVM_X86_QUIRK_IGNORE_GUEST_PAT, mainline 6.16
and stable 6.12.78; of QEMU's: 11.0 for honor-guest-pat, 11.1 for blobs over vhost-user.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Final

from vgpud.coherency.kvm_mode import Vendor
from vgpud.coherency.probes.device_access import DeviceAccess
from vgpud.coherency.probes.host import HostFacts

QEMU_WITH_BLOBS: Final = (11, 1)
MEMORY_LIMIT: Final = 1 << 30
"""Bytes: the default of a device's memory_limit."""
HONOR: Final = "-accel kvm,honor-guest-pat=on"
_LIMITS_FILE: Final = "/etc/security/limits.d/vgpud.conf"
_QUIRK_KERNELS: Final = "6.16 or newer, or 6.12.78 or newer of the 6.12 series"
_FLAG_KERNEL: Final = (
    "or use a kernel with KVM_MEM_NON_COHERENT_DMA, such as one built as vgpud's "
    "tests/kernel/README.md says"
)


class Gain(StrEnum):
    """The gain of a remedy, the most important first."""

    KVM = "kvm"
    GUEST_PAT = "guest-pat"
    VMM = "vmm"
    GPU = "gpu"
    DMA_BUF = "dma-buf"
    LIMITS = "limits"


@dataclass(frozen=True, slots=True)
class Remedy:
    """A remedy: `problem` and `remedy` are sentences, `commands` are to be typed, if any help."""

    gain: Gain
    problem: str
    remedy: str
    commands: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Owner:
    """The group of a device node, None for root's, and whether the group may open it."""

    group: str | None
    group_may: bool


@dataclass(frozen=True, slots=True)
class Who:
    """The user, and the owners of device nodes by path."""

    user: str
    owners: dict[str, Owner]


def remedies(facts: HostFacts, who: Who, *, pins: bool) -> tuple[Remedy, ...]:
    """Return the remedies that apply, the most important first; `pins`: a plan locks pages."""
    found = _remedies(facts, who, pins=pins)
    if who.user != "root":
        return tuple(found)
    # Root needs no sudo, and may have none.
    return tuple(
        replace(remedy, commands=tuple(line.replace("sudo ", "") for line in remedy.commands))
        for remedy in found
    )


def _remedies(facts: HostFacts, who: Who, *, pins: bool) -> Iterable[Remedy]:
    return (
        *_kvm(facts, who),
        *_guest_pat(facts),
        *_qemu(facts),
        *_gpus(facts, who),
        *_udmabuf(facts, who),
        *_limits(facts, who, pins=pins),
    )


def _kvm(facts: HostFacts, who: Who) -> Iterator[Remedy]:
    kvm = facts.kvm
    match kvm.state:
        case DeviceAccess.USABLE:
            return
        case DeviceAccess.DENIED:
            problem = f"User {who.user} may not open {kvm.path}, so nothing of KVM could be tried."
            yield _permission(Gain.KVM, problem, kvm.path, who)
        case DeviceAccess.ABSENT if kvm.vendor is not None:
            yield Remedy(
                Gain.KVM,
                f"{kvm.module} is loaded, but there is no {kvm.path}.",
                "Create the device node, or let it into the container or service"
                " (DeviceAllow=/dev/kvm rw).",
                (f"sudo mknod -m 660 {kvm.path} c 10 232",),
            )
        case DeviceAccess.ABSENT:
            yield _no_kvm(facts)
        case _:
            yield Remedy(Gain.KVM, f"KVM does not work: {kvm.problem}.", _sentence(kvm.advice))


def _no_kvm(facts: HostFacts) -> Remedy:
    module = {"GenuineIntel": "kvm_intel", "AuthenticAMD": "kvm_amd"}.get(facts.cpu.vendor)
    problem = f"There is no {facts.kvm.path}: guests run emulated, and slowly."
    if facts.cpu.hypervisor:
        remedy = "This is itself a VM: have nested virtualization switched on outside, then load"
    else:
        remedy = "Switch virtualization on in the firmware (VT-x, AMD-V or SVM), then load"
    command = f"sudo modprobe {module}" if module else "sudo modprobe kvm"
    return Remedy(Gain.KVM, problem, f"{remedy} KVM.", (command,))


def _permission(gain: Gain, problem: str, path: str, who: Who) -> Remedy:
    owner = who.owners.get(path)
    if owner is not None and owner.group is not None and owner.group_may:
        return Remedy(
            gain,
            problem,
            f"Join group {owner.group}, and log in again; in a service, SupplementaryGroups="
            f"{owner.group} and DeviceAllow={path} rw.",
            (f"sudo usermod -aG {owner.group} {who.user}",),
        )
    return Remedy(
        gain,
        problem,
        "Its group may not either: give it to group kvm, as udev's rules do, and join that.",
        (
            f"sudo chgrp kvm {path} && sudo chmod 660 {path}",
            f"sudo usermod -aG kvm {who.user}",
        ),
    )


def _guest_pat(facts: HostFacts) -> Iterator[Remedy]:
    kvm = facts.kvm
    if kvm.vendor == "other":
        yield Remedy(
            Gain.GUEST_PAT,
            f"This KVM ({kvm.module or 'built in'}) is neither Intel's nor AMD's: whether it"
            " honours guest PAT is unknown.",
            "Run on the bare machine, or in a VM with nested virtualization (VMX or SVM); until"
            " then blobs are cached and flushed, which is right on any KVM.",
        )
    elif kvm.vendor is not None and kvm.tdp is False:
        module, parameter = ("kvm_amd", "npt") if kvm.vendor is Vendor.SVM else ("kvm_intel", "ept")
        yield Remedy(
            Gain.GUEST_PAT,
            f"{parameter.upper()} is off: KVM then maps all guest memory write-back.",
            f"Load {module} with {parameter}=1; if it stays off, the processor has none.",
            (f"sudo modprobe -r {module} && sudo modprobe {module} {parameter}=1",),
        )
    elif kvm.vendor is not None and kvm.nested is not False:
        yield _nested(facts)
    elif (
        kvm.vendor is Vendor.VMX
        and not kvm.non_coherent_dma_flag
        and (kvm.ignore_guest_pat_quirk is False)
    ):
        yield _no_quirk(facts)
    elif kvm.vendor is Vendor.VMX and kvm.ignore_guest_pat_quirk and _knows_honor(facts):
        yield Remedy(
            Gain.GUEST_PAT,
            "KVM ignores guest PAT unless its VMM asks it not to, and vgpud sees that only if"
            " QEMU's command line has the option.",
            f'Start QEMU with {HONOR} (and leave guest_pat = "auto").',
            (f"qemu-system-x86_64 {HONOR} ...",),
        )


def _nested(facts: HostFacts) -> Remedy:
    if facts.kvm.nested is None:
        return Remedy(
            Gain.GUEST_PAT,
            "Whether this host is itself a VM can't be seen.",
            "Let vgpud read /proc/cpuinfo; in a service, without ProcSubset=pid.",
        )
    if facts.kvm.vendor is Vendor.SVM:
        problem = "an outer KVM uses this host's PAT in place of its guests'"
        outside = "disable KVM_X86_QUIRK_NESTED_SVM_SHARED_PAT (Linux 7.3 has it) for this VM"
    else:
        problem = "its hypervisor decides on its guests' memory types, not the KVM here"
        outside = f"have guest PAT honoured in this VM (QEMU with KVM: {HONOR})"
    return Remedy(
        Gain.GUEST_PAT,
        f"This host is itself a VM: {problem}.",
        f"Run on the bare machine; or let the outer VMM {outside}, and then set"
        ' guest_pat = "honored" in each [[device]] here.',
    )


def _no_quirk(facts: HostFacts) -> Remedy:
    problem = "Intel's KVM forces guest memory to write-back here, and has no way to change that."
    if not facts.cpu.self_snoop:
        return Remedy(
            Gain.GUEST_PAT,
            problem,
            "The quirk can't be disabled on a processor without self-snoop (or, in a VM, where that"
            " is hidden): use a newer processor, " + _FLAG_KERNEL + ".",
        )
    if not kernel_has_quirk(facts.system.kernel):
        return Remedy(
            Gain.GUEST_PAT,
            f"{problem} Linux {facts.system.kernel} is too old.",
            f"Boot Linux {_QUIRK_KERNELS}, and start QEMU (11.0 or newer) with {HONOR};"
            f" {_FLAG_KERNEL}.",
            _backport(facts, "linux-image-amd64"),
        )
    return Remedy(
        Gain.GUEST_PAT,
        f"{problem} Linux {facts.system.kernel} could by its version.",
        f"Check that EPT is on and that no errata list takes self-snoop away; {_FLAG_KERNEL}.",
    )


def kernel_has_quirk(release: str) -> bool:
    """Return whether a kernel of this release has KVM_X86_QUIRK_IGNORE_GUEST_PAT."""
    numbers = [int(number) for number in re.findall(r"\d+", release)[:3]]
    major, minor, patch = (*numbers, 0, 0, 0)[:3]
    return (major, minor) >= (6, 16) or ((major, minor) == (6, 12) and patch >= 78)


def _knows_honor(facts: HostFacts) -> bool:
    return facts.qemu is None or facts.qemu.honor_guest_pat is not False


def _qemu(facts: HostFacts) -> Iterator[Remedy]:
    qemu = facts.qemu
    if qemu is None:
        yield Remedy(
            Gain.VMM,
            "No QEMU was found.",
            "Install QEMU 11.1 or newer, if it is to be the VMM.",
            _backport(facts, "qemu-system-x86", since="trixie"),
        )
    elif qemu.version is None:
        yield Remedy(
            Gain.VMM, f"{qemu.path} could not be asked: {qemu.problem}.", "Repair or reinstall it."
        )
    elif tuple(int(part) for part in qemu.version.split(".")[:2]) < QEMU_WITH_BLOBS:
        lacks = " and knows no honor-guest-pat" if qemu.honor_guest_pat is False else ""
        yield Remedy(
            Gain.VMM,
            f"QEMU {qemu.version} has no host blobs over vhost-user{lacks}.",
            "Install QEMU 11.1 or newer.",
            _backport(facts, "qemu-system-x86", since="trixie"),
        )


def _gpus(facts: HostFacts, who: Who) -> Iterator[Remedy]:
    for gpu in facts.gpus:
        denied = [node.path for node in gpu.nodes if not node.accessible]
        render = [path for path in denied if "/renderD" in path]
        if render and len(denied) == len(gpu.nodes):
            problem = f"User {who.user} may open no node of {gpu.driver} {gpu.device}."
            yield _permission(Gain.GPU, problem, render[0], who)


def _udmabuf(facts: HostFacts, who: Who) -> Iterator[Remedy]:
    udmabuf = facts.memory.udmabuf
    match udmabuf.state:
        case DeviceAccess.ABSENT:
            yield Remedy(
                Gain.DMA_BUF,
                "There is no /dev/udmabuf: a blob's memory can't be handed on as a dma-buf.",
                "Load the module (CONFIG_UDMABUF).",
                ("sudo modprobe udmabuf",),
            )
        case DeviceAccess.DENIED:
            problem = f"User {who.user} may not open /dev/udmabuf."
            yield _permission(Gain.DMA_BUF, problem, "/dev/udmabuf", who)
        case "failed":
            yield Remedy(Gain.DMA_BUF, f"udmabuf does not work: {udmabuf.problem}.", "See dmesg.")
        case DeviceAccess.USABLE:
            return


def _limits(facts: HostFacts, who: Who, *, pins: bool) -> Iterator[Remedy]:
    limit = facts.memory.locked_limit
    if pins and limit is not None and limit < MEMORY_LIMIT:
        yield Remedy(
            Gain.LIMITS,
            f"User {who.user} may lock {size(limit)} of memory; memory that a guest maps uncached"
            f" should be locked, which is up to memory_limit ({size(MEMORY_LIMIT)}).",
            "Raise RLIMIT_MEMLOCK, and log in again; in a service, LimitMEMLOCK=infinity.",
            (f"echo '{who.user} - memlock unlimited' | sudo tee {_LIMITS_FILE}",),
        )


def _backport(facts: HostFacts, package: str, since: str = "") -> tuple[str, ...]:
    """Return the command that installs a package from Debian's backports, if they have it."""
    suite = facts.system.debian
    if suite is None or (since and suite != since):
        return ()
    return (f"sudo apt install -t {suite}-backports {package}",)


def size(count: int) -> str:
    """Return a size with a unit, such as 8 MiB."""
    for unit, name in ((1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")):
        if count >= unit:
            return f"{count / unit:.4g} {name}"
    return f"{count} bytes"


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:] + "." if text else "See dmesg."
