"""The life of a ring as a table of transitions.

Source: the vhost-user specification, "Starting and stopping rings".
"""

from __future__ import annotations

from enum import Enum, auto
from typing import Final


class RingLife(Enum):
    """STOPPED: something that the ring needs has not been said yet. READY: it can be started.
    RUNNING: it is served. BROKEN: it was found malformed, and has to be stopped before it can be
    started again."""

    STOPPED = auto()
    READY = auto()
    RUNNING = auto()
    BROKEN = auto()


class RingEvent(Enum):
    """SET: the front-end has said something of the ring, and nothing is missing now. UNSET: it has,
    and something is missing. START: the device serves it from now on. STOP: VRING_ENABLE 0,
    GET_VRING_BASE, or a reset. BREAK: a driver wrote what no driver may, or the memory is gone."""

    SET = auto()
    UNSET = auto()
    START = auto()
    STOP = auto()
    BREAK = auto()


TRANSITIONS: Final[dict[tuple[RingLife, RingEvent], RingLife]] = {
    (RingLife.STOPPED, RingEvent.SET): RingLife.READY,
    (RingLife.STOPPED, RingEvent.UNSET): RingLife.STOPPED,
    (RingLife.STOPPED, RingEvent.STOP): RingLife.STOPPED,
    (RingLife.READY, RingEvent.SET): RingLife.READY,
    (RingLife.READY, RingEvent.UNSET): RingLife.STOPPED,
    (RingLife.READY, RingEvent.START): RingLife.RUNNING,
    (RingLife.READY, RingEvent.STOP): RingLife.READY,
    (RingLife.READY, RingEvent.BREAK): RingLife.BROKEN,
    # A ring that runs may get another kick, call or address, and goes on with it.
    (RingLife.RUNNING, RingEvent.SET): RingLife.RUNNING,
    (RingLife.RUNNING, RingEvent.UNSET): RingLife.RUNNING,
    (RingLife.RUNNING, RingEvent.STOP): RingLife.READY,
    (RingLife.RUNNING, RingEvent.BREAK): RingLife.BROKEN,
    # What a front-end says of a broken ring can mend it; what a guest does can't.
    (RingLife.BROKEN, RingEvent.SET): RingLife.READY,
    (RingLife.BROKEN, RingEvent.UNSET): RingLife.STOPPED,
    (RingLife.BROKEN, RingEvent.STOP): RingLife.READY,
    (RingLife.BROKEN, RingEvent.BREAK): RingLife.BROKEN,
}


def step(life: RingLife, event: RingEvent) -> RingLife:
    """Return what follows; raise `ValueError` for an event that can't come then, a bug of ours."""
    following = TRANSITIONS.get((life, event))
    if following is None:
        raise ValueError(f"{event.name} of a ring that is {life.name}")
    return following
