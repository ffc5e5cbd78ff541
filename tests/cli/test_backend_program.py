"""`vhost-user-vgpu` as QEMU's back-end program conventions have it, run as a process."""

from __future__ import annotations

import json
import os
import signal
import socket
import struct
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.support.process import BACK_END, ROOT, Process
from tests.support.until import PATIENCE, until
from vgpud.cli import backend_program

Start = Callable[..., Process]
Run = Callable[..., tuple[int | str | None, str, str]]


@pytest.fixture
def start() -> Iterator[Start]:
    """Starts the program with some descriptors inherited; none outlives the test."""
    with ExitStack() as stack:
        yield lambda *arguments, **options: stack.enter_context(
            Process(*BACK_END, *arguments, **options)
        )


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs the program, in this process as it serves nothing: status, stdout, stderr."""

    def call(*arguments: str | Path) -> tuple[int | str | None, str, str]:
        try:
            status: int | str | None = backend_program.main([str(word) for word in arguments])
        except SystemExit as end:
            status = end.code
        return status, *capsys.readouterr()

    return call


def features(front_end: socket.socket) -> int:
    """The answer to VHOST_USER_GET_FEATURES (1): proof that a vhost-user back-end is there."""
    front_end.settimeout(PATIENCE)
    front_end.sendall(struct.pack("=III", 1, 1, 0))
    reply = front_end.recv(20, socket.MSG_WAITALL)
    request, flags, size, value = struct.unpack("=IIIQ", reply)
    assert (request, flags, size) == (1, 5, 8)
    assert isinstance(value, int)
    return value


def connect(path: Path) -> socket.socket:
    """A connection to a socket as soon as someone listens there."""
    sock = socket.socket(socket.AF_UNIX)
    until(lambda: sock.connect_ex(str(path)) == 0)
    return sock


@pytest.mark.parametrize("more", [[], ["--virgl"], ["--nonsense", "x", "--fd"]])
def test_capabilities_and_nothing_else(run: Run, more: list[str]) -> None:
    status, output, errors = run("--print-capabilities", *more)
    assert (status, errors) == (0, "")
    assert json.loads(output) == {"type": "gpu", "features": []}


def test_capabilities_of_the_process_itself(start: Start) -> None:
    process = start("--print-capabilities")
    assert (process.wait(), process.log) == (0, "")
    assert json.loads(process.output) == {"type": "gpu", "features": []}


def test_capabilities_take_nothing_that_takes_long_to_load() -> None:
    program = "import sys, vgpud.cli.backend_program\nprint(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
    )
    loaded = set(done.stdout.split())
    assert "vgpud.cli.main" in loaded
    assert not {"asyncio", "numpy", "pydantic", "vgpud.daemon.daemon"} & loaded


@pytest.mark.parametrize(
    ("option", "arguments"), [("--virgl", []), ("--render-node", ["/dev/dri/renderD128"])]
)
def test_what_is_not_available_is_refused(
    run: Run, option: str, arguments: list[str], tmp_path: Path
) -> None:
    path = tmp_path / "s"
    status, output, errors = run("--socket-path", path, option, *arguments)
    assert (status, output) == (1, "")
    assert errors.startswith(f"vhost-user-vgpu: {option} is not available in this version")
    assert not path.exists()


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["--fd"],
        ["--fd", "x"],
        ["--fd", "3", "--socket-path", "/tmp/s"],
        ["--socket", "/tmp/s"],
        ["--socket-path", "/tmp/s", "more"],
    ],
)
def test_bad_usage(run: Run, arguments: list[str]) -> None:
    status, output, errors = run(*arguments)
    assert (status, output) == (2, "")
    assert errors.startswith("usage: vhost-user-vgpu")


@pytest.mark.parametrize("number", ["-1", "999", "99999999999999999999"])
def test_a_descriptor_that_is_not_there(run: Run, number: str) -> None:
    status, _, errors = run(f"--fd={number}")
    assert status == 2
    assert errors.startswith(f"vhost-user-vgpu: --fd {number}: not a socket")


def test_a_descriptor_that_is_no_socket(run: Run, tmp_path: Path) -> None:
    with (tmp_path / "file").open("w") as file:
        status, _, errors = run(f"--fd={file.fileno()}")
    assert (status, "not a socket" in errors) == (2, True)


@pytest.mark.parametrize(
    ("family", "kind"),
    [
        (socket.AF_UNIX, socket.SOCK_DGRAM),
        (socket.AF_UNIX, socket.SOCK_SEQPACKET),
        (socket.AF_INET, socket.SOCK_STREAM),
    ],
)
def test_a_socket_of_another_kind(
    run: Run, family: socket.AddressFamily, kind: socket.SocketKind
) -> None:
    status, _, errors = run(f"--fd={socket.socket(family, kind).detach()}")
    assert (status, "not a unix stream socket" in errors) == (2, True)


def test_a_socket_that_listens(run: Run, tmp_path: Path) -> None:
    sock = socket.socket(socket.AF_UNIX)
    sock.bind(str(tmp_path / "s"))
    sock.listen()
    status, _, errors = run(f"--fd={sock.detach()}")
    assert (status, "not connected" in errors) == (2, True)


def test_an_inherited_socket_is_served_until_its_end(start: Start) -> None:
    ours, theirs = socket.socketpair()
    with ours:
        process = start(f"--fd={theirs.fileno()}", fds=(theirs.fileno(),))
        theirs.close()
        assert features(ours) & 1 << 30
    assert process.wait() == 0


def test_a_socket_path_is_listened_at_and_front_ends_may_come_back(
    start: Start, tmp_path: Path
) -> None:
    path = tmp_path / "s"
    process = start("--socket-path", path)
    for _ in range(2):
        with connect(path) as front_end:
            assert features(front_end) & 1 << 30
    assert process.alive
    assert [entry.name for entry in tmp_path.iterdir()] == ["s"]


def test_a_relative_socket_path(start: Start, tmp_path: Path) -> None:
    start("--socket-path", os.path.relpath(tmp_path / "s", ROOT))
    connect(tmp_path / "s").close()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_at_once_and_cleanly(
    start: Start, tmp_path: Path, number: signal.Signals
) -> None:
    path = tmp_path / "s"
    process = start("--socket-path", path)
    with connect(path) as front_end:
        features(front_end)
        process.send_signal(number)
        assert process.wait(5) == 0
    assert "Traceback" not in process.log
    assert not path.exists()


def test_a_signal_ends_it_on_an_inherited_socket_too(start: Start) -> None:
    ours, theirs = socket.socketpair()
    with ours:
        process = start(f"--fd={theirs.fileno()}", fds=(theirs.fileno(),))
        theirs.close()
        features(ours)
        process.terminate()
        assert process.wait(5) == 0
        assert ours.recv(1) == b""


def test_the_first_device_of_a_file_is_served(start: Start, tmp_path: Path) -> None:
    config = tmp_path / "c.toml"
    config.write_text('[[device]]\nname = "a"\nsocket = "elsewhere"\n[[device]]\nname = "b"')
    start("--config", config, "--socket-path", tmp_path / "s")
    connect(tmp_path / "s").close()


def test_a_bad_file(run: Run, tmp_path: Path) -> None:
    config = tmp_path / "c.toml"
    config.write_text("[[device]]")
    status, _, errors = run("--config", config, "--socket-path", tmp_path / "t")
    assert status == 2
    assert errors.startswith(f"vhost-user-vgpu: {config}: [[device]] 1: name is missing: ")


def test_the_file_for_vmms_names_the_program() -> None:
    entry = json.loads((ROOT / "config" / "40-vgpud.json").read_text())
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    assert entry["type"] == "gpu"
    assert scripts[Path(entry["binary"]).name] == "vgpud.cli.backend_program:main"
    assert entry["description"]


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (["--agent-fd=9"], "go together"),
        (["--agent-window=0x1000", "--agent-slots=1:2"], "go together"),
        (["--agent-window=0x1001"], "no guest-physical address"),
        (["--agent-window=x"], "--agent-window"),
        (["--agent-slots=3"], "--agent-slots"),
        (["--agent-slots=3:0"], "no range of slots"),
        (["--agent-fd=0", "--agent-window=0", "--agent-slots=1:2"], "--agent-fd 0: not"),
    ],
)
def test_agent_options_that_make_no_sense(
    run: Run, options: list[str], complaint: str, tmp_path: Path
) -> None:
    status, output, errors = run("--socket-path", tmp_path / "s", *options)
    assert (status, output) == (2, "")
    assert complaint in errors


def test_slots_of_an_agent_take_an_agent(run: Run, tmp_path: Path) -> None:
    config = tmp_path / "c.toml"
    config.write_text('[[device]]\nname = "a"\nslots = "agent"\n')
    status, output, errors = run("--config", config, "--socket-path", tmp_path / "s")
    assert (status, output) == (2, "")
    assert 'slots = "agent" takes --agent-fd' in errors
