"""One stock guest in QEMU (TCG, two to three seconds a boot), driven over its console and QMP.

It owns the QEMU process, which is always reaped, also when a test fails. The device's back-end is
only a socket path here.
"""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import socket as sockets
import subprocess
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Final, Literal, Self

import numpy as np
from numpy.typing import NDArray

from tests.rig.build import Rig

Device = Literal["test", "gpu", "inproc"]

DEVICES: Final[dict[Device, str]] = {
    # the generic vhost-user device: all features pass, and it has host-visible memory; no display
    "test": "vhost-user-test-device-pci,chardev=c,"
    "virtio-id=16,num_vqs=2,vq_size=256,config_size=20",
    # 2D and display only, and what libvirt starts
    "gpu": "vhost-user-gpu-pci,chardev=c",
    # QEMU's own device, in its own process: what a vhost-user device is compared with
    "inproc": "virtio-gpu-pci",
}
# No check of the clock, no mitigations, no self-tests: seconds of a TCG boot.
KERNEL_ARGUMENTS: Final = (
    "console=ttyS0 quiet mitigations=off nokaslr tsc=reliable no_timer_check noreplace-smp audit=0 "
    "selinux=0 apparmor=0 panic=-1 raid=noautodetect cryptomgr.notests random.trust_cpu=on"
)
BOOT_S: Final = 60.0
# A busy machine stretches everything; what hangs still ends well inside a test's own timeout.
COMMAND_S: Final = 60.0
QMP_S: Final = 20.0


class GuestTimeoutError(AssertionError):
    """The guest did not say what was expected; the message has the console's last lines."""


@dataclass(frozen=True, slots=True)
class Line:
    """A line of the guest's console and when it came, in seconds since QEMU was started."""

    time: float
    text: str


@dataclass(frozen=True, slots=True)
class Result:
    """What a command in the guest printed, and its exit status."""

    lines: tuple[str, ...]
    status: int

    @property
    def text(self) -> str:
        """The output as one string."""
        return "\n".join(self.lines)


