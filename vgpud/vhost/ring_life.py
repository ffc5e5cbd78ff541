"""The life of a ring as a table of transitions.

Source: the vhost-user specification, "Starting and stopping rings".
"""

from __future__ import annotations

from enum import Enum, auto
from typing import Final


class RingLife(Enum):
    """A ring's state.

    STOPPED: the front-end has not set everything that the ring needs. READY: it can be started.
    RUNNING: it is served. BROKEN: it was found malformed, and has to be stopped or set up again
    before it can be started.
    """

    STOPPED = auto()
    READY = auto()
    RUNNING = auto()
    BROKEN = auto()


class RingEvent(Enum):
    """What changes a ring's state.

    SET: the front-end has changed the ring's setup, which is complete now. UNSET: the front-end has
    changed it, and it is not complete. START: the device serves the ring from now on. STOP:
    VRING_ENABLE 0, GET_VRING_BASE, or a reset. BREAK: the ring is malformed, or its memory is no
    longer shared.
    """

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
    # A ring that runs may get another kick, call or address, and continues with it.
    (RingLife.RUNNING, RingEvent.SET): RingLife.RUNNING,
    (RingLife.RUNNING, RingEvent.UNSET): RingLife.RUNNING,
    (RingLife.RUNNING, RingEvent.STOP): RingLife.READY,
    (RingLife.RUNNING, RingEvent.BREAK): RingLife.BROKEN,
    # A front-end can repair a broken ring by setting it up again; a guest can't.
    (RingLife.BROKEN, RingEvent.SET): RingLife.READY,
    (RingLife.BROKEN, RingEvent.UNSET): RingLife.STOPPED,
    (RingLife.BROKEN, RingEvent.STOP): RingLife.READY,
    (RingLife.BROKEN, RingEvent.BREAK): RingLife.BROKEN,
}


def step(life: RingLife, event: RingEvent) -> RingLife:
    """Return the next state; raise `ValueError` for an impossible event, which is a bug."""
    following = TRANSITIONS.get((life, event))
    if following is None:
        raise ValueError(f"{event.name} of a ring that is {life.name}")
    return following
