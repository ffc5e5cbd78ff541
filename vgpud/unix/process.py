"""What this process uses of the machine, and how it stands back.

Works in a sandbox that shows no other part of /proc. Source: proc(5), getrlimit(2).
"""

from __future__ import annotations

import os
import resource
import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

_SELF: Final = Path("/proc/self")

NICENESS: Final = 10
"""Half way: more would starve copies on a host that is busy otherwise."""


@dataclass(frozen=True, slots=True)
class ProcessFigures:
    """Processor time in seconds, memory in bytes, descriptors; None where /proc is not to be seen.

    `max_fds` is infinite where there is no limit.
    """

    cpu_seconds: float
    resident_bytes: int | None
    open_fds: int | None
    max_fds: float


def look() -> ProcessFigures:
    """As it is now."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return ProcessFigures(
        time.process_time(),
        _resident(),
        _open_fds(),
        float("inf") if soft == resource.RLIM_INFINITY else soft,
    )


def _resident() -> int | None:
    try:
        return int((_SELF / "statm").read_text().split()[1]) * resource.getpagesize()
    except (OSError, ValueError, IndexError):
        return None


def _open_fds() -> int | None:
    try:
        return len(os.listdir(_SELF / "fd")) - 1  # noqa: PTH208 - less the one for looking
    except OSError:
        return None


def give_way() -> None:
    """Have the calling thread yield to others that have something short to do: long copies beside a
    guest's processor and the event loop.

    On two processors that takes a third off the latest of a hundred fences. Where a sandbox forbids
    it, all stays as it is.
    """
    with suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICENESS)
