"""ruff and mypy run with the tests: what they find is a failure like any other."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize(
    "arguments",
    [
        ["ruff", "check", "vgpud", "tests"],
        ["ruff", "format", "--check", "vgpud", "tests"],
        ["mypy"],
    ],
    ids=lambda arguments: " ".join(arguments[:2]),
)
def test_nothing_is_found(arguments: list[str]) -> None:
    done = subprocess.run(
        [sys.executable, "-m", *arguments], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
