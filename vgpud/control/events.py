"""The daemon's events: they get sequence numbers and are passed to listeners at once.

`control.subscriptions` is the listener that sends them to subscribers of the control API.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from vgpud.control.models import Event
from vgpud.publish import Json


class Events:
    """The daemon's events, in order."""

    def __init__(self) -> None:
        self.sequence = 0
        """The number of the last event; 0 before the first."""
        self._listeners: list[Callable[[Event], None]] = []

    def listen(self, listener: Callable[[Event], None]) -> None:
        """Pass every event from now on to `listener`, which must neither wait nor raise."""
        self._listeners.append(listener)

    def publish(
        self,
        kind: str,
        message: str,
        *,
        device: str | None = None,
        resource: int | None = None,
        **data: Json,
    ) -> None:
        """Publish an event; `message` is for people, `data` for programs, in JSON's types."""
        self.sequence += 1
        event = Event(
            sequence=self.sequence,
            time=time.time(),
            kind=kind,
            device=device,
            resource=resource,
            # A lone surrogate, as in a file name that is not UTF-8, can't be encoded.
            message=message.encode(errors="backslashreplace").decode(),
            data=data,
        )
        for listener in self._listeners:
            listener(event)
