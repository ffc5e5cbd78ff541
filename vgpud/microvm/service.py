"""The daemon as a service: a process of its own that micro-VMs connect to, and leave again.

Owns the process, its configuration and runtime directory, and what it logs.
"""

from __future__ import annotations

import socket
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from vgpud.client import Client
from vgpud.errors import HostError, VgpudError
from vgpud.policy.slot_policy import GuestPat, Layout, SlotOwner

PROGRAM: Final = (sys.executable, "-m", "vgpud", "serve")
DEVICE: Final = "microvm"
PACKAGE: Final = Path(__file__).parents[2]
"""Where `-m` is to look first: in a checkout that is not built, our own directory has no native
modules, and another vgpud may be in it."""

END_S: Final = 20.0
"""Seconds that it may take to end, on a host that is itself emulated."""
START_S: Final = 30.0
"""Seconds that it may take to listen, on a host that is itself emulated."""

_LOOK_S: Final = 0.02


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

    `config` has the devices, among them `DEVICE`, and no `[daemon]`. Raises `HostError` if it can't
    be started, and `VgpudError` with its log if it does not listen.
    """

    def __init__(self, config: str) -> None:
        with ExitStack() as cleanup:
            try:
                self._start(config, cleanup)
            except OSError as error:
                raise HostError(f"starting {' '.join(PROGRAM)}", error) from error
            cleanup.callback(self.end)
            self._wait()
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

    def connect(self) -> socket.socket:
        """A front-end's connection to `DEVICE`."""
        connection = socket.socket(socket.AF_UNIX)
        try:
            connection.connect(str(self.control.with_name(f"{DEVICE}.sock")))
        except OSError as error:
            connection.close()
            raise HostError(f"connecting to {DEVICE}", error) from error
        return connection

    def end(self) -> int:
        """Ends it; its exit status, negative for the signal that it took."""
        self._process.terminate()
        try:
            return self._process.wait(END_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            return self._process.wait()

    def _start(self, config: str, cleanup: ExitStack) -> None:
        directory = Path(
            cleanup.enter_context(tempfile.TemporaryDirectory(prefix="vgpud-microvm-"))
        )
        self.control = directory / "control.sock"
        path = directory / "vgpud.toml"
        path.write_text(f'[daemon]\nruntime_dir = "{directory}"\n{config}', encoding="utf-8")
        # Appending: it has the same file position as we, who read it meanwhile.
        log = (directory / "log").open("a+", encoding="utf-8")
        self._log = cleanup.enter_context(log)
        self._process = subprocess.Popen(  # noqa: S603 - ourselves, no shell
            [*PROGRAM, f"--config={path}"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=self._log,
            cwd=PACKAGE,
        )

    def _wait(self) -> None:
        until = time.monotonic() + START_S
        while True:
            try:
                # It answers once all its sockets are there.
                with Client(self.control) as client:
                    client.call("daemon.info")
                return
            except HostError as error:
                if self._process.poll() is not None or time.monotonic() > until:
                    said = "\n".join(self.log[-10:])
                    raise VgpudError(f"{error}\nthe daemon's log:\n{said}") from error
                time.sleep(_LOOK_S)
