"""`vgpud` as its users run it: a process, its output, its signals and its exit status."""

from __future__ import annotations

import configparser
import json
import os
import shlex
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import IO, Any

import pytest

from tests.support.process import ROOT, VGPUD, Process
from tests.support.until import PATIENCE, until
from vgpud import __version__
from vgpud.cli import main as cli
from vgpud.cli import qemu_lines
from vgpud.client import Client
from vgpud.daemon.config import Config, default_toml, schema

Start = Callable[..., Process]


@pytest.fixture
def start() -> Iterator[Start]:
    """Starts `vgpud ARGUMENTS`; none of the processes outlives the test."""
    with ExitStack() as stack:
        yield lambda *arguments, **options: stack.enter_context(
            Process(*VGPUD, *arguments, **options)
        )


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """A configuration with two devices, all of it below a directory that does not exist yet."""
    path = tmp_path / "vgpud.toml"
    path.write_text(
        f'[daemon]\nruntime_dir = "{tmp_path}/run"\n'
        '[[device]]\nname = "one"\nwindow = "1MiB"\n[[device]]\nname = "two"\nwindow = "1MiB"\n'
    )
    return path


def run(*arguments: str | Path, stdout: int | IO[str] = subprocess.PIPE) -> tuple[int, str, str]:
    """The exit status, stdout and stderr of `vgpud ARGUMENTS`."""
    done = subprocess.run(
        [sys.executable, "-m", "vgpud", *arguments],
        cwd=ROOT,
        stdout=stdout,
        stderr=subprocess.PIPE,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    return done.returncode, done.stdout, done.stderr


def announced(process: Process) -> str:
    """What `serve` prints, once that is all: the last of its lines is the fourth with a disk."""
    process.until(lambda: process.output.count("-drive") == 4 and process.output[-1] == "\n")
    return process.output


def info(config: Path) -> Any:
    """What a running daemon says of itself."""
    path = Config.load(config).control_path
    assert path is not None
    with Client(path) as client:
        return client.call("daemon.info")


def test_serve_announces_what_it_serves(start: Start, config: Path, tmp_path: Path) -> None:
    process = start("serve", "--config", config)
    text = announced(process)
    assert text.startswith(
        f"vgpud {__version__} is listening; control socket: {tmp_path}/run/control"
    )
    for name in ("one", "two"):
        path = tmp_path / "run" / f"{name}.sock"
        assert qemu_lines.all_features(path) in text
        assert qemu_lines.display(path) in text
        with socket.socket(socket.AF_UNIX) as front_end:
            front_end.connect(str(path))
    status, output, errors = run("ctl", "--config", config, "daemon.info")
    assert (status, errors) == (0, "")
    found = json.loads(output)
    assert (found["version"], found["pid"]) == (__version__, process.pid)
    assert 0 <= found["uptime_s"] < PATIENCE
    assert [(device["name"], device["socket"]) for device in found["devices"]] == [
        ("one", f"{tmp_path}/run/one.sock"),
        ("two", f"{tmp_path}/run/two.sock"),
    ]


def test_daemon_info_says_who_is_connected(start: Start, config: Path, tmp_path: Path) -> None:
    announced(start("serve", "--config", config))

    def connected() -> list[bool]:
        return [device["connected"] for device in info(config)["devices"]]

    assert connected() == [False, False]
    with socket.socket(socket.AF_UNIX) as front_end:
        front_end.connect(str(tmp_path / "run" / "two.sock"))
        until(lambda: connected() == [False, True])
    until(lambda: connected() == [False, False])


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_cleanly_also_while_a_front_end_is_there(
    start: Start, config: Path, tmp_path: Path, number: signal.Signals
) -> None:
    process = start("serve", "--config", config)
    announced(process)
    with socket.socket(socket.AF_UNIX) as front_end:
        front_end.connect(str(tmp_path / "run" / "one.sock"))
        front_end.send(b"\1")  # The start of a message that never ends.
        process.send_signal(number)
        assert process.wait() == 0
    assert list((tmp_path / "run").iterdir()) == []
    assert "Traceback" not in process.log


def test_a_second_daemon_does_not_take_the_first_ones_sockets(start: Start, config: Path) -> None:
    process = start("serve", "--config", config)
    announced(process)
    status, output, errors = run("serve", "--config", config)
    assert (status, output) == (2, "")
    assert "in use by another process" in errors
    assert "Traceback" not in errors
    assert info(config)["pid"] == process.pid


def test_a_killed_daemons_sockets_are_replaced(start: Start, config: Path, tmp_path: Path) -> None:
    first = start("serve", "--config", config)
    announced(first)
    first.kill()
    assert (tmp_path / "run" / "one.sock").exists()
    second = start("serve", "--config", config)
    announced(second)
    assert info(config)["pid"] == second.pid


def test_a_file_in_a_sockets_place_is_left_alone(config: Path, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "one.sock").write_text("precious")
    status, _, errors = run("serve", "--config", config)
    assert status == 2
    assert "one.sock exists and is no socket" in errors
    assert "Traceback" not in errors
    assert (tmp_path / "run" / "one.sock").read_text() == "precious"


def test_a_runtime_directory_that_can_not_be(config: Path, tmp_path: Path) -> None:
    (tmp_path / "run").write_text("a file")
    status, output, errors = run("serve", "--config", config)
    assert (status, output) == (1, "")
    assert str(tmp_path / "run") in errors
    assert "runtime_dir" in errors
    assert "Traceback" not in errors


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives directories to others")
def test_a_directory_of_another_user_s_is_a_warning(tmp_path: Path) -> None:
    directory, config = tmp_path / "run", tmp_path / "a.toml"
    directory.mkdir()
    os.chown(directory, 65534, 65534)
    config.write_text(f'[daemon]\nruntime_dir = "{directory}"\n')
    with Process(*VGPUD, "serve", "--config", config) as daemon:
        daemon.until_printed("is listening")
        daemon.terminate()
        assert daemon.wait() == 0
    text = f"others may replace the daemon's sockets: {directory} belongs to uid 65534"
    assert daemon.log.count(text) == 1


def test_it_serves_on_when_nobody_reads_its_stdout(start: Start, config: Path) -> None:
    read, write = os.pipe()
    os.close(read)
    process = start("serve", "--config", config, stdout=write)
    os.close(write)
    process.until(lambda: "not announced" in process.log)
    assert info(config)["pid"] == process.pid
    process.terminate()
    assert process.wait() == 0


def test_a_bad_configuration_is_named_in_full(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "bad.toml"
    path.write_text('[[device]]\nname = "a"\nwindow = 5\noutputs = ["x"]\n')
    for verb in (["serve", "--config"], ["config", "check"]):
        assert cli.main([*verb, str(path)]) == 2
        output, errors = capsys.readouterr()
        assert output == ""
        first, second = errors.splitlines()
        assert first.startswith(f"vgpud: {path}: [[device]] 1: window = 5: ")
        assert second.startswith(f'vgpud: {path}: [[device]] 1: outputs.0 = "x": ')


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["nonsense"],
        ["serve", "more"],
        ["serve", "--log-level", "loud"],
        ["config"],
        ["config", "check"],
        ["ctl"],
        ["ctl", "daemon.info", "{"],
        ["ctl", "daemon.info", "3"],
    ],
)
def test_bad_usage(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(arguments)
    assert caught.value.code == 2
    assert capsys.readouterr().err.startswith("usage: vgpud")


def test_config_check_warns_of_limits_that_do_not_go_together(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "a.toml"
    file.write_text('[[device]]\nname = "gpu0"\noutputs = ["8192x8192"]\n')
    assert cli.main(["config", "check", str(file)]) == 0
    output = capsys.readouterr()
    assert output.out == f"{file}: no fault found\n"
    [warning] = output.err.splitlines()
    assert warning.startswith(
        f'{file}: warning: [[device]] 1: memory_limit = "1GiB": is no more than'
    )


def test_config_check_names_users_that_are_not_there(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "vgpud.toml"
    path.write_text('[[device]]\nname = "a"\nallow_groups = ["no such group", "0"]\n')
    assert cli.main(["config", "check", str(path)]) == 0
    output = capsys.readouterr()
    assert output.out == f"{path}: no fault found\n"
    assert output.err == (
        f"{path}: warning: [[device]] a: allow_groups: no such group: unknown to this system,"
        " which ignores it then\n"
    )


def test_config_check_says_that_a_file_is_good(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["config", "check", str(ROOT / "config" / "vgpud.toml")]) == 0
    assert capsys.readouterr().out.endswith("vgpud.toml: no fault found\n")


def test_config_default_and_schema(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["config", "default"]) == 0
    assert capsys.readouterr().out == default_toml()
    assert cli.main(["config", "schema"]) == 0
    assert json.loads(capsys.readouterr().out) == schema()


def test_output_that_can_not_be_written_is_a_failure() -> None:
    with Path("/dev/full").open("w") as full:
        status, _, errors = run("config", "default", stdout=full)
    assert (status, errors) == (1, "vgpud: standard output: No space left on device\n")


def test_an_interrupt_is_a_failure_without_a_traceback(
    capsys: pytest.CaptureFixture[str],
) -> None:
    def interrupted() -> None:
        raise KeyboardInterrupt

    assert cli.exit_status("vgpud", interrupted) == 1
    assert capsys.readouterr() == ("", "vgpud: interrupted\n")


def test_ctl_without_a_daemon(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["ctl", "--config", str(config), "daemon.info"]) == 1
    assert "is the daemon running" in capsys.readouterr().err
    config.write_text('[daemon]\ncontrol_socket = ""')
    assert cli.main(["ctl", "--config", str(config), "daemon.info"]) == 2
    assert "no control socket" in capsys.readouterr().err


def test_ctl_says_what_the_daemon_refused(
    start: Start, config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    announced(start("serve", "--config", config))
    control = tmp_path / "run" / "control.sock"
    ctl = ["ctl", "--socket", str(control)]
    assert cli.main([*ctl, "daemon.sing"]) == 1
    assert capsys.readouterr().err.startswith('vgpud: no method "daemon.sing"; ')
    assert cli.main([*ctl, "daemon.info", '{"loud": true}']) == 1
    assert capsys.readouterr() == (
        "",
        "vgpud: daemon.info: loud is unknown: it takes no parameters\n",
    )


@pytest.mark.parametrize(
    ("arguments", "left_alone"),
    [
        (["--version"], ["asyncio", "numpy", "pydantic", "vgpud.daemon.config"]),
        (["config", "default"], ["asyncio", "numpy", "vgpud.daemon.daemon", "vgpud.control.rpc"]),
        (["ctl", "status"], ["asyncio", "numpy", "vgpud.daemon.daemon", "vgpud.microvm"]),
        (["completion", "tcsh"], ["asyncio", "numpy", "pydantic", "shtab"]),
        (
            ["serve"],
            ["prometheus_client", "vgpud.cli.bench", "vgpud.cli.ctl.verbs", "vgpud.microvm"],
        ),
    ],
)
def test_a_verb_loads_what_it_needs_and_no_more(
    config: Path, tmp_path: Path, arguments: list[str], left_alone: list[str]
) -> None:
    (tmp_path / "run").write_text("a file, so that nothing listens and nobody answers")
    if arguments[0] in ("serve", "ctl"):
        arguments = [*arguments, "--config", str(config)]
    program = (
        "import sys\nfrom vgpud.cli import main as cli\n"
        "try:\n    cli.main(sys.argv[1:])\nexcept SystemExit:\n    pass\n"
        "print('loaded', *sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=True,
    )
    loaded = done.stdout.rpartition("loaded")[2].split()
    assert "vgpud.cli.main" in loaded
    assert not set(left_alone) & set(loaded)


def test_a_parser_for_one_verb_takes_it_as_the_whole_one_does() -> None:
    whole = cli.parser()
    for words in (["serve", "--config", "a"], ["ctl", "watch"], ["bench", "slots"], ["doctor"]):
        [verb, *_] = words
        assert vars(cli.parser(verb).parse_args(words)).keys() == (
            vars(whole.parse_args(words)).keys()
        )


def test_the_service_runs_a_command_that_exists() -> None:
    unit = configparser.ConfigParser(strict=False, interpolation=None)  # keys may be repeated
    unit.read(ROOT / "systemd" / "vgpud.service")
    program, *arguments = shlex.split(unit["Service"]["ExecStart"])
    assert Path(program).name == "vgpud"
    args = cli.parser().parse_args(arguments)
    assert args.config == Path("/etc/vgpud.toml")
