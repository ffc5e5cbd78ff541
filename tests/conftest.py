"""Fixtures that tests of every package may ask for, and what is printed after the results.

A test that needs a guest asks for `rig`: where the rig can't be had, that test is skipped with the
reason, unless $CI is "true", where skipping would pass for success.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from tests.rig.build import Rig, open_rig
from tests.rig.chroot import RigUnavailableError

# No deadline: these machines are shared, and a slow example is no failure.
settings.register_profile("vgpud", deadline=None)
settings.load_profile("vgpud")

NOBODY = 65534

_REPORT = pytest.StashKey[list[str]]()


@pytest.fixture(scope="session")
def rig() -> Rig:
    """The guest rig, ready to boot."""
    try:
        return open_rig()
    except RigUnavailableError as error:
        if os.environ.get("CI") == "true":
            pytest.fail(str(error))
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def short_directory() -> Iterator[Path]:
    """A directory right below /tmp: socket names are short, and the rig's chroot shares /tmp."""
    path = Path(tempfile.mkdtemp(prefix="vgpud-", dir="/tmp"))
    yield path
    shutil.rmtree(path)


@pytest.fixture
def other_user() -> Iterator[Path]:
    """A directory of a user who is not root, and who we are until the test ends."""
    path = Path(tempfile.mkdtemp(prefix="vgpud-"))
    root = os.geteuid() == 0
    try:
        if root:
            os.chown(path, NOBODY, NOBODY)
            os.seteuid(NOBODY)
        yield path
    finally:
        if root:
            os.seteuid(0)
        shutil.rmtree(path)


@pytest.fixture(scope="session")
def report(pytestconfig: pytest.Config) -> Callable[[str], None]:
    """Takes lines of measured figures, which are printed after the results."""
    lines: list[str] = pytestconfig.stash.setdefault(_REPORT, [])
    return lines.append


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print what tests reported."""
    lines = terminalreporter.config.stash.get(_REPORT, [])
    if lines:
        terminalreporter.section("measured")
        for line in lines:
            terminalreporter.line(line)
