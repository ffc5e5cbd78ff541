"""`vgpud serve` as a process of its own, for those benches that measure the whole.

Owns the process, its directory and its configuration. Must not import the daemon.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from vgpud.errors import HostError, VgpudError
from vgpud.policy.slot_policy import Layout

PACKAGE: Final = Path(__file__).parents[2]
"""Where `-m` is to look first: the vgpud that is measured is this one."""
START_S: Final = 30.0
END_S: Final = 10.0
_LOG_LINES: Final = 5
_ENVIRONMENT: Final = {
    name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"
}
"""With bytecode kept, as that of an installed package is."""


class ServeProcess:
    """A daemon with a device for each of `layouts`; a context manager.

    It listens when the context is entered, `started_s` seconds after its start. Leaving ends it.
    `directory` is right below /tmp: socket names are short, and the guest rig's chroot shares /tmp.
    Raises HostError if it can't be started, VgpudError if it ends at once.
    """

    started_s: float

    def __init__(
        self, layouts: Sequence[Layout] = (Layout.WINDOW,), *, guest_pat: str = "honored"
    ) -> None:
        self._layouts = layouts
        self._guest_pat = guest_pat
        self._cleanup = ExitStack()

    def __enter__(self) -> Self:
        with ExitStack() as cleanup:
            name = cleanup.enter_context(
                tempfile.TemporaryDirectory(prefix="vgpud-bench-", dir="/tmp")
            )
            self.directory = Path(name)
            config = self.directory / "vgpud.toml"
            config.write_text(self._toml(), encoding="utf-8")
            self._log = self.directory / "log"
            log = cleanup.enter_context(self._log.open("wb"))
            start = time.perf_counter()
            try:
                self._process = subprocess.Popen(  # noqa: S603 - ourselves, no shell
                    [sys.executable, "-m", "vgpud", "serve", f"--config={config}"],
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.PIPE,
                    stderr=log,
                    cwd=PACKAGE,
                    env=_ENVIRONMENT,
                )
            except OSError as error:
                raise HostError("starting vgpud serve", error) from error
            cleanup.callback(self._end)
            self._wait_listening()
            self.started_s = time.perf_counter() - start
            self._cleanup = cleanup.pop_all()
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

    def socket(self, layout: Layout = Layout.WINDOW) -> Path:
        """The vhost-user socket of the device of that layout."""
        return self.directory / f"{layout}.sock"

    def cpu_s(self) -> float:
        """Seconds of processor time that it has used in all."""
        # As clock_getcpuclockid(3) makes it: the kernel's CPUCLOCK_SCHED of the whole process.
        return time.clock_gettime(~self.pid << 3 | 2)

    def _toml(self) -> str:
        text = f'[daemon]\nruntime_dir = "{self.directory}"\n'
        for layout in self._layouts:
            text += (
                f'\n[[device]]\nname = "{layout}"\nguest_pat = "{self._guest_pat}"\n'
                f'\n[[slot_policy]]\nmatch = {{ device = "{layout}" }}\nlayout = "{layout}"\n'
            )
        return text

    def _wait_listening(self) -> None:
        """It says so on its standard output, once every socket is listening."""
        assert self._process.stdout is not None
        ready, _, _ = select.select([self._process.stdout], [], [], START_S)
        if not ready:
            raise HostError("waiting for vgpud serve to listen", OSError(errno.ETIMEDOUT, ""))
        if not os.read(self._process.stdout.fileno(), 1):
            lines = self._log.read_text(encoding="utf-8", errors="replace").splitlines()
            raise VgpudError("\n".join(["vgpud serve ended at once:", *lines[-_LOG_LINES:]]))

    def _end(self) -> None:
        self._process.send_signal(signal.SIGTERM)
        try:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(END_S)
        finally:
            self._process.kill()
            self._process.wait()
            assert self._process.stdout is not None
            self._process.stdout.close()
