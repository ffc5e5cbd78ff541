"""The two emulated machines that the built host boots on: QEMU's with an AMD processor, and Bochs's
with an Intel one.

Each has the three disks of a job, and a serial console. QEMU emulates AMD's nested SVM, and Bochs
Intel's VMX with EPT, so that /dev/kvm inside is Linux's KVM of that vendor.
"""

from __future__ import annotations

import contextlib
import os
import re
import selectors
import shutil
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Final

from tests.kernel.build import DISK_UNIT, Host


class Processor(StrEnum):
    """The vendor of the emulated processor."""

    AMD = "amd"
    INTEL = "intel"


@dataclass(frozen=True, slots=True)
class Machine:
    """What is booted: a kernel of the host's, on a processor.

    `arguments` are further ones for the kernel. With `systemd`, that is PID 1. `nested` is whether
    the processor, which then has to be AMD's, says that it is in a VM: on a host that is in one,
    the outer hypervisor decides about the guest's memory types.
    """

    kernel: Path
    processor: Processor = Processor.AMD
    arguments: str = ""
    systemd: bool = False
    nested: bool = False


# No waiting for clocks that emulators do not keep well, and a panic ends the emulator.
KERNEL_ARGUMENTS: Final = (
    "quiet rw init=/vgpud-init tsc=reliable no_timer_check random.trust_cpu=on panic=-1"
)

QEMU: Final = (
    *("qemu-system-x86_64", "-nodefaults", "-no-user-config", "-display", "none"),
    *("-serial", "stdio", "-no-reboot", "-M", "q35", "-accel", "tcg,thread=multi"),
    *("-smp", "2", "-m", "2G"),
)

BOCHS: Final = """\
plugin_ctrl: unmapped=1, biosdev=1, extfpuirq=1, serial=1
plugin_ctrl: speaker=0, parallel=0, gameport=0, iodebug=0
config_interface: textconfig
display_library: term
cpu: model=tigerlake, count=1, ips=100000000, reset_on_triple_fault=0, ignore_bad_msrs=1
memory: guest=1024, host=1024
romimage: file=/usr/share/bochs/BIOS-bochs-latest
vgaromimage: file=/usr/share/vgabios/vgabios.bin
ata0: enabled=1, ioaddr1=0x1f0, ioaddr2=0x3f0, irq=14
ata1: enabled=1, ioaddr1=0x170, ioaddr2=0x370, irq=15
ata0-master: type=disk, path={root}, mode=volatile, journal={scratch}/root.redolog
ata0-slave: type=disk, path={scratch}/in.tar, mode=flat
ata1-master: type=disk, path={scratch}/out.tar, mode=flat
ata1-slave: type=cdrom, path={scratch}/boot.iso, status=inserted
boot: cdrom
com1: enabled=1, mode=file, dev={scratch}/console
clock: sync=none, time0=utc
log: {scratch}/bochs.log
panic: action=fatal
error: action=report
info: action=ignore
debug: action=ignore
"""
ISOLINUX: Final = "DEFAULT host\nPROMPT 0\nLABEL host\n KERNEL /bzImage\n APPEND {arguments}\n"
ISO_FILES: Final = (
    "/usr/lib/ISOLINUX/isolinux.bin",
    "/usr/lib/syslinux/modules/bios/ldlinux.c32",
)


def console(
    host: Host, machine: Machine, scratch: Path, seconds: float, stop: int | None = None
) -> Iterator[str]:
    """Boot with the disks in.tar and out.tar of `scratch`; yield the lines of the console until the
    emulator ends, the seconds are over, or the descriptor `stop` can be read.

    `scratch` is below /tmp, which the chroot shares. The emulator's own complaints are among the
    lines.
    """
    with contextlib.ExitStack() as stack:
        start = _start_qemu if machine.processor is Processor.AMD else _start_bochs
        process, stream = start(host, machine, scratch, stack)
        ended = os.pidfd_open(process.pid)
        stack.callback(os.close, ended)
        others = [ended] if stop is None else [ended, stop]
        yield from _lines(stream, others, time.monotonic() + seconds)
        for log in (scratch / "bochs.log", scratch / "bochs.screen"):
            if log.exists():
                yield from _words(log)[-20:]


