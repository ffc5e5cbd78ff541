"""The process's use of resources: processor time, memory and descriptors.

A sandbox that shows no other part of /proc is enough. Source: proc(5), getrlimit(2).
"""

from __future__ import annotations

import os
import resource
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final

_SELF: Final = Path("/proc/self")


@dataclass(frozen=True, slots=True)
class ProcessFigures:
    """Processor time in seconds, memory in bytes, and numbers of descriptors.

    A figure is None where /proc can't be read. `max_fds` is infinite where there is no limit.
    """

    cpu_seconds: float
    resident_bytes: int | None
    open_fds: int | None
    max_fds: float


def own_figures() -> ProcessFigures:
    """Return the figures of this process, now."""
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
        return len(os.listdir(_SELF / "fd")) - 1  # noqa: PTH208 - less the one that lists
    except OSError:
        return None
