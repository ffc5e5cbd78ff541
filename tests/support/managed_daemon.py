"""`vgpud serve` as a service manager starts it: told where to report to, with sockets passed."""

from __future__ import annotations

import socket
import sys
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from tests.support.process import Process

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


class ManagedDaemon(Process):
    """A daemon with a configuration in `directory`, and ourselves as its service manager."""

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
        self.said: list[dict[str, str]] = []
        """What it has reported: one dictionary a datagram."""
        self._looked_at = 0
        environment = {"NOTIFY_SOCKET": str(directory / "notify")}
        if watchdog is not None:
            environment["WATCHDOG_USEC"] = str(round(watchdog * 1e6))
        if sockets:
            environment["LISTEN_FDS"] = str(len(sockets))
            environment["LISTEN_FDNAMES"] = ":".join(name for name, _ in sockets)
        fds = [sock.fileno() for _, sock in sockets]
        launch = (sys.executable, "-c", _LAUNCH, str(len(fds)), *map(str, fds))
        serve = ("serve", "--config", str(self.config), *arguments)
        super().__init__(*launch, *serve, fds=fds, environment=environment)

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
        return super().__enter__()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        super().__exit__(kind, error, traceback)
        self._notify.close()

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
