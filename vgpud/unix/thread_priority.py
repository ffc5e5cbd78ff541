"""The scheduling priority of one thread. Source: setpriority(2), sched(7)."""

from __future__ import annotations

import os
import threading
from contextlib import suppress
from typing import Final

NICENESS: Final = 10
"""Half of the range: more would starve copies on a busy host."""


def lower_thread_priority() -> None:
    """Give the calling thread a lower priority than the guests' vCPUs and the event loop.

    For threads that make long copies: on two processors that shortens the longest of a hundred
    fence latencies by a third. If a sandbox forbids it, the priority stays as it is.
    """
    with suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICENESS)
