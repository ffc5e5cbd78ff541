"""What ruff and mypy find is a failure like any other; and what they don't look for."""

from __future__ import annotations

import ast
import io
import re
import subprocess
import sys
import tokenize
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


def paths_named(source: bytes) -> set[str]:
    """The paths below tests/ and vgpud/ that comments and docstrings name."""
    texts = [
        token.string
        for token in tokenize.tokenize(io.BytesIO(source).readline)
        if token.type == tokenize.COMMENT
        or (token.type == tokenize.STRING and token.string.startswith('"""'))
    ]
    pattern = re.compile(r"(?<![\w/.$~-])(?:tests|vgpud)/[\w./-]*\w")
    return {path for text in texts for path in pattern.findall(text)}


def test_paths_in_comments_and_docstrings_exist() -> None:
    missing = {
        str(file.relative_to(ROOT)): gone
        for top in ("tests", "vgpud")
        for file in sorted((ROOT / top).rglob("*.py"))
        if (gone := {path for path in paths_named(file.read_bytes()) if not (ROOT / path).exists()})
    }
    assert missing == {}


def test_a_path_is_found_where_it_is_named() -> None:
    source = b'"""As in tests/gone.py."""\nx = 1  # see vgpud/gpu, not /opt/vgpud/bin\n'
    assert paths_named(source) == {"tests/gone.py", "vgpud/gpu"}


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
