"""Fixtures that tests of every package may ask for, and what is printed after the results.

A test that needs a guest asks for `rig`, one that needs the patched kernel for `kernel_host`, or
for what came of some of its `boots`, which it names with a marker: where that can't be had, the
test is skipped with the reason. If $CI is "true", every skip is a failure.
"""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypeVar

import pytest
from hypothesis import settings

from tests.kernel.boots import Boots
from tests.kernel.build import Host, open_host
from tests.rig.build import Rig, open_rig
from tests.rig.chroot import RigUnavailableError
from tests.support import rigs
from tests.support.kvm_host import Poker, open_kvm
from vgpud.uapi.kvm import Kvm

# No deadline: these machines are shared, and a slow example is no failure.
settings.register_profile("vgpud", deadline=None)
settings.load_profile("vgpud")

NOBODY = 65534

_Opened = TypeVar("_Opened")

_BOOTS = pytest.StashKey[Boots]()
_NOT_BUILT = pytest.StashKey[dict[str, str]]()
_REPORT = pytest.StashKey[list[str]]()


def pytest_configure() -> None:
    """Restore what SIGINT does where it is ignored, as under `nohup` and some CI runners.

    What tests start would inherit that, and tests send SIGINT.
    """
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.hookimpl(tryfirst=True)
def pytest_runtestloop(session: pytest.Session) -> None:
    """Build the rigs that the chosen tests need, before any of them runs, and note their boots."""
    if session.config.option.collectonly or session.testsfailed:
        return
    if rigs.may_build():
        functions = (item for item in session.items if isinstance(item, pytest.Function))
        fixtures = {name for function in functions for name in function.fixturenames}
        session.config.stash[_NOT_BUILT] = rigs.build_missing(fixtures)
    marks = (mark for item in session.items for mark in item.iter_markers("boots"))
    names = {name for mark in marks for name in mark.args}
    if names and "kernel_host" not in session.config.stash.get(_NOT_BUILT, {}):
        with suppress(RigUnavailableError):  # the tests say so
            boots = session.config.stash[_BOOTS] = Boots(open_host(), names)
            session.config.add_cleanup(boots.close)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Make a skipped test a failed one in CI, where skipping would pass for success."""
    report = yield
    if rigs.in_ci() and report.skipped and not hasattr(report, "wasxfail"):
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr
        report.outcome = "failed"
        report.longrepr = f"Nothing may be skipped in CI. {reason}"
    return report


@pytest.fixture(scope="session")
def rig(pytestconfig: pytest.Config) -> Rig:
    """The guest rig, ready to boot."""
    return _opened(pytestconfig, "rig", open_rig)


@pytest.fixture(scope="session")
def kernel_host(pytestconfig: pytest.Config) -> Host:
    """The host with the patched kernel, ready to boot."""
    return _opened(pytestconfig, "kernel_host", open_host)


@pytest.fixture(scope="session")
def boots(kernel_host: Host, pytestconfig: pytest.Config) -> Boots:
    """What comes of the boots of that host."""
    return pytestconfig.stash[_BOOTS]


def _opened(config: pytest.Config, name: str, open_it: Callable[[], _Opened]) -> _Opened:
    reasons = config.stash.get(_NOT_BUILT, {})
    if name in reasons:
        pytest.skip(reasons[name])
    try:
        return open_it()
    except RigUnavailableError as error:
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
    try:
        if os.geteuid() == 0:
            os.chown(path, NOBODY, NOBODY)
        with _as_nobody():
            yield path
    finally:
        shutil.rmtree(path)


@pytest.fixture
def no_root() -> Iterator[None]:
    """Not being root until the test ends."""
    with _as_nobody():
        yield


@contextmanager
def _as_nobody() -> Iterator[None]:
    root = os.geteuid() == 0
    try:
        if root:
            os.seteuid(NOBODY)
        yield
    finally:
        if root:
            os.seteuid(0)


@pytest.fixture
def kvm() -> Iterator[Kvm]:
    """The real /dev/kvm."""
    with open_kvm() as opened:
        yield opened


@pytest.fixture
def poker(kvm: Kvm) -> Iterator[Poker]:
    """The smallest guest, in a VM of its own."""
    guest = Poker(kvm)
    yield guest
    guest.close()


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
