"""`vhost-user-vgpu` as a process, for one micro-VM: started as a VMM or libvirt starts one, with a
connected socket to inherit."""

from __future__ import annotations

import socket
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.support.process import BACK_END, Process
from vgpud.microvm.boot import WINDOW_GPA
from vgpud.microvm.slots import NUMBERS


class BackEndProcess(Process):
    """A running back-end; a context manager. `connection` is our end of its socket.

    With `with_agent` it is given a second socket, for a slot agent of ours at its end `agent`; the
    program has to know about that.
    """

    def __init__(
        self, config: str, *, program: Sequence[str] = BACK_END, with_agent: bool = False
    ) -> None:
        with ExitStack() as cleanup:
            directory = tempfile.TemporaryDirectory(prefix="vgpud-microvm-")
            path = Path(cleanup.enter_context(directory), "vgpud.toml")
            path.write_text(config, encoding="utf-8")
            self._inherited = cleanup.enter_context(ExitStack())
            self.connection, theirs = socket.socketpair()
            cleanup.callback(self.connection.close)
            given = [("--fd", self._inherited.enter_context(theirs))]
            self.agent: socket.socket | None = None
            if with_agent:
                # With an end that shows, and message boundaries.
                self.agent, theirs = socket.socketpair(type=socket.SOCK_SEQPACKET)
                cleanup.callback(self.agent.close)
                given.append(("--agent-fd", self._inherited.enter_context(theirs)))
            options = [f"{option}={end.fileno()}" for option, end in given]
            if with_agent:
                options.append(f"--agent-window={WINDOW_GPA:#x}")
                options.append(f"--agent-slots={NUMBERS.start}:{len(NUMBERS)}")
            fds = [end.fileno() for _, end in given]
            super().__init__(*program, *options, f"--config={path}", fds=fds)
            self._cleanup = cleanup.pop_all()

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            stack.push(self._cleanup)
            super().__enter__()
            self._inherited.close()
            stack.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        with self._cleanup:
            super().__exit__(kind, error, traceback)

    def end(self) -> int:
        """Hang up, which ends it; return its exit status, negative for the signal that it took."""
        self.connection.close()
        if self.agent is not None:
            self.agent.close()
        return self.wait()
