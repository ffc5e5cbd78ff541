"""What the test run itself sets up."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
CASE = """
import signal, subprocess, sys

def test_sigint_ends_a_child():
    wait = "import time; print(flush=True); time.sleep(60)"
    command = [sys.executable, "-c", wait]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as child:
        child.stdout.readline()
        child.send_signal(signal.SIGINT)
        assert child.wait(20) == -signal.SIGINT
"""


def test_sigint_works_though_it_was_ignored_at_the_start(tmp_path: Path) -> None:
    (tmp_path / "test_case.py").write_text(CASE)
    done = subprocess.run(
        [
            *(sys.executable, "-m", "pytest", "-p", "tests.conftest", "-p", "no:cacheprovider"),
            *("--import-mode=importlib", "--rootdir=.", "-c", os.devnull, "test_case.py"),
        ],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        # As a shell without job control starts what ends in "&".
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_IGN),
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stdout
