"""What is printed, whatever the terminal's encoding, the names and the state of the streams."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.cli.ctl import answers
from tests.cli.ctl.canned_daemon import CannedDaemon, File, paged, usual
from tests.support.process import ROOT
from vgpud.control import models

NARROW = ["ascii:strict", "koi8-r:strict", "iso8859-1:strict"]
BAD = os.fsdecode(b"\xff\xe2\x80\xa6\xf0")
"""A name that is not UTF-8."""
PROGRAMS = {"vgpud": ["-m", "vgpud"], "vhost-user-vgpu": ["-m", "vgpud.cli.backend_program"]}


def run(
    *arguments: str, encoding: str = "", before: str = "", program: str = "vgpud"
) -> subprocess.CompletedProcess[bytes]:
    """Run a program in the C locale; `before` is shell code, such as a redirection by exec."""
    command = [sys.executable, *PROGRAMS[program], *arguments]
    return subprocess.run(
        ["/bin/sh", "-c", f'{before}\nexec "$@"', "sh", *command],
        cwd=ROOT,
        env=narrow(encoding),
        capture_output=True,
        check=False,
        timeout=60,
    )


def narrow(encoding: str) -> Mapping[str, str]:
    none = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    return {**os.environ, **none, "PYTHONIOENCODING": encoding}


@pytest.mark.parametrize("encoding", ["", "ascii:strict"])
@pytest.mark.parametrize(
    ("arguments", "status"),
    [
        (["--help"], 0),
        (["ctl", "--help"], 0),
        (["ctl", "watch", "--help"], 0),
        (["config", "default"], 0),
        (["config", "check", f"/nowhere/{BAD}"], 2),
        (["ctl", "status", "--socket", f"/nowhere/{BAD}"], 1),
        (["ctl", "blob.list", BAD], 2),
        (["install-units", "--root", f"/proc/{BAD}"], 1),
        (["serve", "--config", BAD], 2),
        ([BAD], 2),
        ([f"--{BAD}…日本"], 2),
        (["bench", "--plot", f"/nowhere/{BAD}.png", "copy"], 2),
    ],
)
def test_no_name_and_no_encoding_raises(encoding: str, arguments: list[str], status: int) -> None:
    done = run(*arguments, encoding=encoding)
    assert b"Traceback" not in done.stderr
    assert done.returncode == status
    assert done.stdout if status == 0 else done.stderr


@pytest.mark.parametrize(("where", "error"), [("/dev/full", b"No space left"), ("&-", b"Bad file")])
@pytest.mark.parametrize(
    ("program", "arguments"),
    [
        ("vgpud", ["--help"]),
        ("vgpud", ["--version"]),
        ("vgpud", ["config", "schema"]),
        ("vhost-user-vgpu", ["--help"]),
    ],
)
def test_output_that_can_not_be_written_is_a_failure(
    program: str, where: str, error: bytes, arguments: list[str]
) -> None:
    done = run(*arguments, before=f"exec >{where}", program=program)
    assert done.returncode == 1
    assert done.stderr.startswith(f"{program}: standard output: ".encode() + error)
    assert len(done.stderr.splitlines()) == 1
    done = run(*arguments, before=f"exec >{where} 2>{where}", program=program)
    assert done.returncode == 1


@pytest.mark.parametrize("where", ["/dev/full", "&-"])
def test_errors_that_can_not_be_written_keep_the_status(where: str) -> None:
    for arguments, status in ((["nonsense"], 2), (["ctl", "--socket", "/nowhere", "status"], 1)):
        assert run(*arguments, before=f"exec 2>{where}").returncode == status


@pytest.mark.parametrize("encoding", NARROW)
def test_a_narrow_terminal(tmp_path: Path, encoding: str) -> None:
    told = usual()
    device = answers.device(problems=("ein Gerät fehlt: 日本 " * 9,))
    told["device.list"] = paged([device], 1000)
    with CannedDaemon(tmp_path / "control.sock", told) as daemon:
        ours, theirs = pty.openpty()
        done = subprocess.run(
            [sys.executable, "-m", "vgpud", "ctl", "--socket", daemon.path, "status"],
            cwd=ROOT,
            env={**narrow(encoding), "COLUMNS": "60"},
            stdout=theirs,
            stderr=subprocess.PIPE,
            check=False,
            timeout=60,
        )
        os.close(theirs)
        shown = os.read(ours, 1 << 16).decode(encoding.partition(":")[0])
        os.close(ours)
    assert (done.returncode, done.stderr) == (0, b"")
    lines = shown.splitlines()
    assert any(line.endswith("...") for line in lines)
    assert all(len(line) <= 60 for line in lines if "\\u" not in line)


@pytest.mark.parametrize("encoding", ["", "koi8-r:strict"])
def test_a_file_whose_name_is_not_text(tmp_path: Path, encoding: str) -> None:
    fd = os.memfd_create("picture", os.MFD_CLOEXEC)
    os.write(fd, b"PNG")
    shot = models.Screenshot(
        device="gpu0", scanout=0, width=640, height=480, format="png", size=3
    ).model_dump(mode="json")
    told = {**usual(), "device.screenshot": File(shot, fd)}
    out = tmp_path / f"{BAD}.png"
    with CannedDaemon(tmp_path / "control.sock", told) as daemon:
        socket = ["--socket", str(daemon.path)]
        done = run("ctl", *socket, "screenshot", "gpu0", "--out", str(out), encoding=encoding)
    os.close(fd)
    assert (done.returncode, done.stderr) == (0, b"")
    assert b"\\udcff" in done.stdout
    assert out.read_bytes() == b"PNG"
