"""The daemon in a process of its own, with its configuration, runtime directory and log."""

from __future__ import annotations

import errno
import os
import select
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from vgpud.coherency.slot_policy import GuestPat, Layout, SlotOwner
from vgpud.errors import HostError, VgpudError

PROGRAM: Final = (sys.executable, "-m", "vgpud", "serve")
DEVICE: Final = "microvm"
PACKAGE: Final = Path(__file__).parents[2]
"""The directory that `-m` searches first. The current directory may hold another vgpud, or a
checkout without its compiled modules."""

END_S: Final = 20.0
"""Seconds that the daemon may take to end, also on a host that is itself emulated."""
START_S: Final = 30.0
"""Seconds that the daemon may take to listen, also on a host that is itself emulated."""

_LOG_LINES: Final = 10


def configuration(
    guest_pat: GuestPat, layout: Layout = Layout.WINDOW, slots: SlotOwner = SlotOwner.FRONTEND
) -> str:
    """Return the configuration of a small device for a micro-VM, with what is known of its VM."""
    return (
        f'[[device]]\nname = "{DEVICE}"\nwindow = "1MiB"\nmemory_limit = "16MiB"\n'
        f'guest_pat = "{guest_pat}"\nslots = "{slots}"\n[[slot_policy]]\nlayout = "{layout}"\n'
    )


class Service:
    """A running `vgpud serve`; a context manager.

    `config` has the devices, and no `[daemon]`. Its `directory` is created in `parent`, by default
    tempfile's directory; `environment` is by default this process's. When the constructor returns,
    the daemon listens, `started_s` seconds after its start. Raises `HostError` if the directory
    can't be made, or the daemon can't be started or takes too long, and `VgpudError` with its log
    if it ends at once.
    """

    def __init__(
        self,
        config: str,
        *,
        parent: str | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        with ExitStack() as cleanup:
            self.directory = Path(cleanup.enter_context(_temporary_directory(parent)))
            start = time.perf_counter()
            try:
                self._start(config, environment, cleanup)
            except OSError as error:
                raise HostError(f"starting {' '.join(PROGRAM)}", error) from error
            cleanup.callback(self.end)
            self._wait()
            self.started_s = time.perf_counter() - start
            self._cleanup = cleanup.pop_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._cleanup.close()

    @property
    def pid(self) -> int:
        """The daemon's process id."""
        return self._process.pid

    @property
    def log(self) -> list[str]:
        """The lines that the daemon has logged so far."""
        self._log.seek(0)
        return self._log.read().splitlines()

    @property
    def control(self) -> Path:
        """The path of the control socket."""
        return self.directory / "control.sock"

    def socket_of(self, device: str) -> Path:
        """Return the path of a device's vhost-user socket."""
        return self.directory / f"{device}.sock"

    def connect(self, device: str = DEVICE) -> socket.socket:
        """Connect to a device as a front-end; raises `HostError`."""
        connection = socket.socket(socket.AF_UNIX)
        try:
            connection.connect(str(self.socket_of(device)))
        except OSError as error:
            connection.close()
            raise HostError(f"connecting to {device}", error) from error
        return connection

    def end(self) -> int:
        """End the daemon; return its exit status, or the negative number of a signal."""
        self._process.terminate()
        try:
            return self._process.wait(END_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            return self._process.wait()

    def _start(
        self, config: str, environment: Mapping[str, str] | None, cleanup: ExitStack
    ) -> None:
        path = self.directory / "vgpud.toml"
        path.write_text(f'[daemon]\nruntime_dir = "{self.directory}"\n{config}', encoding="utf-8")
        # Appending, because the daemon shares the file position of this process, which reads.
        log = (self.directory / "log").open("a+", encoding="utf-8")
        self._log = cleanup.enter_context(log)
        self._process = subprocess.Popen(  # noqa: S603 - this program, no shell
            [*PROGRAM, f"--config={path}"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=self._log,
            cwd=PACKAGE,
            env=environment,
        )
        assert self._process.stdout is not None
        self._stdout = cleanup.enter_context(self._process.stdout)

    def _wait(self) -> None:
        """Wait until the daemon writes to its standard output, once every socket is listening."""
        ready, _, _ = select.select([self._stdout], [], [], START_S)
        if not ready:
            raise HostError("waiting for vgpud serve to listen", OSError(errno.ETIMEDOUT, ""))
        if not os.read(self._stdout.fileno(), 1):
            lines = self.log[-_LOG_LINES:]
            raise VgpudError("\n".join(["vgpud serve ended at once:", *lines]))


def _temporary_directory(parent: str | None) -> tempfile.TemporaryDirectory[str]:
    """Make a directory that is removed at the end; raises HostError."""
    try:
        return tempfile.TemporaryDirectory(prefix="vgpud-", dir=parent, ignore_cleanup_errors=True)
    except OSError as error:
        # Without a file name, the error is that no directory will do, and its text lists them.
        what = f"making {error.filename}" if error.filename else f"{error.strerror}"
        advice = "set TMPDIR to a directory that can be written to"
        raise HostError(what, error, advice) from error
