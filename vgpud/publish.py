"""The interface by which parts of the daemon publish events, and the type of JSON values.

`control.events` numbers events and passes them to subscribers.
"""

from __future__ import annotations

from typing import Any, Protocol, TypeAlias

Json: TypeAlias = Any
"""Any JSON value. Code must validate a value of this type before it uses it."""


class Publish(Protocol):
    """A function that publishes events of one device."""

    def __call__(
        self, kind: str, message: str, *, resource: int | None = None, **data: Json
    ) -> None:
        """Publish an event; `message` is for people, `data` for programs."""


def unheard(kind: str, message: str, *, resource: int | None = None, **data: Json) -> None:
    """Ignore an event, for a device without subscribers."""
