"""A limit on log lines that a guest can cause: it must not be able to fill the host's disk."""

from __future__ import annotations

from time import monotonic

BURST = 10
"""Lines at once."""

INTERVAL = 5.0
"""Seconds for one line after that."""


class RateLimit:
    """A token bucket. Ask `allows` before each line; `suffix` says in the next how many were left
    out."""

    def __init__(self) -> None:
        self._tokens = float(BURST)
        self._last = monotonic()
        self._dropped = 0

    def allows(self) -> bool:
        """Whether there may be a line now."""
        now = monotonic()
        self._tokens = min(BURST, self._tokens + (now - self._last) / INTERVAL)
        self._last = now
        if self._tokens < 1:
            self._dropped += 1
            return False
        self._tokens -= 1
        return True

    def suffix(self) -> str:
        """What to put behind the line that `allows` just allowed."""
        dropped, self._dropped = self._dropped, 0
        return f" ({dropped} more like it not logged)" if dropped else ""
