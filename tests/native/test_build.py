"""The native module as a whole: its declarations, its facades, its compiler warnings."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from vgpud.native import build
from vgpud.native._native import lib

SOURCES = Path(build.__file__).parent


def test_the_facade_uses_every_function_there_is() -> None:
    header = build.declarations((SOURCES / "native.h").read_text(encoding="utf-8"))
    declared = set(re.findall(r"\b(vgpud_\w+)\(", header))
    facade = "".join(path.read_text(encoding="utf-8") for path in SOURCES.glob("*.py"))
    assert declared == set(re.findall(r"(?:lib\.|\(lib, \")(vgpud_\w+)", facade))
    assert all(callable(getattr(lib, name)) for name in declared)


@pytest.mark.parametrize("name", build.SOURCES)
def test_the_compiler_has_nothing_to_say(name: str) -> None:
    compiler = shutil.which("cc") or shutil.which("gcc")
    assert compiler is not None, "no C compiler, without which vgpud can't have been built"
    checks = ["all", "extra", "pedantic", "shadow", "conversion", "strict-prototypes", "error"]
    options = ["-std=gnu11", "-O2", *(f"-W{check}" for check in checks), "-o", "/dev/null"]
    command = [compiler, *options, "-c", str(SOURCES / name)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


MDWE = """
import ctypes
libc = ctypes.CDLL(None, use_errno=True)
PR_SET_MDWE, REFUSE_EXEC_GAIN = 65, 1
if libc.prctl(PR_SET_MDWE, REFUSE_EXEC_GAIN, 0, 0, 0):
    raise SystemExit(75)
import numpy as np
from vgpud.memory.engine import Engine
from vgpud.memory.extents import NON_COHERENT, Extents
memory = Extents.from_array(np.arange(200, dtype=np.uint8), access=NON_COHERENT)
Engine(0).copy(memory, 1, memory, 0, 199)
print(memory.array.sum())
"""


def test_it_runs_where_no_memory_may_become_executable() -> None:
    # systemd's MemoryDenyWriteExecute= and Linux 6.3's prctl.
    done = subprocess.run([sys.executable, "-c", MDWE], capture_output=True, text=True, check=False)
    if done.returncode == 75:
        pytest.skip("this kernel has no PR_SET_MDWE (Linux 6.3)")
    assert done.stdout == f"{sum(range(199))}\n", done.stderr
