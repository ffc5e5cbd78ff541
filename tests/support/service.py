"""`vgpud serve` as a service manager starts it: told where to report to, with sockets passed."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Final, Self

PATIENCE: Final = 20.0
"""Seconds for anything to happen, on a busy machine."""

# Becomes the daemon, with the sockets from descriptor 3 on and in its own name.
_LAUNCH: Final = """
import os, sys
count = int(sys.argv[1])
fds = [int(number) for number in sys.argv[2 : 2 + count]]
high = [os.dup2(fd, 100 + index, inheritable=False) for index, fd in enumerate(fds)]
for index, fd in enumerate(high):
    os.dup2(fd, 3 + index)
os.closerange(3 + count, 100)
os.environ["LISTEN_PID"] = str(os.getpid())
os.execv(sys.executable, [sys.executable, "-m", "vgpud", *sys.argv[2 + count :]])
"""


class Service:
    """A daemon with a configuration in `directory`, and ourselves as its service manager.

    Leaving the context kills it, unless it has ended.
    """

    def __init__(
        self,
        directory: Path,
        config: str,
        *,
        sockets: Sequence[tuple[str, socket.socket]] = (),
        watchdog: float | None = None,
        arguments: Sequence[str] = (),
    ) -> None:
        self.directory = directory
        self.config = directory / "vgpud.toml"
        self.configure(config)
        self._sockets = sockets
        self._watchdog = watchdog
        self._arguments = arguments
        self.said: list[dict[str, str]] = []
        """What it has reported: one dictionary a datagram."""
        self._looked_at = 0

    def configure(self, text: str) -> None:
        """Replace its configuration, at once as an editor does; {dir} is its directory."""
        new = self.directory / "new.toml"
        new.write_text(text.replace("{dir}", str(self.directory)))
        new.replace(self.config)

    def __enter__(self) -> Self:
        (self.directory / "notify").unlink(missing_ok=True)
        self._notify = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._notify.settimeout(0.05)
        self._notify.bind(str(self.directory / "notify"))
        environment = {**os.environ, "NOTIFY_SOCKET": str(self.directory / "notify")}
        if self._watchdog is not None:
            environment["WATCHDOG_USEC"] = str(round(self._watchdog * 1e6))
        if self._sockets:
            environment["LISTEN_FDS"] = str(len(self._sockets))
            environment["LISTEN_FDNAMES"] = ":".join(name for name, _ in self._sockets)
        numbers = [sock.fileno() for _, sock in self._sockets]
        launch = [sys.executable, "-c", _LAUNCH, str(len(numbers)), *map(str, numbers)]
        with (self.directory / "log").open("w") as log, (self.directory / "out").open("w") as out:
            self.process = subprocess.Popen(
                [*launch, "serve", "--config", str(self.config), *self._arguments],
                cwd=Path(__file__).parents[2],
                env=environment,
                pass_fds=numbers,
                stdout=out,
                stderr=log,
            )
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.process.kill()
        self.process.wait()
        self._notify.close()

    @property
    def log(self) -> str:
        """What it has logged."""
        return (self.directory / "log").read_text()

    @property
    def output(self) -> str:
        """What it has printed."""
        return (self.directory / "out").read_text()

    def listen(self) -> None:
        """Take what it has reported meanwhile into `said`."""
        while True:
            try:
                text = self._notify.recv(4096).decode()
            except TimeoutError:
                return
            self.said.append(dict(line.split("=", maxsplit=1) for line in text.splitlines()))

    def until_said(self, **wanted: str) -> dict[str, str]:
        """The first report with these values after the one that was last waited for."""

        def position() -> int | None:
            self.listen()
            for index in range(self._looked_at, len(self.said)):
                if wanted.items() <= self.said[index].items():
                    return index
            return None

        self.until(lambda: position() is not None)
        index = position()
        assert index is not None
        self._looked_at = index + 1
        return self.said[index]

    def until(self, true: Callable[[], bool]) -> None:
        """Wait for a condition to hold, while it runs."""
        end = time.monotonic() + PATIENCE
        while not true():
            assert self.process.poll() is None, self.log
            assert time.monotonic() < end, (self.said, self.log)
            time.sleep(0.02)

    def open_files(self) -> list[str]:
        """What its descriptors are, sorted."""
        names = []
        for entry in Path(f"/proc/{self.process.pid}/fd").iterdir():
            try:
                names.append(str(entry.readlink()).split(":[")[0])
            except FileNotFoundError:  # closed meanwhile
                continue
        return sorted(names)
