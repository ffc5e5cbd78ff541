"""Rigs are built for the tests that need them and for no others; in CI a skip is a failure."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.rig.chroot import RigUnavailableError
from tests.support import rigs

ROOT = Path(__file__).parents[2]

# A plugin that puts a recipe of its own in the rig's place, and tests to choose from.
FAKE_RIG = """
from pathlib import Path
from tests.rig.chroot import RigUnavailableError
from tests.support import rigs
import tests.conftest as fixtures

def opened():
    if not Path("built").exists():
        raise RigUnavailableError("it is not there")

def built():
    assert not Path("ran").exists(), "built when tests had run"
    Path("built").touch()
    if Path("broken").exists():
        Path("built").unlink()
        raise RigUnavailableError("no mirror here")

rigs.RECIPES["rig"] = rigs.Recipe(opened, built)
fixtures.open_rig = opened
"""
CASES = """
from pathlib import Path
import pytest

def test_alone():
    Path("ran").touch()

def test_booting(rig):
    assert Path("built").exists()

@pytest.mark.xfail(reason="it is known")
def test_known():
    assert False
"""


def run(directory: Path, *arguments: str, ci: bool = False, may_build: bool = False) -> str:
    """What pytest says of the cases with these arguments."""
    (directory / "fake_rig.py").write_text(FAKE_RIG)
    (directory / "test_cases.py").write_text(CASES)
    environment = {name: os.environ[name] for name in os.environ.keys() - {"CI"}}
    environment |= {"PYTHONPATH": f"{ROOT}:{directory}", "PYTHONDONTWRITEBYTECODE": "1"}
    environment |= {"CI": "true"} if ci else {}
    environment["VGPUD_BUILD_RIGS"] = "true" if may_build else ""
    done = subprocess.run(
        [
            *(sys.executable, "-m", "pytest", "-rs", "-p", "tests.conftest", "-p", "fake_rig"),
            *("-p", "no:cacheprovider", "--import-mode=importlib", "--rootdir=.", "-c", os.devnull),
            *arguments,
        ],
        cwd=directory,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.stderr == ""
    return done.stdout


def last_line(said: str) -> str:
    return said.splitlines()[-1].strip("= ").partition(" in ")[0]


def test_a_rig_is_built_before_the_first_test_if_one_needs_it(tmp_path: Path) -> None:
    said = run(tmp_path, "test_cases.py", may_build=True)
    assert last_line(said) == "2 passed, 1 xfailed"


@pytest.mark.parametrize("arguments", [["test_cases.py::test_alone"], ["--collect-only"]])
def test_no_rig_is_built_that_no_chosen_test_needs(tmp_path: Path, arguments: list[str]) -> None:
    run(tmp_path, *arguments, may_build=True, ci=True)
    assert not (tmp_path / "built").exists()


def test_by_itself_pytest_builds_nothing_and_skips_with_the_reason(tmp_path: Path) -> None:
    said = run(tmp_path, "test_cases.py")
    assert not (tmp_path / "built").exists()
    assert last_line(said) == "1 passed, 1 skipped, 1 xfailed"
    assert "it is not there" in said


def test_in_ci_a_skip_is_a_failure_and_why_a_rig_could_not_be_built_is_said(
    tmp_path: Path,
) -> None:
    (tmp_path / "broken").touch()
    said = run(tmp_path, "test_cases.py", ci=True)
    # The fixture's skip: an error in pytest's words, as it is not the test's own.
    assert last_line(said) == "1 passed, 1 xfailed, 1 error"
    assert "Nothing may be skipped in CI. Skipped: no mirror here" in said


def test_only_what_is_missing_is_built() -> None:
    made: list[str] = []

    def missing() -> None:
        raise RigUnavailableError("missing")

    recipes = {
        "rig": rigs.Recipe(lambda: None, lambda: made.append("rig")),
        "kernel_host": rigs.Recipe(missing, lambda: made.append("kernel_host")),
    }
    assert rigs.build_missing({"rig", "kernel_host", "tmp_path"}, recipes) == {}
    assert made == ["kernel_host"]
    assert rigs.build_missing({"rig"}, recipes) == {}
    assert made == ["kernel_host"]


def test_every_recipe_is_of_a_fixture_that_tests_ask_for() -> None:
    for name in rigs.RECIPES:
        asking = [
            path
            for path in (ROOT / "tests").rglob("test_*.py")
            if f"{name}: " in path.read_text() and path != Path(__file__)
        ]
        assert asking
