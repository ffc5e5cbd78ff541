"""A rate limit for log lines that a guest, front-end or client can cause.

Without it such lines could fill the disk.
"""

from __future__ import annotations

from time import monotonic

BURST = 10
"""Lines that may come at once."""

INTERVAL = 5.0
"""Seconds per line after a burst."""


class RateLimit:
    """A token bucket: call `allows` before each line, and append `suffix` to the line.

    The suffix has the number of lines that were suppressed since the last one.
    """

    def __init__(self) -> None:
        self._tokens = float(BURST)
        self._last = monotonic()
        self._dropped = 0

    def allows(self) -> bool:
        """Return whether a line may be logged now."""
        now = monotonic()
        self._tokens = min(BURST, self._tokens + (now - self._last) / INTERVAL)
        self._last = now
        if self._tokens < 1:
            self._dropped += 1
            return False
        self._tokens -= 1
        return True

    def suffix(self) -> str:
        """Return the text to append to the line that `allows` has just allowed."""
        dropped, self._dropped = self._dropped, 0
        return f" ({dropped} more like it not logged)" if dropped else ""