def _start_qemu(
    host: Host, machine: Machine, scratch: Path, stack: contextlib.ExitStack
) -> tuple[subprocess.Popen[bytes], int]:
    line = f"console=ttyS0 root=/dev/vda {_arguments(machine)}"
    processor = f"qemu64,{'+' if machine.nested else '-'}hypervisor,+npt,+rdrand"
    kernel = host.inside(machine.kernel / "vmlinux")
    arguments = [*QEMU, "-cpu", processor, "-kernel", kernel, "-append", line]
    for index, drive in enumerate(
        (
            f"{host.inside(host.image)},snapshot=on",
            f"{scratch}/in.tar,readonly=on",
            f"{scratch}/out.tar",
        )
    ):
        arguments += ["-drive", f"if=none,id=d{index},format=raw,file={drive}"]
        arguments += ["-device", f"virtio-blk-pci,drive=d{index}"]
    # What a snapshot takes up goes where the rest of this run does.
    command = host.chroot.command("env", f"TMPDIR={scratch}", *arguments)
    process = _popen(stack, command, subprocess.PIPE)
    assert process.stdout is not None
    return process, process.stdout.fileno()


def _start_bochs(
    host: Host, machine: Machine, scratch: Path, stack: contextlib.ExitStack
) -> tuple[subprocess.Popen[bytes], int]:
    line = f"console=ttyS0,115200 root=/dev/sda {_arguments(machine)}"
    _make_iso(host, machine.kernel / "bzImage", line, scratch)
    for disk in ("in.tar", "out.tar"):
        size = (scratch / disk).stat().st_size
        os.truncate(scratch / disk, -(-size // DISK_UNIT) * DISK_UNIT)
    config = BOCHS.format(root=host.inside(host.image), scratch=scratch)
    (scratch / "bochsrc").write_text(config)
    os.mkfifo(scratch / "console")
    reader = os.open(scratch / "console", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    stack.callback(os.close, reader)
    bochs = ("bochs-bin", "-q", "-f", f"{scratch}/bochsrc")
    # It draws the screen of the emulated machine on a terminal, after what it has to say itself.
    command = host.chroot.command("env", "TERM=vt100", *bochs)
    with (scratch / "bochs.screen").open("wb") as screen:
        return _popen(stack, command, screen.fileno()), reader


def _arguments(machine: Machine) -> str:
    # What follows the dashes is for init.
    return f"{KERNEL_ARGUMENTS} {machine.arguments}" + (" -- systemd" if machine.systemd else "")


def _popen(stack: contextlib.ExitStack, command: list[str], stdout: int) -> subprocess.Popen[bytes]:
    """Start an emulator that is always reaped."""
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=stdout,
        stderr=subprocess.STDOUT,
        bufsize=0,
    )
    stack.callback(process.wait)
    stack.callback(process.kill)
    if process.stdout is not None:
        stack.callback(process.stdout.close)
    return process


def _words(log: Path) -> list[str]:
    """Return the lines of a log, without what steers a terminal."""
    text = re.sub(r"\x1b[\[(][0-9;?]*[A-Za-z]", "", log.read_text(errors="replace"))
    lines = ("".join(filter(str.isprintable, line)).rstrip() for line in text.splitlines())
    return [line for line in lines if line]


def _make_iso(host: Host, kernel: Path, arguments: str, scratch: Path) -> None:
    """Make a disc that boots the kernel with these arguments."""
    tree = scratch / "iso"
    tree.mkdir()
    for name in ISO_FILES:
        shutil.copy(host.chroot.root / name.lstrip("/"), tree)
    shutil.copy(kernel, tree / "bzImage")
    (tree / "isolinux.cfg").write_text(ISOLINUX.format(arguments=arguments))
    boot = ("-b", "isolinux.bin", "-c", "boot.cat", "-no-emul-boot", "-boot-load-size", "4")
    output = ("-o", f"{scratch}/boot.iso", str(tree))
    host.chroot.run_quietly("xorriso", "-as", "mkisofs", *boot, "-boot-info-table", *output)


def _lines(stream: int, others: list[int], deadline: float) -> Iterator[str]:
    """Yield the lines of a stream until its end, or until only others can be read."""
    with selectors.DefaultSelector() as selector:
        for each in (stream, *others):
            selector.register(each, selectors.EVENT_READ)
        rest = b""
        while ready := selector.select(max(0.0, deadline - time.monotonic())):
            if stream not in {key.fd for key, _ in ready}:
                return
            data = os.read(stream, 65536)
            *whole, rest = (rest + data).split(b"\n")
            for line in whole:
                yield line.decode("utf-8", "replace").rstrip("\r")
            if not data:
                return
