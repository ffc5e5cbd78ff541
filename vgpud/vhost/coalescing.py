"""Interrupt coalescing: whether more requests are likely to come in a moment, and so for how long
answers are held back.

A guest that draws sends small transfers one after the other, and answering each by itself would
cost it more than the transfer: a kick costs as much as a command, an interrupt and each time that
this process wakes up as much as several. So while such requests follow each other the device polls
instead of asking for kicks, and answers many at once, as network cards do. The price is the same,
too: a driver that waits for the last of them waits for one more poll.
"""

from __future__ import annotations

from time import perf_counter

THRESHOLD = 16
"""Requests of the fast path after each other, and nothing else, from which on more are expected."""

MAX_EMPTY_POLLS = 4
"""Polls in vain, one after the other, that do not yet tell of a driver that waits for each answer:
a guest's processor is also taken from it for a while."""

MAX_THRESHOLD = 1024
"""Requests after which more are expected in any case. Before that, each further poll in vain
doubles their number."""

POLL = 0.0001
"""Seconds between two polls. A guest makes some ten commands meanwhile."""

POLLING = 0.0005
"""Seconds of polling after which other tasks are served."""

HOLD = 0.001
"""Seconds that answers are held back at most: a driver that needs one of them before it goes on
ends the stream, and has it after a poll."""


class Coalescing:
    """The requests of the fast path that came to one queue lately."""

    def __init__(self) -> None:
        self._length = 0
        self._needed = THRESHOLD
        self._empty_polls = 0
        self._hold_until = 0.0

    def add(self, count: int) -> None:
        """Count requests that were answered by the fast path."""
        self._length += count

    def end(self) -> None:
        """Note that another request came."""
        self._length = 0

    def published(self) -> None:
        """Note that all answers so far were published."""
        self._hold_until = perf_counter() + HOLD

    @property
    def active(self) -> bool:
        """Whether more are expected."""
        return self._length >= self._needed

    def may_hold(self, held: int, num: int) -> bool:
        """Return whether so many answers may be held back, on a ring of `num`: of half of a ring,
        so that the driver never lacks room."""
        return self.active and held < num // 2 and perf_counter() < self._hold_until

    def polled(self, *, more: bool) -> None:
        """Note that a poll is over, and whether more had come by then."""
        if more:
            self._needed, self._empty_polls = THRESHOLD, 0
            return
        self._empty_polls += 1
        if self._empty_polls > MAX_EMPTY_POLLS:
            self._length, self._needed = 0, min(2 * self._needed, MAX_THRESHOLD)
