"""What the tests of a whole daemon share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.daemon_thread import DaemonThread
from tests.support.front_end import FrontEnd


@pytest.fixture
def fe(daemon: DaemonThread, short_directory: Path) -> Iterator[FrontEnd]:
    """A front-end of gpu0, with a driver at work."""
    with FrontEnd.connect(short_directory / "gpu0.sock").handshake() as fe:
        yield fe
