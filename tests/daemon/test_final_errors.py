"""Errors that end a program are in the log where standard error is lost, and only there."""

from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.process import ROOT
from tests.support.until import PATIENCE

PROGRAM = """
import sys
from pathlib import Path
from vgpud.daemon import logs
from vgpud.cli import backend_program, main
logs.JOURNAL_SOCKET, logs.SYSLOG_SOCKET = Path("/nowhere"), Path(sys.argv[1])
program = main if sys.argv[2] == "serve" else backend_program
sys.exit(program.main(sys.argv[2:]))
"""


@pytest.fixture
def syslog(tmp_path: Path) -> Iterator[socket.socket]:
    """What listens where syslog does."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.setblocking(False)
        sock.bind(str(tmp_path / "syslog"))
        yield sock


def run(syslog: socket.socket, *arguments: str | Path, lost: bool = True) -> tuple[int, list[str]]:
    """The exit status of a program, and the messages in the log that are no information."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, syslog.getsockname(), *arguments],
        cwd=ROOT,
        check=False,
        timeout=PATIENCE,
        stderr=subprocess.DEVNULL if lost else subprocess.PIPE,
    )
    found: list[str] = []
    while True:
        try:
            line = syslog.recv(1 << 16).decode()
        except BlockingIOError:
            return done.returncode, found
        if line.startswith("<27>"):
            found.append(line.partition("]: ")[2])


def test_a_faulty_file(syslog: socket.socket, tmp_path: Path) -> None:
    file = tmp_path / "a.toml"
    file.write_text("x = 1\ny = 2\n")
    faults = [f"failed: {file}: {key} = {n}: no table of this file" for key, n in ("x1", "y2")]
    for arguments in (("--fd", "0", "--config"), ("serve", "--config")):
        status, found = run(syslog, *arguments, file)
        assert status == 2
        assert [line.partition("; ")[0] for line in found] == faults
        assert run(syslog, *arguments, file, lost=False) == (2, [])


def test_a_socket_that_is_taken(syslog: socket.socket, tmp_path: Path) -> None:
    path = tmp_path / "s"
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(path))
        other.listen()
        status, [line] = run(syslog, "--socket-path", path)
    assert status == 2
    assert line == f"failed: {path} is in use by another process; stop it or choose another path"
