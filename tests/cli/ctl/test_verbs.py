"""`vgpud ctl` as its users run it, with a daemon that has canned answers."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import re
import signal
import socket
import struct
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.cli.ctl import answers
from tests.cli.ctl.canned_daemon import CannedDaemon, File, paged, usual
from tests.support.process import ROOT, VGPUD, Process
from tests.support.until import PATIENCE
from vgpud.cli import main as cli
from vgpud.client.unanswered import LONGER
from vgpud.control import models
from vgpud.control.methods import METHODS
from vgpud.control.rpc import RpcError
from vgpud.memory import memfd

PNG = b"\x89PNG not a picture" * 100
METRICS = """# TYPE vgpud_uptime_seconds gauge
vgpud_uptime_seconds {uptime}
# TYPE vgpud_device_connected gauge
vgpud_device_connected{{device="gpu0"}} 1
# TYPE vgpud_fences counter
vgpud_fences_total{{device="gpu0"}} {fences}
# EOF
"""

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[CannedDaemon]:
    """A daemon with one device."""
    with CannedDaemon(tmp_path / "control.sock", usual()) as told:
        yield told


@pytest.fixture
def ctl(daemon: CannedDaemon, capfd: pytest.CaptureFixture[str]) -> Run:
    """Runs `vgpud ctl`: its exit status, stdout and stderr."""

    def run(*arguments: str | Path) -> tuple[int, str, str]:
        status = cli.main(["ctl", "--socket", str(daemon.path), *map(str, arguments)])
        output = capfd.readouterr()
        return status, output.out, output.err

    return run


@pytest.fixture
def pictured(daemon: CannedDaemon) -> Iterator[CannedDaemon]:
    """The daemon, with a screenshot to give: sealed, and read to its end by others."""
    fd = os.memfd_create("picture", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.write(fd, PNG)
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SHRINK)
    shot = models.Screenshot(
        device="gpu0", scanout=0, width=640, height=480, format="png", size=len(PNG)
    )
    daemon.answers["device.screenshot"] = File(shot.model_dump(mode="json"), fd)
    yield daemon
    os.close(fd)


# -- Text and JSON ---------------------------------------------------------------------------------


def test_status(ctl: Run) -> None:
    status, output, errors = ctl("status")
    assert (status, errors) == (0, "")
    assert output.startswith("vgpud 0.1.0, pid 4711, up 3 h 12 min")
    assert re.search(r"^gpu0 +pid 812 ", output, re.MULTILINE)
    status, output, _ = ctl("status", "--json")
    found = json.loads(output)
    assert models.DaemonInfo.model_validate(found["daemon"]) == answers.info()
    assert found["devices"][0]["memory_used"] == 12 << 20


@pytest.mark.parametrize(
    ("verb", "item", "word"),
    [
        ("devices", answers.device(), "pid 812"),
        ("blobs", answers.blob(), "host3d"),
        ("slots", answers.slot(), "256 MiB"),
    ],
)
def test_listings(ctl: Run, verb: str, item: models.Model, word: str) -> None:
    status, output, errors = ctl(verb)
    assert (status, errors) == (0, "")
    assert len(output.splitlines()) == 2
    assert word in output.splitlines()[1]
    status, output, _ = ctl(verb, "--json")
    assert json.loads(output) == [item.model_dump(mode="json")]


def test_listings_are_fetched_to_the_end(daemon: CannedDaemon, ctl: Run) -> None:
    daemon.answers["blob.list"] = paged([answers.blob(number) for number in range(1, 8)], 3)
    _, output, _ = ctl("blobs", "--json")
    assert [blob["blob"] for blob in json.loads(output)] == [1, 2, 3, 4, 5, 6, 7]
    assert [params.get("offset", 0) for _, params in daemon.calls] == [0, 3, 6]


def test_one_device(daemon: CannedDaemon, ctl: Run) -> None:
    _, output, _ = ctl("devices", "gpu0")
    assert "window       256 MiB, layout window\n" in output
    _, output, _ = ctl("devices", "gpu0", "--json")
    assert json.loads(output)["name"] == "gpu0"
    ctl("slots", "gpu0")
    asked = [(method, params.get("device")) for method, params in daemon.calls]
    assert asked == [("device.get", "gpu0"), ("device.get", "gpu0"), ("slot.list", "gpu0")]


def test_resize(daemon: CannedDaemon, ctl: Run) -> None:
    daemon.answers["device.resize"] = lambda params: models.Resized(**params)
    status, output, _ = ctl("resize", "gpu0", "800x600", "--scanout", "1")
    assert (status, output) == (0, "gpu0 output 1: offered 800x600\n")
    _, output, _ = ctl("resize", "gpu0", "1024x768", "--json")
    assert json.loads(output) == {"device": "gpu0", "scanout": 0, "width": 1024, "height": 768}


def test_reload(daemon: CannedDaemon, ctl: Run) -> None:
    daemon.answers["config.reload"] = models.Reloaded(
        applied=("device gpu1: added",), next_connection=(), restart=("runtime_dir",)
    )
    status, output, _ = ctl("reload")
    assert status == 0
    assert output == (
        "applied:\n  device gpu1: added\nafter a restart of the daemon:\n  runtime_dir\n"
    )
    faults = "/etc/vgpud.toml: [[device]] 1: window = 5: must be\n/etc/vgpud.toml: and another"
    daemon.answers["config.reload"] = RpcError(-32000, faults, {"kind": "config"})
    status, output, errors = ctl("reload")
    assert (status, output) == (1, "")
    assert errors == "".join(f"vgpud: {line}\n" for line in faults.splitlines())


def test_metrics_are_read_to_the_end(daemon: CannedDaemon, ctl: Run) -> None:
    text = METRICS.format(uptime=5, fences=7)

    def page(params: dict[str, Any]) -> models.Metrics:
        offset = params.get("offset", 0)
        line = text[offset:].splitlines(keepends=True)[0]
        return models.Metrics(content_type="x", text=line, offset=offset, total=len(text))

    daemon.answers["metrics.get"] = page
    assert ctl("metrics") == (0, text, "")
    _, output, _ = ctl("metrics", "--json")
    assert {"name": "vgpud_fences_total", "labels": {"device": "gpu0"}, "value": 7.0} in json.loads(
        output
    )


def test_options_may_come_before_the_verb_and_after(daemon: CannedDaemon) -> None:
    for arguments in (
        ["--socket", str(daemon.path), "status"],
        ["status", "--socket", daemon.path],
    ):
        assert cli.main(["ctl", *map(str, arguments)]) == 0


# -- Pictures and other files ----------------------------------------------------------------------


def test_a_screenshot_into_a_file(pictured: CannedDaemon, ctl: Run, tmp_path: Path) -> None:
    file = tmp_path / "shot.png"
    status, output, _ = ctl("screenshot", "gpu0", "--scanout", "2", "--out", file)
    assert (status, output) == (0, f"gpu0 output 0: 640x480, 1.76 KiB in {file}\n")
    assert file.read_bytes() == PNG
    assert pictured.calls == [("device.screenshot", {"device": "gpu0", "scanout": 2})]
    _, output, _ = ctl("screenshot", "gpu0", "--out", file, "--json")
    assert json.loads(output)["width"] == 640


def test_an_answer_with_a_file_may_take_longer_than_others() -> None:
    with_file = {name for name, method in METHODS.items() if method.fd is not None}
    assert with_file
    assert {LONGER[name] for name in with_file} == {60.0}


@pytest.mark.parametrize(
    "verb",
    [
        ("screenshot", "gpu0"),
        ("device.screenshot", '{"device": "gpu0"}'),
        ("blob.export", '{"device": "gpu0", "resource": 1}'),
        ("future.method", "{}"),
    ],
    ids=lambda verb: verb[0],
)
def test_the_time_out_holds_for_answers_with_a_file(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], verb: tuple[str, str]
) -> None:
    path = tmp_path / "control.sock"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as stopped:  # nothing reads from it
        stopped.bind(str(path))
        options = ["--timeout", "0.1", "--out", str(tmp_path / "file")]
        begun = time.monotonic()
        assert cli.main(["ctl", "--socket", str(path), *verb, *options]) == 1
        assert time.monotonic() - begun < PATIENCE
    assert "timed out" in capfd.readouterr().err


def test_a_screenshot_into_a_pipe(pictured: CannedDaemon) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "vgpud", "ctl", "--socket", pictured.path, "screenshot", "gpu0"],
        cwd=ROOT,
        capture_output=True,
        timeout=PATIENCE,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, PNG, b"")
    # With --json there would be two things on stdout.
    assert cli.main(["ctl", "--socket", str(pictured.path), "screenshot", "gpu0", "--json"]) == 2


def test_a_file_that_can_not_be_written(pictured: CannedDaemon, ctl: Run) -> None:
    assert ctl("screenshot", "gpu0", "--out", "/dev/full") == (
        1,
        "",
        "vgpud: writing /dev/full: No space left on device\n",
    )
    status, _, errors = ctl("screenshot", "gpu0", "--out", "/nowhere/shot.png")
    assert (status, errors) == (1, "vgpud: writing /nowhere/shot.png: No such file or directory\n")


def test_a_picture_that_is_shorter_than_it_says(
    pictured: CannedDaemon, ctl: Run, tmp_path: Path
) -> None:
    file = pictured.answers["device.screenshot"]
    pictured.answers["device.screenshot"] = File(file.value | {"size": 1 << 20}, file.fd)
    status, _, errors = ctl("screenshot", "gpu0", "--out", tmp_path / "shot.png")
    assert status == 1
    assert errors.startswith("vgpud: reading the file that came with the answer: ")


def test_an_answer_that_lacks_its_file(daemon: CannedDaemon, ctl: Run, tmp_path: Path) -> None:
    daemon.answers["device.screenshot"] = {}
    status, _, errors = ctl("screenshot", "gpu0", "--out", tmp_path / "shot.png")
    assert status == 1
    assert "descriptors came with the answer" in errors


def test_a_method_with_a_file_gives_the_part_that_it_names(
    daemon: CannedDaemon, ctl: Run, tmp_path: Path
) -> None:
    with memfd.create("blobs", 3 * 4096) as fd:
        os.pwrite(fd.fileno(), b"blob" * 1024, 4096)
        where = {"device": "gpu0", "blob": 5, "fd_offset": 4096, "size": 4096}
        daemon.answers["blob.export"] = File(where, fd.fileno())
        call = ["blob.export", '{"device": "gpu0", "blob": 5}']
        status, output, _ = ctl(*call, "--out", tmp_path / "blob")
        assert (status, json.loads(output)) == (0, where)
        assert (tmp_path / "blob").read_bytes() == b"blob" * 1024
        # Without --out, the file is let go of.
        status, output, _ = ctl(*call)
        assert (status, json.loads(output)) == (0, where)


# -- Any method ------------------------------------------------------------------------------------


def test_any_method_by_name(daemon: CannedDaemon, ctl: Run) -> None:
    status, output, _ = ctl("daemon.info")
    assert (status, json.loads(output)) == (0, answers.info().model_dump(mode="json"))
    daemon.answers["blob.create"] = answers.blob(1 << 32)
    ctl("blob.create", '{"device": "gpu0", "size": 4096}', "--json")
    ctl("blob.create", '["gpu0", 4096]')
    assert daemon.calls[1:] == [
        ("blob.create", {"device": "gpu0", "size": 4096}),
        ("blob.create", ["gpu0", 4096]),
    ]


def test_a_method_that_only_the_daemon_knows(daemon: CannedDaemon, ctl: Run) -> None:
    daemon.answers["daemon.sing"] = {"song": "la"}
    status, output, _ = ctl("daemon.sing", '{"loud": true}')
    assert (status, json.loads(output)) == (0, {"song": "la"})
    assert daemon.calls == [("daemon.sing", {"loud": True})]
    daemon.answers["daemon.sing"] = RpcError(-32601, "no method 'daemon.sing'")
    assert ctl("daemon.sing") == (1, "", "vgpud: no method 'daemon.sing'\n")


@pytest.mark.parametrize("method", METHODS)
def test_every_method_is_a_verb(method: str) -> None:
    args = cli.parser().parse_args(["ctl", method, "{}"])
    assert (args.method, args.params) == (method, {})


# -- Events and rates ------------------------------------------------------------------------------


def test_events_until_there_were_enough(daemon: CannedDaemon, ctl: Run) -> None:
    def subscribed(params: dict[str, Any]) -> dict[str, Any]:
        threading.Timer(
            0.2, daemon.announce, [answers.event(), answers.event(sequence=4, kind="agent.lost")]
        ).start()
        return {"kinds": params["kinds"], "device": params["device"], "sequence": 0}

    daemon.answers["events.subscribe"] = subscribed
    status, output, _ = ctl(
        "events", "--kind", "slot.*", "--kind", "agent.*", "--device", "gpu0", "--count", "2"
    )
    assert status == 0
    first, second = output.splitlines()
    assert first.endswith("slot.refused gpu0 the agent refused a slot slot=8 flags=0x8 errno=22")
    assert "agent.lost" in second
    method, params = daemon.calls[0]
    assert (method, params["kinds"], params["device"]) == (
        "events.subscribe",
        ["slot.*", "agent.*"],
        "gpu0",
    )
    status, output, _ = ctl("events", "--json", "--count", "1")
    assert models.Event.model_validate_json(output) == answers.event()


def test_what_is_no_event_ends_it(daemon: CannedDaemon, ctl: Run) -> None:
    def subscribed(params: dict[str, Any]) -> dict[str, Any]:
        threading.Timer(0.2, daemon.announce_raw, [{"sequence": "three"}]).start()
        return {"kinds": ["*"], "device": None, "sequence": 0}

    daemon.answers["events.subscribe"] = subscribed
    status, output, errors = ctl("events")
    assert (status, output) == (1, "")
    assert "not what this version of vgpud expects" in errors


@pytest.mark.parametrize("verb", [["events"], ["watch", "--interval", "0.1"]])
def test_an_interrupt_is_the_end_of_it(daemon: CannedDaemon, verb: list[str]) -> None:
    daemon.answers["metrics.get"] = counting()
    with started(daemon, *verb) as process:
        process.until(lambda: len(daemon.calls) > 0)
        time.sleep(0.3)
        process.send_signal(signal.SIGINT)
        assert (process.wait(), process.log) == (0, "")


def test_a_daemon_that_goes_is_noticed(daemon: CannedDaemon) -> None:
    with started(daemon, "events") as process:
        process.until(lambda: len(daemon.calls) > 0)
        daemon.end()
        assert (process.wait(), process.output) == (1, "")
    assert len(process.log.splitlines()) == 1
    assert "is the daemon running" in process.log


def test_watch_shows_rates(daemon: CannedDaemon, ctl: Run) -> None:
    daemon.answers["metrics.get"] = counting()
    status, output, _ = ctl("watch", "--interval", "0.1", "--count", "2")
    assert status == 0
    # Three fences a second of the daemon's, whatever the time between the looks.
    rows = [line.split() for line in output.splitlines() if line.startswith("gpu0")]
    assert [(row[1], row[10]) for row in rows] == [("connected", "3")] * 2
    assert "\x1b" not in output
    _, output, _ = ctl("watch", "--interval", "0.1", "--count", "1", "--json")
    (line,) = output.splitlines()
    assert json.loads(line)["devices"][0]["rates"]["fences"] == 3.0


def test_on_a_terminal_watch_redraws_and_nothing_is_wider(daemon: CannedDaemon) -> None:
    daemon.answers["metrics.get"] = counting()
    output = on_terminal(daemon, "watch", "--interval", "0.1", "--count", "2")
    assert output.count("\x1b[H") == 2
    lines = re.sub(r"\x1b\[[A-Z]", "", output).splitlines()
    assert [line for line in lines if line.startswith("gpu0")]
    assert max(map(len, lines)) <= 40
    assert any(line.endswith("…") for line in lines)
    assert "…" in on_terminal(daemon, "status")
    assert "…" not in on_terminal(daemon, "devices", "--json")


def test_a_picture_does_not_go_to_a_terminal(pictured: CannedDaemon) -> None:
    assert "use --out FILE" in on_terminal(pictured, "screenshot", "gpu0", status=2)


# -- What goes wrong -------------------------------------------------------------------------------


def test_what_the_daemon_refuses_is_said(daemon: CannedDaemon, ctl: Run) -> None:
    daemon.answers["device.get"] = RpcError(-32000, "no device gpu7", {"kind": "no-device"})
    assert ctl("devices", "gpu7") == (1, "", "vgpud: no device gpu7\n")
    text = "uid 1000 may not use this socket; set allow_users or allow_groups"
    daemon.answers["daemon.info"] = RpcError(-32000, text, {"kind": "not-allowed"})
    assert ctl("status") == (1, "", f"vgpud: {text}\n")


def test_a_daemon_of_another_version(daemon: CannedDaemon, ctl: Run) -> None:
    daemon.answers["daemon.info"] = {"version": "9"}
    status, output, errors = ctl("status")
    assert (status, output) == (1, "")
    assert errors == (
        "vgpud: daemon.info: the daemon's answer is not what this version of vgpud expects;"
        " is the daemon of another version?\n"
    )


def test_no_daemon(daemon: CannedDaemon, ctl: Run) -> None:
    daemon.end()
    status, output, errors = ctl("status")
    assert (status, output) == (1, "")
    assert errors == (
        f"vgpud: control socket {daemon.path}: Connection refused; is the daemon running there?\n"
    )


def test_nobody_reads_what_is_said(daemon: CannedDaemon) -> None:
    read, write = os.pipe()
    os.close(read)
    with started(daemon, "status", stdout=write) as process:
        os.close(write)
        assert process.wait() == 1
    assert process.log == "vgpud: standard output: Broken pipe\n"


@pytest.mark.parametrize(
    "arguments",
    [
        ["sing"],
        ["screenshot"],
        ["resize", "gpu0"],
        ["resize", "gpu0", "800"],
        ["screenshot", "gpu0", "--scanout", "16"],
        ["watch", "--interval", "0"],
        ["watch", "--interval", "nan"],
        ["watch", "--count", "0"],
        ["events", "--count", "x"],
        ["blob.list", "{}", "--out", "file"],
        ["blob.list", "{]"],
        ["blob.list", '"text"'],
    ],
)
def test_bad_usage(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(["ctl", *arguments])
    assert caught.value.code == 2
    assert capsys.readouterr().err.startswith("usage: vgpud")


# -- Means -----------------------------------------------------------------------------------------


def counting() -> Callable[[dict[str, Any]], models.Metrics]:
    """Metrics of a device that completes three fences a second, looked at every ten seconds."""
    looks = 0

    def look(_: dict[str, Any]) -> models.Metrics:
        nonlocal looks
        looks += 1
        text = METRICS.format(uptime=10 * looks, fences=30 * looks)
        return models.Metrics(content_type="x", text=text, offset=0, total=len(text))

    return look


def started(daemon: CannedDaemon, *arguments: str, stdout: int | None = None) -> Process:
    """`vgpud ctl` as a process."""
    return Process(*VGPUD, "ctl", "--socket", daemon.path, *arguments, stdout=stdout)


def on_terminal(daemon: CannedDaemon, *arguments: str, status: int = 0) -> str:
    """What `vgpud ctl` says on a terminal of 40 columns."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 40, 0, 0))
    environment = {key: os.environ[key] for key in os.environ if key not in ("COLUMNS", "LINES")}
    process = subprocess.Popen(
        [sys.executable, "-m", "vgpud", "ctl", "--socket", daemon.path, *arguments],
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        stdout=theirs,
        stderr=theirs,
        env=environment,
    )
    os.close(theirs)
    output = b""
    try:
        while chunk := os.read(ours, 1 << 16):
            output += chunk
    except OSError:  # EIO: nobody has the other end any more
        pass
    os.close(ours)
    assert process.wait(PATIENCE) == status, output
    return output.decode()
