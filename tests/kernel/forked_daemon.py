"""A daemon that is a fork of this process, in the place of one that has to import everything anew.

That takes an emulated processor half a minute. Runs in the built host.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import traceback
from collections.abc import Sequence
from types import SimpleNamespace
from typing import IO, Any, Final

from vgpud.cli import serve  # noqa: F401 - so that it has been imported
from vgpud.cli.main import main
from vgpud.daemon import daemon  # noqa: F401 - likewise
from vgpud.microvm.service import PROGRAM


class ForkedDaemon:
    """What `vgpud.microvm.service` uses of subprocess.Popen, for a command that begins with its
    PROGRAM."""

    def __init__(self, command: Sequence[str], *, stderr: IO[str], cwd: os.PathLike[str], **_: Any):
        reader, writer = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            os.dup2(writer, 1)
            os.dup2(stderr.fileno(), 2)
            os.chdir(cwd)
            status = 1
            try:
                status = main(["serve", *command[len(PROGRAM) :]])
            except BaseException:
                traceback.print_exc()
            sys.stderr.flush()
            os._exit(status)
        os.close(writer)
        self.stdout = os.fdopen(reader, "rb")
        self.returncode: int | None = None

    def terminate(self) -> None:
        if self.returncode is None:
            os.kill(self.pid, signal.SIGTERM)

    def wait(self, timeout: float | None = None) -> int:
        """Wait until it has ended; the boot's own limit is the timeout."""
        if self.returncode is None:
            _, status = os.waitpid(self.pid, 0)
            self.returncode = os.waitstatus_to_exitcode(status)
        return self.returncode


FORKING: Final = SimpleNamespace(
    **{name: getattr(subprocess, name) for name in ("DEVNULL", "PIPE", "TimeoutExpired")},
    Popen=ForkedDaemon,
)
"""For that module, in the place of subprocess."""
