"""What tests of the control API's methods share."""

from __future__ import annotations

import pytest

from tests.daemon.methods.stand import Methods
from tests.support.daemon_thread import DaemonThread


@pytest.fixture
def methods(daemon: DaemonThread) -> Methods:
    """The methods of a test's daemon, to be called without a socket."""
    return Methods(daemon)
