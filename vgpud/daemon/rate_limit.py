"""A rate limit for log lines that a guest, front-end or client can cause.

Without it such lines could fill the disk.
"""

from __future__ import annotations

from time import monotonic

BURST = 30
"""Lines that may come at once."""

INTERVAL = 1.0
"""Seconds per line after a burst."""


class RateLimit:
    """A token bucket: call `allows` before each line, and append `suffix` to the line.

    The suffix has the number of lines that were suppressed since the last one.
    """

    def __init__(self, factor: int = 1) -> None:
        """`factor` is how many times as many lines may come."""
        self._factor = factor
        self._tokens = float(BURST)
        self._last = monotonic()
        self._dropped = 0

    def allows(self) -> bool:
        """Return whether a line may be logged now."""
        if not self._has_token():
            self._dropped += 1
            return False
        self._tokens -= 1 / self._factor
        return True

    def dropped(self) -> int:
        """Return the number of suppressed lines that no suffix has had yet, if a line may be
        logged for them now, or else 0."""
        if not self._dropped or not self._has_token():
            return 0
        self._tokens -= 1 / self._factor
        dropped, self._dropped = self._dropped, 0
        return dropped

    def suffix(self) -> str:
        """Return the text to append to the line that `allows` has just allowed."""
        dropped, self._dropped = self._dropped, 0
        return f" ({dropped} more like it not logged)" if dropped else ""

    def _has_token(self) -> bool:
        now = monotonic()
        self._tokens = min(BURST, self._tokens + (now - self._last) / INTERVAL)
        self._last = now
        return self._tokens >= 1 / self._factor
