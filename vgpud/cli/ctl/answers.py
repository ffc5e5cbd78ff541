"""Calls of the control API with answers as models, and whole listings instead of pages.

Answers are checked against the models of this version of vgpud; a daemon may be of another version.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import closing
from typing import TypeVar

from pydantic import ValidationError

from vgpud.client import Client
from vgpud.control.methods import METHODS
from vgpud.control.models import Event, Metrics, Model
from vgpud.errors import PeerError
from vgpud.publish import Json

Answer = TypeVar("Answer", bound=Model)


def ask(
    client: Client, method: str, model: type[Answer], params: dict[str, Json] | None = None
) -> Answer:
    """Call a method and return its result; raises PeerError if it is not a `model`."""
    return checked(client.call(method, params), model, method)


def listing(
    client: Client, method: str, model: type[Answer], params: dict[str, Json] | None = None
) -> tuple[Answer, ...]:
    """Return all items of a listing; raises PeerError if one is not a `model`.

    If the listing changes between its pages, an item may be missing or come twice.
    """
    return tuple(checked(item, model, method) for item in client.pages(method, params))


def metrics(client: Client) -> Metrics:
    """Return all of the daemon's metrics, as one page."""
    text, part = "", ask(client, "metrics.get", Metrics)
    while part.text:
        text += part.text
        if part.offset + len(part.text) >= part.total:
            break
        part = ask(client, "metrics.get", Metrics, {"offset": part.offset + len(part.text)})
    return part.model_copy(update={"text": text, "offset": 0, "total": len(text)})


def checked(value: Json, model: type[Answer], method: str) -> Answer:
    """Return a result as a model; raises PeerError if it is not valid."""
    try:
        return model.model_validate(value)
    except ValidationError as error:
        raise PeerError(
            f"{method}: the daemon's answer is not what this version of vgpud expects;"
            " is the daemon of another version?"
        ) from error


def events(client: Client, kinds: Sequence[str], device: str | None) -> Generator[Event]:
    """Yield events from now on, until the iterator is closed.

    Raises HostError once the daemon is gone, and PeerError if a notification is no event.
    """
    with closing(client.events(kinds, device)) as values:
        for value in values:
            yield checked(value, Event, "event")


def has_file(method: str) -> bool:
    """Return whether a method is known and has a file with its answer."""
    return method in METHODS and METHODS[method].fd is not None
