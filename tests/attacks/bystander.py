"""A well-behaved guest of another device, in a process of its own: how long is it kept waiting?

    python -m tests.attacks.bystander SOCKET

It prints "ready", and when its standard input ends, its waiting times as a line of JSON.
"""

from __future__ import annotations

import json
import select
import statistics
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.hostile.siege import command
from tests.support.front_end import FrontEnd
from vgpud.gpu.wire import commands as c
from vgpud.gpu.wire.command_codec import encode

PAUSE = 0.001
"""Seconds between an answer and the next command."""

PATIENCE = 120.0
"""Seconds to wait for an answer: an attack that stops the daemon for longer is a hang."""


@dataclass(frozen=True, slots=True)
class Waits:
    """Round trips of a command in seconds."""

    count: int
    median: float
    worst: float


class Bystander:
    """The process, from its first command to its last; a context manager."""

    def __init__(self, socket: Path) -> None:
        self._command = (sys.executable, "-m", "tests.attacks.bystander", str(socket))
        self.waits: Waits | None = None

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(
            self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert self._process.stdout is not None
        ready = self._process.stdout.readline()
        assert ready == "ready\n", "the bystander did not start"
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            output, _ = self._process.communicate("", PATIENCE)
        finally:
            self._process.kill()
            self._process.wait()
        if self._process.returncode == 0:
            self.waits = Waits(**json.loads(output))


def main(path: Path) -> None:
    """Send commands until standard input ends."""
    request = encode(command(c.GetDisplayInfo))
    waits = []
    with FrontEnd.connect(path).handshake() as fe:
        fe.command(request, response_size=408)
        print("ready", flush=True)
        while not select.select([sys.stdin], [], [], PAUSE)[0]:
            begin = time.perf_counter()
            fe.command(request, response_size=408, timeout=PATIENCE)
            waits.append(time.perf_counter() - begin)
    print(json.dumps(asdict(Waits(len(waits), statistics.median(waits), max(waits)))))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
