"""The guest rig as `vgpud bench guest` uses it: a QEMU, a stock guest, and QEMU's own back-end.

The tests build the rig (tests/run does) and keep it in a directory that their documentation names:
$VGPUD_RIG, else ~/.cache/vgpud-rig. Owns what of it is needed here: finding it, booting the guest,
and running a program in it over its console.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import select
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from vgpud.errors import HostError, VgpudError

BOOT_S: Final = 60.0
LISTEN_S: Final = 10.0
C_BACK_END: Final = "/usr/lib/qemu/vhost-user-gpu"
_QEMU: Final = "/usr/bin/qemu-system-x86_64"
# What tests/rig/programs/speed.c prints: an image without it was made for another vgpud.
_MARK: Final = b'SPEED {"version": 2, '
# No check of the clock, no mitigations, no self-tests: seconds of a boot without KVM.
_KERNEL_ARGUMENTS: Final = (
    "console=ttyS0 quiet mitigations=off nokaslr tsc=reliable no_timer_check noreplace-smp audit=0 "
    "selinux=0 apparmor=0 panic=-1 raid=noautodetect cryptomgr.notests random.trust_cpu=on"
)
# In a mount namespace of its own, so that nothing stays mounted; as the tests enter it.
_ENTER: Final = (
    'mkdir -p "$1/rig" && mount --rbind /proc "$1/proc" && mount --rbind /dev "$1/dev" '
    '&& mount --bind /tmp "$1/tmp" && mount --bind "$2" "$1/rig" '
    '&& root=$1 && shift 2 && exec chroot "$root" "$@"'
)


@dataclass(frozen=True, slots=True)
class Rig:
    """What the tests have built: a Debian root, a kernel, and an image of guest programs."""

    cache: Path
    root: Path
    image: Path

    @classmethod
    def find(cls) -> Self:
        """The rig of this user. Raises VgpudError, in words, where there is none that will do."""
        if os.geteuid() != 0:
            raise VgpudError("the guest rig needs root: it runs QEMU in a chroot")
        named = os.environ.get("VGPUD_RIG")
        cache = Path(named).resolve() if named else Path.home() / ".cache" / "vgpud-rig"
        root = cache / "trixie"
        needed = [cache / "vmlinux", *(root / tool[1:] for tool in (_QEMU, C_BACK_END))]
        if not all(path.exists() for path in needed):
            raise VgpudError(f"no guest rig in {cache}: in a checkout, tests/run builds it")
        missing = [tool for tool in ("unshare", "setpriv") if shutil.which(tool) is None]
        if missing:
            raise VgpudError(f"the guest rig needs {', '.join(missing)}")
        images = sorted(cache.glob("guest-*.cpio"), key=lambda path: -path.stat().st_mtime)
        for image in images:
            if _MARK in image.read_bytes():
                return cls(cache, root, image)
        raise VgpudError(
            f"no guest image of this vgpud in {cache}: in its checkout, tests/run makes it"
        )

    def command(self, *argv: str) -> list[str]:
        """The command line that runs `argv` inside; it ends with the thread that starts it."""
        return [
            *("setpriv", "--pdeathsig", "KILL"),
            *("unshare", "--mount", "--propagation", "private"),
            *("sh", "-c", _ENTER, "sh", str(self.root), str(self.cache), *argv),
        ]


@contextlib.contextmanager
def c_back_end(rig: Rig) -> Iterator[Path]:
    """QEMU's vhost-user-gpu, for one front-end; its socket."""
    with tempfile.TemporaryDirectory(prefix="vgpud-bench-", dir="/tmp") as name:
        socket = Path(name, "c.sock")
        process = _start(rig.command(C_BACK_END, f"--socket-path={socket}"), subprocess.DEVNULL)
        try:
            deadline = time.monotonic() + LISTEN_S
            while not socket.exists():
                if process.poll() is not None or time.monotonic() > deadline:
                    raise VgpudError(f"{C_BACK_END} does not listen")
                time.sleep(0.02)
            yield socket
        finally:
            process.kill()
            process.wait()


class Guest:
    """A guest, booted with these QEMU options for its device; a context manager.

    Raises VgpudError with the last lines of its console where it does not do what it should.
    """

    def __init__(self, rig: Rig, *device: str) -> None:
        self._rig = rig
        self._device = device
        self._unread = b""
        self._console: list[str] = []

    def __enter__(self) -> Self:
        self._process = _start(self._rig.command(*self._arguments()), subprocess.PIPE)
        try:
            self._wait(r"^RIG up at .* card0", BOOT_S)
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._end()

    def run(self, command: str, pattern: str, patience: float) -> str:
        """Run a shell line in the guest; what a line of its output has after `pattern`."""
        assert self._process.stdin is not None
        self._process.stdin.write(command.encode() + b"\n")
        self._process.stdin.flush()
        return self._wait(pattern, patience)

    def _arguments(self) -> list[str]:
        arguments = [_QEMU, "-nodefaults", "-no-user-config", "-display", "none"]
        arguments += ["-accel", "tcg,thread=multi", "-cpu", "qemu64", "-smp", "1"]
        arguments += ["-m", "512M", "-M", "q35,memory-backend=mem"]
        arguments += ["-object", "memory-backend-memfd,id=mem,size=512M,share=on"]
        arguments += ["-kernel", "/rig/vmlinux", "-initrd", f"/rig/{self._rig.image.name}"]
        arguments += ["-append", _KERNEL_ARGUMENTS]
        arguments += ["-chardev", "stdio,id=console,signal=off", "-serial", "chardev:console"]
        return [*arguments, *self._device]

    def _wait(self, pattern: str, patience: float) -> str:
        regex = re.compile(pattern)
        deadline = time.monotonic() + patience
        while True:
            line = self._line(deadline)
            if line is None:
                told = "\n".join(["the guest did not get on; its last lines:", *self._console[-8:]])
                raise VgpudError(told)
            self._console.append(line)
            if found := regex.search(line):
                return line[found.end() :]

    def _line(self, deadline: float) -> str | None:
        """The next line of the console, None if there is none in time."""
        assert self._process.stdout is not None
        while b"\n" not in self._unread:
            left = max(deadline - time.monotonic(), 0)
            if not select.select([self._process.stdout], [], [], left)[0]:
                return None
            more = os.read(self._process.stdout.fileno(), 65536)
            if not more:
                return None
            self._unread += more
        line, _, self._unread = self._unread.partition(b"\n")
        return line.decode(errors="replace").rstrip("\r")

    def _end(self) -> None:
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            assert stream is not None
            with contextlib.suppress(BrokenPipeError):
                stream.close()


def _start(command: list[str], pipe: int) -> subprocess.Popen[bytes]:
    try:
        return subprocess.Popen(  # noqa: S603 - the rig's programs, no shell of ours
            command, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL
        )
    except OSError as error:
        if error.errno == errno.ENOENT:
            raise VgpudError(f"the guest rig needs {error.filename}") from error
        raise HostError("starting the guest rig", error) from error