class Guest:
    """A guest from boot to power-off or kill; use it as a context manager."""

    def __init__(
        self,
        rig: Rig,
        device: Device,
        *,
        socket: Path | None = None,
        properties: str = "",
        memory: str = "512M",
        append: str = "",
        device_arguments: tuple[str, ...] = (),
    ) -> None:
        """Say what to boot; entering the context starts it.

        `socket`: the back-end's vhost-user socket, below /tmp (the chroot shares that).
        `properties` go to the -device option (",name=value"). `device_arguments` replace the
        -chardev and -device options whole.
        """
        self._rig = rig
        self._device: Device = device
        self._socket = socket
        self._properties = properties
        self._memory = memory
        self._append = append
        self._device_arguments = device_arguments
        self._stack = contextlib.ExitStack()
        self._news = threading.Condition()
        self._lines: list[Line] = []
        self._stderr: list[str] = []
        self._ended = False
        self._seen = 0

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as stack:
            self._scratch = Path(tempfile.mkdtemp(prefix="vgpud-guest-", dir="/tmp"))
            stack.callback(shutil.rmtree, self._scratch, ignore_errors=True)
            self._started = time.monotonic()
            self._process = subprocess.Popen(
                self._command(),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
            )
            stack.callback(self._reap)
            assert self._process.stderr is not None
            self._input, output = self._open_console(stack)
            for stream, take in (
                (output, self._take_console),
                (self._process.stderr, self._take_stderr),
            ):
                reader = threading.Thread(target=_read, args=(stream, take), daemon=True)
                reader.start()
                # after the reaping (callbacks run last to first): the pipes have ended by then
                stack.callback(stream.close)
                stack.callback(reader.join)
            stack.callback(self.kill)
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._stack.close()

    def _command(self) -> list[str]:
        return self._rig.chroot.command(*self._arguments())

    def _open_console(self, stack: contextlib.ExitStack) -> tuple[IO[bytes], IO[bytes]]:
        """What the guest reads, and what it says; `stack` closes what is opened for that."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        return self._process.stdin, self._process.stdout

    def _arguments(self) -> list[str]:
        arguments = ["qemu-system-x86_64", "-nodefaults", "-no-user-config", "-display", "none"]
        arguments += ["-accel", "tcg,thread=multi", "-cpu", "qemu64", "-smp", "1"]
        memory = f"memory-backend-memfd,id=mem,size={self._memory},share=on"
        arguments += ["-m", self._memory, "-object", memory, "-M", "q35,memory-backend=mem"]
        arguments += ["-kernel", self._rig.inside(self._rig.vmlinux)]
        arguments += ["-initrd", self._rig.inside(self._rig.initrd)]
        arguments += ["-append", f"{KERNEL_ARGUMENTS} {self._append}".rstrip()]
        arguments += ["-chardev", "stdio,id=console,signal=off", "-serial", "chardev:console"]
        arguments += ["-qmp", f"unix:{self._scratch / 'qmp'},server=on,wait=off"]
        if self._device_arguments:
            return [*arguments, *self._device_arguments]
        if self._socket is not None:
            arguments += ["-chardev", f"socket,id=c,path={self._socket}"]
        return [*arguments, "-device", DEVICES[self._device] + self._properties]

    @property
    def pid(self) -> int:
        """QEMU's process id."""
        return self._process.pid

    @property
    def exit_status(self) -> int | None:
        """QEMU's exit status (negative: the signal that ended it), None while it runs."""
        return self._process.poll()

    @property
    def stderr(self) -> tuple[str, ...]:
        """What QEMU itself said so far: its warnings and errors."""
        with self._news:
            return tuple(self._stderr)

    @property
    def console(self) -> tuple[Line, ...]:
        """Every line of the guest's console so far."""
        with self._news:
            return tuple(self._lines)

    def wait_line(self, pattern: str, timeout: float = COMMAND_S) -> re.Match[str]:
        """The next console line with `pattern` in it; lines before it are passed over."""
        regex = re.compile(pattern)
        deadline = time.monotonic() + timeout
        with self._news:
            while True:
                while self._seen < len(self._lines):
                    line = self._lines[self._seen].text
                    self._seen += 1
                    if found := regex.search(line):
                        return found
                if self._ended:
                    status = self._process.wait(QMP_S)
                    told = f"QEMU ended with {status} before {pattern!r}"
                    raise GuestTimeoutError(f"{told}\n{self._tail()}")
                left = deadline - time.monotonic()
                if left <= 0:
                    raise GuestTimeoutError(f"no {pattern!r} in {timeout} s\n{self._tail()}")
                self._news.wait(left)

    def wait_boot(self, timeout: float = BOOT_S) -> None:
        """Wait until the guest's init takes commands and has seen the GPU."""
        found = self.wait_line(r"^RIG up at ([0-9.]+) with (.*)$", timeout)
        assert "card0" in found[2], f"the driver did not bind\n{self._tail()}"

    def start(self, command: str) -> None:
        """Give a line to the guest's shell, or to the program that reads its console."""
        self._input.write(command.encode() + b"\n")
        self._input.flush()

    def finish(self, timeout: float = COMMAND_S) -> Result:
        """The rest of the output of the command that was started, from the last line waited for."""
        first = self._seen
        status = int(self.wait_line(r"^RIG rc=(\d+)$", timeout)[1])
        with self._news:
            lines = tuple(line.text for line in self._lines[first : self._seen - 1])
        return Result(lines, status)

    def run(self, command: str, timeout: float = COMMAND_S) -> Result:
        """Run a shell line in the guest to its end."""
        self.start(command)
        return self.finish(timeout)

    def qmp(self, command: str, **arguments: Any) -> Any:
        """Run a QMP command on a connection of its own; return what it returned."""
        with sockets.socket(sockets.AF_UNIX, sockets.SOCK_STREAM) as connection:
            connection.settimeout(QMP_S)
            connection.connect(str(self._scratch / "qmp"))
            with connection.makefile("rwb") as stream:
                json.loads(stream.readline())
                _converse(stream, {"execute": "qmp_capabilities"})
                return _converse(stream, {"execute": command, "arguments": arguments})

    def screendump(self) -> NDArray[np.uint8]:
        """The screen as QEMU has it: RGB, shape (height, width, 3)."""
        path = self._scratch / "screen.ppm"
        self.qmp("screendump", filename=str(path))
        data = path.read_bytes()
        header = re.match(rb"P6\s(\d+)\s(\d+)\s255\s", data)
        assert header is not None, "QEMU's screendump is not a PPM file"
        width, height = int(header[1]), int(header[2])
        return np.frombuffer(data, np.uint8, offset=header.end()).reshape(height, width, 3)

    def reset(self) -> None:
        """Reset the machine, as its button would, and wait until it is up again."""
        self.qmp("system_reset")
        self.wait_boot()

    def wait_exit(self, timeout: float = 20.0) -> int:
        """Wait until QEMU ended; return its exit status."""
        return self._process.wait(timeout)

    def kill(self) -> None:
        """End QEMU at once (SIGKILL), in whatever it is doing."""
        self._process.kill()
        self._process.wait()

    def _reap(self) -> None:
        self.kill()
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()

    def _take_console(self, text: str | None) -> None:
        with self._news:
            if text is None:
                self._ended = True
            else:
                self._lines.append(Line(time.monotonic() - self._started, text))
            self._news.notify_all()

    def _take_stderr(self, text: str | None) -> None:
        if text is not None:
            with self._news:
                self._stderr.append(text)

    def _tail(self) -> str:
        lines = [f"[{line.time:7.2f}] {line.text}" for line in self._lines[-40:]]
        return "\n".join([*lines, *(f"[QEMU] {text}" for text in self._stderr[-20:])])


def _read(stream: IO[bytes], take: Any) -> None:
    """Hand over each line of `stream`, then None."""
    for raw in stream:
        take(raw.decode("latin-1").rstrip("\r\n"))
    take(None)


def _converse(stream: Any, request: dict[str, Any]) -> Any:
    """Send one QMP command and return its answer; events in between are not for us."""
    stream.write(json.dumps(request).encode() + b"\n")
    stream.flush()
    while True:
        answer = json.loads(stream.readline())
        if "event" not in answer:
            assert "return" in answer, f"QMP {request['execute']}: {answer}"
            return answer["return"]
