"""`vhost-user-vgpu` as a process, for one micro-VM: started as a VMM or libvirt starts one, with a
connected socket to inherit."""

from __future__ import annotations

import socket
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from vgpud.errors import HostError
from vgpud.microvm.boot import WINDOW_GPA
from vgpud.microvm.service import END_S, PACKAGE
from vgpud.microvm.slots import NUMBERS

PROGRAM: Final = (sys.executable, "-m", "vgpud.cli.backend_program")


class BackEnd:
    """A running back-end; a context manager. `connection` is our end of its socket.

    With `with_agent` it is given a second socket, for a slot agent of ours at its end `agent`; the
    program has to know about that. Raises `HostError` if it can't be started.
    """

    def __init__(
        self, config: str, *, program: Sequence[str] = PROGRAM, with_agent: bool = False
    ) -> None:
        with ExitStack() as cleanup:
            try:
                self._start(config, program, with_agent, cleanup)
            except OSError as error:
                raise HostError(f"starting {' '.join(program)}", error) from error
            self._cleanup = cleanup.pop_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        with self._cleanup:
            self.end()

    def _start(
        self, config: str, program: Sequence[str], with_agent: bool, cleanup: ExitStack
    ) -> None:
        directory = cleanup.enter_context(tempfile.TemporaryDirectory(prefix="vgpud-microvm-"))
        path = Path(directory, "vgpud.toml")
        path.write_text(config, encoding="utf-8")
        # Appending: it has the same file position as we, who read it meanwhile.
        log = Path(directory, "log").open("a+", encoding="utf-8")  # noqa: SIM115 - closed with us
        self._log = cleanup.enter_context(log)
        with ExitStack() as inherited:
            self.connection, theirs = socket.socketpair()
            cleanup.callback(self.connection.close)
            given = [("--fd", inherited.enter_context(theirs))]
            self.agent: socket.socket | None = None
            if with_agent:
                # With an end that shows, and message boundaries.
                self.agent, theirs = socket.socketpair(type=socket.SOCK_SEQPACKET)
                cleanup.callback(self.agent.close)
                given.append(("--agent-fd", inherited.enter_context(theirs)))
            options = [f"{option}={end.fileno()}" for option, end in given]
            if with_agent:
                options.append(f"--agent-window={WINDOW_GPA:#x}")
                options.append(f"--agent-slots={NUMBERS.start}:{len(NUMBERS)}")
            self._process = subprocess.Popen(
                [*program, *options, f"--config={path}"],
                pass_fds=[end.fileno() for _, end in given],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=self._log,
                cwd=PACKAGE,
            )

    @property
    def pid(self) -> int:
        """The process."""
        return self._process.pid

    @property
    def log(self) -> list[str]:
        """The lines that it has logged so far."""
        self._log.seek(0)
        return self._log.read().splitlines()

    def end(self) -> int:
        """Hangs up, which ends it; its exit status, negative for the signal that it took."""
        self.connection.close()
        if self.agent is not None:
            self.agent.close()
        try:
            return self._process.wait(END_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            return self._process.wait()
