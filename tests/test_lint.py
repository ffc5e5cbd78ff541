"""What ruff and mypy find is a failure like any other; and what they don't look for."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections import defaultdict
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


def test_no_class_name_is_used_twice() -> None:
    """A name that stands for two things has a reader open the wrong file."""
    found: dict[str, list[str]] = defaultdict(list)
    for path in sorted((ROOT / "vgpud").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ClassDef):
                found[node.name].append(str(path.relative_to(ROOT)))
    assert {name: paths for name, paths in found.items() if len(paths) > 1} == {}


def test_no_file_of_the_package_has_grown_into_two() -> None:
    lengths = {
        str(path.relative_to(ROOT)): len(path.read_text().splitlines())
        for pattern in ("*.py", "*.c")
        for path in (ROOT / "vgpud").rglob(pattern)
        if path.name[0] != "_"
    }
    assert {path: lines for path, lines in lengths.items() if lines > 400} == {}
