"""Interrupt coalescing: whether more requests are expected soon, and so how long answers are held.

A guest that draws sends many small transfers, and to answer each by itself would cost more than the
transfer: a kick costs as much as a command, and an interrupt or a wake-up of this process as much
as several. So while such requests follow each other, the device polls instead of asking for kicks,
and publishes many answers with one call, as network cards do. The price is the same, too: a driver
that waits for the last answer waits for one more poll.
"""

from __future__ import annotations

from time import perf_counter

THRESHOLD = 16
"""Successive requests of the fast path, with none between them, after which more are expected."""

MAX_EMPTY_POLLS = 4
"""Successive polls without a request after which the driver is assumed to wait for each answer.
More than one, because the host may also have taken the guest's processor away for a while."""

MAX_THRESHOLD = 1024
"""The largest number of requests that is needed to expect more. Below it, each further empty poll
doubles the number."""

POLL = 0.0001
"""Seconds between two polls. A guest makes some ten commands in that time."""

POLLING = 0.0005
"""Seconds of polling after which other tasks are served."""

HOLD = 0.001
"""The longest time to hold answers, in seconds. A driver that needs one of them before it goes on
makes no more requests, and gets it after the next poll."""


class Coalescing:
    """The recent requests of the fast path on one queue."""

    def __init__(self) -> None:
        self._length = 0
        self._needed = THRESHOLD
        self._empty_polls = 0
        self._hold_until = 0.0

    def add(self, count: int) -> None:
        """Count requests that the fast path has answered."""
        self._length += count

    def end(self) -> None:
        """Note a request that the fast path did not answer."""
        self._length = 0

    def published(self) -> None:
        """Note that all answers so far have been published."""
        self._hold_until = perf_counter() + HOLD

    @property
    def active(self) -> bool:
        """Whether more requests are expected."""
        return self._length >= self._needed

    def may_hold(self, held: int, num: int) -> bool:
        """Return whether `held` answers may be held, on a ring of `num` descriptors.

        At most half of the ring, so that the driver always has room for more requests.
        """
        return self.active and held < num // 2 and perf_counter() < self._hold_until

    def polled(self, *, more: bool) -> None:
        """Note that a poll has ended, and whether more requests came meanwhile."""
        if more:
            self._needed, self._empty_polls = THRESHOLD, 0
            return
        self._empty_polls += 1
        if self._empty_polls > MAX_EMPTY_POLLS:
            self._length, self._needed = 0, min(2 * self._needed, MAX_THRESHOLD)
