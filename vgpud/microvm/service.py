"""The daemon as a service: a process of its own that front-ends connect to, and leave again.

Owns the process, its configuration and runtime directory, and what it logs.
"""

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
"""Where `-m` is to look first: in a checkout that is not built, our own directory has no native
modules, and another vgpud may be in it."""

END_S: Final = 20.0
"""Seconds that it may take to end, on a host that is itself emulated."""
START_S: Final = 30.0
"""Seconds that it may take to listen, on a host that is itself emulated."""

_LOG_LINES: Final = 10


def configuration(
    guest_pat: GuestPat, layout: Layout = Layout.WINDOW, slots: SlotOwner = SlotOwner.FRONTEND
) -> str:
    """A device for a micro-VM: small, and told what is known of its VM."""
    return (
        f'[[device]]\nname = "{DEVICE}"\nwindow = "1MiB"\nmemory_limit = "16MiB"\n'
        f'guest_pat = "{guest_pat}"\nslots = "{slots}"\n[[slot_policy]]\nlayout = "{layout}"\n'
    )


class Service:
    """A running `vgpud serve`; a context manager. `control` is its control socket's path.

    `config` has the devices, and no `[daemon]`. `parent` is where its `directory` is made, by
    default as tempfile has it; `environment` is ours unless given. It listens when this returns,
    `started_s` seconds after its start. Raises `HostError` if it can't be started or takes too
    long, and `VgpudError` with its log if it ends at once.
    """

    def __init__(
        self,
        config: str,
        *,
        parent: str | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        with ExitStack() as cleanup:
            directory = tempfile.TemporaryDirectory(prefix="vgpud-", dir=parent)
            self.directory = Path(cleanup.enter_context(directory))
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
        """The process."""
        return self._process.pid

    @property
    def log(self) -> list[str]:
        """The lines that it has logged so far."""
        self._log.seek(0)
        return self._log.read().splitlines()

    @property
    def control(self) -> Path:
        """The control socket."""
        return self.directory / "control.sock"

    def socket_of(self, device: str) -> Path:
        """A device's vhost-user socket."""
        return self.directory / f"{device}.sock"

    def connect(self, device: str = DEVICE) -> socket.socket:
        """A front-end's connection to a device; raises `HostError`."""
        connection = socket.socket(socket.AF_UNIX)
        try:
            connection.connect(str(self.socket_of(device)))
        except OSError as error:
            connection.close()
            raise HostError(f"connecting to {device}", error) from error
        return connection

    def end(self) -> int:
        """Ends it; its exit status, negative for the signal that it took."""
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
        # Appending: it has the same file position as we, who read it meanwhile.
        log = (self.directory / "log").open("a+", encoding="utf-8")
        self._log = cleanup.enter_context(log)
        self._process = subprocess.Popen(  # noqa: S603 - ourselves, no shell
            [*PROGRAM, f"--config={path}"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=self._log,
            cwd=PACKAGE,
            env=environment,
        )
        assert self._process.stdout is not None
        self._said = cleanup.enter_context(self._process.stdout)

    def _wait(self) -> None:
        """It says so on its standard output, once every socket is listening."""
        ready, _, _ = select.select([self._said], [], [], START_S)
        if not ready:
            raise HostError("waiting for vgpud serve to listen", OSError(errno.ETIMEDOUT, ""))
        if not os.read(self._said.fileno(), 1):
            lines = self.log[-_LOG_LINES:]
            raise VgpudError("\n".join(["vgpud serve ended at once:", *lines]))
