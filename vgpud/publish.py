"""Events as they are published: how a part of the daemon says what has happened, in JSON's types.

`control.events` numbers them and hands them to subscribers.
"""

from __future__ import annotations

from typing import Any, Protocol, TypeAlias

Json: TypeAlias = Any
"""What json can say. Values of this type are to be validated before they are used."""


class Publish(Protocol):
    """Publishes events of one device."""

    def __call__(
        self, kind: str, message: str, *, resource: int | None = None, **data: Json
    ) -> None:
        """Publish an event: `message` is for people, `data` for programs."""


def unheard(kind: str, message: str, *, resource: int | None = None, **data: Json) -> None:
    """Publish nothing, for a device without subscribers."""
