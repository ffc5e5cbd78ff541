"""One boot of the built host: a command goes in with its files, its output comes out."""

from __future__ import annotations

import argparse
import io
import os
import re
import shlex
import subprocess
import sys
import tarfile
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Final

from tests.kernel.build import PROJECT, Host, build
from tests.kernel.emulators import Machine, Processor, console
from tests.rig.chroot import RigUnavailableError

# What goes into the guest beside the package: enough for its tests to be run there.
FILES: Final = ("tests", "pyproject.toml")
OUT_BYTES: Final = 64 << 20
DEFAULT_COMMAND: Final = ["python3 -m vgpud doctor"]
# A boot takes two seconds, and the checks up to three minutes; what hangs ends.
TIMEOUT_S: Final = 900.0


class JobError(AssertionError):
    """The guest did not come to the command's end; the message has its last lines."""


@dataclass(frozen=True, slots=True)
class Job:
    """What came of a command: its exit status, what it printed, the files that it left in out/.

    `boot` and `total` are in seconds from the emulator's start to the guest's init, and to its end.
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
    machine: Machine,
    command: str,
    *,
    echo: IO[str] | None = None,
    stop: int | None = None,
) -> Job:
    """Boot, run a shell command in a directory with vgpud's tests, and power off.

    `python3` finds vgpud there. What is printed goes to `echo` as it comes, too. Raises JobError if
    the guest dies or takes longer than TIMEOUT_S, or where the descriptor `stop` can be read.
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
        for line in console(host, machine, scratch, TIMEOUT_S, stop):
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


def _options(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="tests/kernel/run")
    commands = parser.add_subparsers(dest="verb", required=True)
    commands.add_parser("build", help="build what is missing, and nothing else")
    boot = commands.add_parser("boot", help="run a command in the guest, as root")
    boot.add_argument(
        "--cpu", choices=[*Processor], type=Processor, default=Processor.AMD, help="default: amd"
    )
    boot.add_argument("--kernel", choices=["patched", "plain"], default="patched")
    boot.add_argument("--init", choices=["systemd"], help="PID 1, instead of a script")
    boot.add_argument("--arguments", default="", help="further ones for the kernel")
    boot.add_argument("command", nargs=argparse.REMAINDER, help="default: vgpud doctor")
    return parser.parse_args(arguments)


def main(arguments: list[str]) -> int:
    """Build what is missing; run one command in the guest, and show it as it runs."""
    options = _options(arguments)
    try:
        host = build()
    except (RigUnavailableError, subprocess.CalledProcessError) as error:
        print(f"kernel: {error}", file=sys.stderr)
        return 1
    if options.verb == "build":
        return 0
    words = options.command or DEFAULT_COMMAND
    # One argument is a shell line, several are a command and what it is given.
    command = words[0] if len(words) == 1 else shlex.join(words)
    kernel = host.plain if options.kernel == "plain" else host.patched
    machine = Machine(kernel, options.cpu, options.arguments, options.init == "systemd")
    try:
        job = run(host, machine, command, echo=sys.stdout)
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
    sys.exit(main(sys.argv[1:]))
