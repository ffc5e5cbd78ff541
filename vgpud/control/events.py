"""What happens in the daemon, for whoever wants to be told: numbered, and handed on at once.

Owns the sequence number. Knows nothing of sockets: subscribers of the control API are one listener
(`control.subscriptions`).
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
        """Have every event from now on handed to `listener`, which must neither wait nor raise."""
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
        """Something happened; `data` is what programs want of it, in JSON's types."""
        self.sequence += 1
        event = Event(
            sequence=self.sequence,
            time=time.time(),
            kind=kind,
            device=device,
            resource=resource,
            # Half a surrogate pair, as of a file's name that is not UTF-8, is no text.
            message=message.encode(errors="backslashreplace").decode(),
            data=data,
        )
        for listener in self._listeners:
            listener(event)
