"""What tests of the control API's methods share."""

from __future__ import annotations

import pytest

from tests.daemon_thread import DaemonThread
from tests.serve.methods.stand import Methods


@pytest.fixture
def methods(daemon: DaemonThread) -> Methods:
    """The methods of a test's daemon, to be called without a socket."""
    return Methods(daemon)
