"""The daemons that these tests attack."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.hostile.siege import Siege


@pytest.fixture(scope="session")
def shared_siege() -> Iterator[Siege]:
    """One daemon for all of these tests, until one breaks it."""
    siege = Siege()
    yield siege
    siege.close()


@pytest.fixture
def siege(shared_siege: Siege) -> Iterator[Siege]:
    """A daemon under attack; asserts afterwards that it serves on, and that nothing is left."""
    shared_siege.begin()
    yield shared_siege
    shared_siege.end()


@pytest.fixture
def siege_per_blob() -> Iterator[Siege]:
    """One whose devices have a mapping for each blob."""
    siege = Siege("per-blob")
    siege.begin()
    try:
        yield siege
        siege.end()
    finally:
        siege.close()
