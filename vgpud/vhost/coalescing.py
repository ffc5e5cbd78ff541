"""Streams of transfers: whether more commands are likely to come in a moment, and so for how long
answers are held back.

Owns no ring: only the count and the clock. A guest that draws sends small transfers one after the
other, and answering each by itself would cost it more than the transfer: a kick costs as much as a
command, an interrupt and each time that this process wakes up as much as several. So in a stream
the device naps instead of asking for kicks, and answers many at once. That is interrupt moderation
as network cards have it, with the same price: who waits for the last command of a stream waits for
a nap more.
"""

from __future__ import annotations

from time import perf_counter

STREAM = 16
"""Transfers after each other, and nothing else, from which on more are expected."""

IN_VAIN = 4
"""Naps in vain, one after the other, that do not yet tell of a driver that waits for each answer:
a guest's processor is also taken from it for a while."""

LONGEST = 1024
"""Transfers after which more are expected in any case. Before that, each further nap in vain
doubles their number."""

NAP = 0.0001
"""Seconds of a nap. A guest makes some ten commands meanwhile."""

NAPPING = 0.0005
"""Seconds of naps after which other tasks get their turn."""

HOLD = 0.001
"""Seconds that answers of a stream are held back at most: who needs one of them before he goes on
ends the stream, and has it after a nap."""


class Stream:
    """The transfers that came to one queue lately."""

    def __init__(self) -> None:
        self._length = 0
        self._needed = STREAM
        self._in_vain = 0
        self._hold_until = 0.0

    def add(self, count: int) -> None:
        """Transfers came, and were answered."""
        self._length += count

    def end(self) -> None:
        """Another command came."""
        self._length = 0

    def published(self) -> None:
        """All answers so far were published."""
        self._hold_until = perf_counter() + HOLD

    @property
    def flows(self) -> bool:
        """Whether more are expected."""
        return self._length >= self._needed

    def may_hold(self, held: int, num: int) -> bool:
        """Whether so many answers may be held back, on a ring of `num`: of half of a ring, so that
        the driver never lacks room."""
        return self.flows and held < num // 2 and perf_counter() < self._hold_until

    def woke(self, *, more: bool) -> None:
        """A nap is over; whether more had come by then."""
        if more:
            self._needed, self._in_vain = STREAM, 0
            return
        self._in_vain += 1
        if self._in_vain > IN_VAIN:
            self._length, self._needed = 0, min(2 * self._needed, LONGEST)
