"""The scheduling priority of one thread. Source: setpriority(2), sched(7)."""

from __future__ import annotations

import os
import threading
from contextlib import suppress
from typing import Final

NICENESS: Final = 10
"""Half way: more would starve copies on a host that is busy otherwise."""


def lower_thread_priority() -> None:
    """Give the calling thread, which makes long copies, a lower priority than a guest's processors
    and the event loop.

    On two processors that takes a third off the latest of a hundred fences. Where a sandbox forbids
    it, the priority stays as it is.
    """
    with suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICENESS)
