"""Fixtures for tests of what the host lets us do."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

NOBODY = 65534


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
