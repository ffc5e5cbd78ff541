"""Processes that tests start: a program of vgpud's, and `vgpud serve` in particular."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import IO, Final, Self

from tests.support.until import PATIENCE, until

ROOT: Final = Path(__file__).parents[2]
VGPUD: Final = (sys.executable, "-m", "vgpud")
BACK_END: Final = (sys.executable, "-m", "vgpud.cli.backend_program")


class Process:
    """A process from its start, at the root of the project; a context manager.

    What it prints is kept, also after its end. Leaving the context kills it if it still runs.
    """

    def __init__(
        self,
        *command: str | Path,
        fds: Sequence[int] = (),
        environment: Mapping[str, str] | None = None,
        stdout: int | None = None,
    ) -> None:
        """Say what to start: with `fds` inherited, `environment` added to ours, and its standard
        output kept unless `stdout` is a descriptor for it."""
        self._command = command
        self._fds = fds
        self._environment = {**os.environ, "PYTHONUNBUFFERED": "1", **(environment or {})}
        self._stdout = stdout
        self._output: IO[bytes] | str = ""
        self._log: IO[bytes] | str = ""

    def __enter__(self) -> Self:
        # Files and not pipes: nothing needs to read them meanwhile.
        self._output, self._log = tempfile.TemporaryFile(), tempfile.TemporaryFile()
        self._process = subprocess.Popen(
            self._command,
            cwd=ROOT,
            env=self._environment,
            pass_fds=self._fds,
            stdin=subprocess.DEVNULL,
            stdout=self._output if self._stdout is None else self._stdout,
            stderr=self._log,
        )
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Kill it if it still runs, and keep what it has printed."""
        self.kill()
        files, texts = (self._output, self._log), (self.output, self.log)
        self._output, self._log = texts
        for file in files:
            assert not isinstance(file, str)
            file.close()

    @property
    def pid(self) -> int:
        """The process id."""
        return self._process.pid

    @property
    def alive(self) -> bool:
        """Whether the process runs."""
        return self._process.poll() is None

    @property
    def output(self) -> str:
        """What it has printed on its standard output."""
        return _text(self._output)

    @property
    def log(self) -> str:
        """What it has printed on its standard error."""
        return _text(self._log)

    def send_signal(self, number: signal.Signals) -> None:
        """Send a signal to the process, if it still runs."""
        self._process.send_signal(number)

    def terminate(self) -> None:
        """Send SIGTERM."""
        self.send_signal(signal.SIGTERM)

    def wait(self, patience: float = PATIENCE) -> int:
        """Wait for its end; return the exit status, negative for the signal that it took."""
        return self._process.wait(patience)

    def kill(self) -> None:
        """End it at once, in whatever it is doing."""
        self._process.kill()
        self._process.wait()

    def until(self, condition: Callable[[], bool], patience: float = PATIENCE) -> None:
        """Wait for a condition to hold, while the process runs."""

        def holds() -> bool:
            if condition():
                return True
            assert self.alive, f"ended with {self._process.returncode}: {self.log}"
            return False

        until(holds, patience, lambda: f"not within {patience} s: {self.output}{self.log}")

    def until_printed(self, text: str) -> None:
        """Wait until it has printed this on its standard output."""
        self.until(lambda: text in self.output)

    def open_files(self) -> list[str]:
        """Return what its file descriptors are, sorted."""
        names = []
        for entry in Path(f"/proc/{self.pid}/fd").iterdir():
            try:
                names.append(str(entry.readlink()).split(":[")[0])
            except FileNotFoundError:  # closed meanwhile
                continue
        return sorted(names)

    def idle_files(self) -> list[str]:
        """Return the file descriptors once they have not changed for a moment: the daemon has one
        of a caller's socket while it answers."""
        before, files = [""], self.open_files()
        while files != before:
            time.sleep(0.1)
            before, files = files, self.open_files()
        return files

    def settled_files(self, expected: list[str], patience: float = 5.0) -> list[str]:
        """Return the file descriptors once they are as expected, or after `patience` seconds."""
        with suppress(AssertionError):
            until(lambda: self.open_files() == expected, patience)
        return self.open_files()


def _text(kept: IO[bytes] | str) -> str:
    if isinstance(kept, str):
        return kept
    # At a position of its own: the process writes at the file's.
    return os.pread(kept.fileno(), os.fstat(kept.fileno()).st_size, 0).decode()


def config_toml(
    directory: Path,
    devices: Sequence[str] = ("gpu0",),
    *,
    layout: str = "window",
    window: str = "256MiB",
    memory_limit: str = "1GiB",
    outputs: str = '["1280x800"]',
) -> str:
    """A configuration with these devices, which see by themselves that no KVM is in the way."""
    text = f'[daemon]\nruntime_dir = "{directory}"\n'
    for name in devices:
        text += (
            f'\n[[device]]\nname = "{name}"\nsocket = "{name}.sock"\nwindow = "{window}"\n'
            f'memory_limit = "{memory_limit}"\noutputs = {outputs}\nguest_pat = "auto"\n'
        )
    return text + f'\n[[slot_policy]]\nmemory_type = "wc"\nlayout = "{layout}"\n'


class DaemonProcess(Process):
    """A daemon from its start to SIGTERM; leaving the context asserts that it ended well."""

    def __init__(
        self,
        directory: Path,
        config: str,
        *,
        devices: Sequence[str] = ("gpu0",),
        program: Sequence[str | Path] = VGPUD,
    ) -> None:
        """Say what to serve; entering the context returns once the sockets of `devices` listen."""
        self.config = directory / "vgpud.toml"
        """The file that it is started with."""
        self.config.write_text(config)
        self._sockets = {name: directory / f"{name}.sock" for name in devices}
        super().__init__(*program, "serve", "--config", self.config)

    def __enter__(self) -> Self:
        super().__enter__()
        try:
            # Every socket is named once it listens.
            self.until(lambda: all(str(path) in self.output for path in self._sockets.values()))
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        alive = self.alive
        try:
            self.terminate()
            status = self.wait()
        finally:
            self.close()
        if kind is None:
            assert alive, f"the daemon ended by itself, status {status}\n{self.log}"
            assert status == 0, f"SIGTERM: status {status}\n{self.log}"
            assert "Traceback" not in self.log, self.log

    def socket(self, device: str = "gpu0") -> Path:
        """Return the path of a device's vhost-user socket."""
        return self._sockets[device]
