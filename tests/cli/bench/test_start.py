"""The measurement of the daemon's start: with a daemon, and with one that does not start."""

from __future__ import annotations

import errno
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from vgpud.cli import main as cli
from vgpud.cli.bench import daemon as module
from vgpud.cli.bench.daemon import ServeProcess
from vgpud.cli.bench.start import measure
from vgpud.coherency.slot_policy import Layout
from vgpud.errors import HostError, VgpudError


def test_a_start_is_measured() -> None:
    told: list[str] = []
    costs = measure(2, progress=told.append)
    assert told == ["2 starts"]
    assert 0 < costs.interpreter_ms.median < costs.started_ms.median < 30000
    assert 5 < costs.private_mb.median <= costs.resident_mb.median < 500
    assert max(map(len, costs.lines())) <= 100
    assert [chart.unit for chart in costs.charts()] == ["ms", "MB"]


def test_a_daemon_has_a_socket_for_each_layout_and_leaves_nothing() -> None:
    with ServeProcess(list(Layout)) as daemon:
        directory = daemon.directory
        for layout in Layout:
            assert daemon.socket_of(layout).is_socket()
        before = daemon.cpu_s()
        assert 0 < before < 60
        assert Path(f"/proc/{daemon.pid}").exists()
    assert not directory.exists()
    assert not Path(f"/proc/{daemon.pid}").exists()


def test_a_daemon_that_does_not_start_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_devices", lambda *_: ["nonsense = 1\n"])
    with pytest.raises(VgpudError, match=r"(?s)ended at once:.*nonsense"), ServeProcess():
        pass


@pytest.mark.parametrize("bench", ["ring", "start"])
def test_without_a_place_for_files_a_bench_is_an_error_in_words(
    bench: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", "/proc/none")
    assert cli.main(["bench", bench]) == 1
    [*_, line] = capsys.readouterr().err.splitlines()
    assert line.startswith("vgpud: making /proc/none/vgpud-")
    assert line.endswith(
        ": No such file or directory; set TMPDIR to a directory that can be written to"
    )


def test_where_no_directory_will_do_they_are_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    words = "No usable temporary directory found in ['/tmp', '/var/tmp']"

    def fails(*_: object, **__: object) -> None:
        raise FileNotFoundError(errno.ENOENT, words)

    monkeypatch.setattr(tempfile, "TemporaryDirectory", fails)
    with pytest.raises(HostError, match=re.escape(words)), ServeProcess():
        pass


def test_the_daemon_waits_for_no_import_that_only_other_verbs_need() -> None:
    program = "import sys, vgpud.cli.main; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True)
    others = (
        "vgpud.cli.demo",
        "vgpud.cli.doctor",
        "vgpud.microvm",
        "vgpud.cli.bench.",
        "matplotlib",
    )
    assert [name for name in done.stdout.decode().split() if name.startswith(others)] == []
