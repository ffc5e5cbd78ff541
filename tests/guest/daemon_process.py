"""`vgpud serve` as a process of its own, as an operator runs it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Final, Self

START_S: Final = 20.0
STOP_S: Final = 10.0


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


class DaemonProcess:
    """A daemon from its start to SIGTERM; leaving the context asserts that it ended well."""

    def __init__(self, directory: Path, config: str, *, devices: Sequence[str] = ("gpu0",)) -> None:
        """Say what to run; entering the context starts it and waits until it listens."""
        self._config = directory / "vgpud.toml"
        self._config.write_text(config)
        self._sockets = {name: directory / f"{name}.sock" for name in devices}
        self._stdout: list[str] = []
        self._stderr: list[str] = []

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "vgpud", "serve", "--config", str(self._config)],
            cwd=Path(__file__).parents[2],
            env={**os.environ, "PYTHONUNBUFFERED": "1"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert self._process.stdout is not None
        assert self._process.stderr is not None
        self._readers = [
            threading.Thread(target=_collect, args=(stream, lines), daemon=True)
            for stream, lines in (
                (self._process.stdout, self._stdout),
                (self._process.stderr, self._stderr),
            )
        ]
        for reader in self._readers:
            reader.start()
        try:
            self._wait_listening()
        except BaseException:
            self._kill()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        alive = self.alive
        self._process.send_signal(signal.SIGTERM)
        try:
            status = self._process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            self._kill()
            raise
        self._kill()
        if kind is None:
            assert alive, f"the daemon ended by itself, status {status}\n{self.log}"
            assert status == 0, f"SIGTERM: status {status}\n{self.log}"
            assert "Traceback" not in self.log, self.log

    def _kill(self) -> None:
        self._process.kill()
        self._process.wait()
        for reader in self._readers:
            reader.join()
        for stream in (self._process.stdout, self._process.stderr):
            assert stream is not None
            stream.close()

    def _wait_listening(self) -> None:
        """Every socket is named on stdout once it listens."""
        deadline = time.monotonic() + START_S
        while not all(str(path) in self.announcement for path in self._sockets.values()):
            assert self.alive, f"the daemon ended at once\n{self.log}"
            assert time.monotonic() < deadline, f"the daemon does not listen\n{self.log}"
            time.sleep(0.02)

    @property
    def alive(self) -> bool:
        """Whether the process runs."""
        return self._process.poll() is None

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    @property
    def config(self) -> Path:
        """The file that it was started with."""
        return self._config

    @property
    def announcement(self) -> str:
        """What it printed on stdout."""
        return "".join(self._stdout)

    @property
    def log(self) -> str:
        """What it printed on stderr."""
        return "".join(self._stderr)

    def socket(self, device: str = "gpu0") -> Path:
        """The vhost-user socket of a device."""
        return self._sockets[device]

    def open_files(self) -> list[str]:
        """What the daemon's file descriptors are, sorted."""
        names = []
        for entry in Path(f"/proc/{self._process.pid}/fd").iterdir():
            try:
                names.append(str(entry.readlink()).split(":[")[0])
            except FileNotFoundError:  # closed meanwhile
                continue
        return sorted(names)

    def settled_files(self, expected: list[str], patience: float = 5.0) -> list[str]:
        """The file descriptors as soon as they are as expected, or after `patience` seconds."""
        deadline = time.monotonic() + patience
        while (seen := self.open_files()) != expected and time.monotonic() < deadline:
            time.sleep(0.05)
        return seen


def _collect(stream: IO[str], lines: list[str]) -> None:
    for line in stream:
        lines.append(line)  # noqa: PERF402 - others look at the list meanwhile
