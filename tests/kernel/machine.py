"""One boot of the built host under QEMU: a command goes in with its files, its output comes out.

It owns the QEMU process, which is always reaped. The processor is emulated and has nested
SVM, so /dev/kvm inside is KVM as on an AMD machine.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import selectors
import shlex
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Final

from tests.kernel.build import PROJECT, Host, build
from tests.rig.chroot import RigUnavailableError

QEMU: Final = (
    *("qemu-system-x86_64", "-nodefaults", "-no-user-config", "-display", "none"),
    *("-serial", "stdio", "-no-reboot", "-M", "q35", "-accel", "tcg,thread=multi"),
    *("-cpu", "qemu64,+npt,+rdrand", "-smp", "2", "-m", "2G"),
)
# No waiting for clocks that TCG does not keep well, and a panic ends QEMU.
KERNEL_ARGUMENTS: Final = (
    "console=ttyS0 quiet root=/dev/vda rw init=/vgpud-init tsc=reliable no_timer_check "
    "random.trust_cpu=on panic=-1"
)
# What goes into the guest beside the package: enough for its tests to be run there.
FILES: Final = ("tests", "pyproject.toml")
OUT_BYTES: Final = 64 << 20
# A TCG boot takes two seconds, and the checks twenty to sixty; what hangs ends.
TIMEOUT_S: Final = 600.0


class JobError(AssertionError):
    """The guest did not come to the command's end; the message has its last lines."""


@dataclass(frozen=True, slots=True)
class Job:
    """What came of a command: its exit status, what it printed, the files that it left in out/.

    `boot` and `total` are in seconds from QEMU's start to the guest's init, and to its end.
    """

    status: int
    lines: tuple[str, ...]
    files: dict[str, bytes]
    boot: float
    total: float

    @property
    def text(self) -> str:
        """The output as one string."""
        return "\n".join(self.lines)


def run(
    host: Host,
    kernel: Path,
    command: str,
    *,
    systemd: bool = False,
    echo: IO[str] | None = None,
) -> Job:
    """Boot, run a shell command in a directory with vgpud's tests, and power off.

    `python3` finds vgpud there. With `systemd`, that is PID 1. What is printed goes to `echo` as it
    comes, too. Raises JobError if the guest dies or takes more than ten minutes.
    """
    # Below /tmp, which the chroot shares; not in the cache, where runs would meet.
    with tempfile.TemporaryDirectory(prefix="vgpud-kernel-", dir="/tmp") as name:
        scratch = Path(name)
        _pack(scratch / "in.tar", host, command)
        with (scratch / "out.tar").open("wb") as out:
            out.truncate(OUT_BYTES)
        lines: list[str] = []
        boot = status = None
        # What the kernel says before the command and after it is not the command's output.
        first, last = 0, None
        start = time.monotonic()
        for line in _console(host, kernel, scratch, systemd):
            if line.startswith("KERNEL init at "):
                boot = time.monotonic() - start
                first = len(lines) + 1
            elif found := re.match(r"KERNEL rc=(\d+) at ", line):
                status = int(found[1])
                last = len(lines)
            elif echo is not None and boot is not None and status is None:
                print(line, file=echo, flush=True)
            lines.append(line)
        total = time.monotonic() - start
        if boot is None or status is None:
            tail = "\n".join(lines[-40:])
            raise JobError(f"the guest ended before its command did, in {total:.0f} s\n{tail}")
        files = _unpack(scratch / "out.tar")
        return Job(status, tuple(lines[first:last]), files, boot, total)


def _pack(archive: Path, host: Host, command: str) -> None:
    script = f"export PYTHONPATH=/job/package PYTHONDONTWRITEBYTECODE=1\n{command}\n".encode()
    with tarfile.open(archive, "w") as tar:
        info = tarfile.TarInfo("command")
        info.size = len(script)
        tar.addfile(info, io.BytesIO(script))
        tar.add(host.package, "package")
        for name in FILES:
            tar.add(PROJECT / name, name, filter=_source)


def _source(member: tarfile.TarInfo) -> tarfile.TarInfo | None:
    return None if Path(member.name).name == "__pycache__" else member


def _unpack(archive: Path) -> dict[str, bytes]:
    files: dict[str, bytes] = {}
    with tarfile.open(archive) as tar:
        for member in tar:
            content = tar.extractfile(member)
            if content is not None:
                files[str(Path(member.name))] = content.read()
    return files


def _console(host: Host, kernel: Path, scratch: Path, systemd: bool) -> Iterator[str]:
    """The lines of the guest's console, QEMU's own among them, until QEMU ends."""
    # What follows the dashes is for init.
    line = KERNEL_ARGUMENTS + (" -- systemd" if systemd else "")
    arguments = [*QEMU, "-kernel", host.inside(kernel), "-append", line]
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
    process = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    deadline = time.monotonic() + TIMEOUT_S
    with contextlib.ExitStack() as stack:
        stack.callback(process.wait)
        stack.callback(process.kill)
        assert process.stdout is not None
        stack.callback(process.stdout.close)
        selector = stack.enter_context(selectors.DefaultSelector())
        selector.register(process.stdout, selectors.EVENT_READ)
        rest = b""
        while selector.select(max(0.0, deadline - time.monotonic())):
            data = process.stdout.raw.read(65536)  # type: ignore[attr-defined]
            *whole, rest = (rest + data).split(b"\n")
            for line in whole:
                yield line.decode("utf-8", "replace").rstrip("\r")
            if not data:
                break


def main(arguments: list[str]) -> int:
    """Build what is missing; run one command in the guest, and show it as it runs."""
    try:
        host = build()
    except (RigUnavailableError, subprocess.CalledProcessError) as error:
        print(f"kernel: {error}", file=sys.stderr)
        return 1
    if arguments == ["build"]:
        return 0
    # One argument is a shell line, several are a command and what it is given.
    command = arguments[0] if len(arguments) == 1 else shlex.join(arguments)
    try:
        kernel = host.plain if os.environ.get("KERNEL") == "plain" else host.patched
        systemd = os.environ.get("INIT") == "systemd"
        job = run(host, kernel, command, systemd=systemd, echo=sys.stdout)
    except JobError as error:
        print(f"kernel: {error}", file=sys.stderr)
        return 1
    print(f"kernel: {job.boot:.1f} s to init, {job.total:.1f} s in all", file=sys.stderr)
    if "OUT" in os.environ:
        for name, content in job.files.items():
            path = Path(os.environ["OUT"], name)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
    return job.status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:] or ["build"]))
