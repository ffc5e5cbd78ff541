"""Calls of the control API with their answers as models, listings whole.

Both are checked against what this version of vgpud knows; a daemon may be of another.
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
    """The result of a method; raises PeerError if it is not a `model`."""
    return checked(client.call(method, params), model, method)


def listing(
    client: Client, method: str, model: type[Answer], params: dict[str, Json] | None = None
) -> tuple[Answer, ...]:
    """All items of a listing; raises PeerError if one is not a `model`.

    One that changes meanwhile is shown as its pages were: an item may be missing, or come twice.
    """
    return tuple(checked(item, model, method) for item in client.pages(method, params))


def metrics(client: Client) -> Metrics:
    """All of the daemon's metrics, in one."""
    text, part = "", ask(client, "metrics.get", Metrics)
    while part.text:
        text += part.text
        if part.offset + len(part.text) >= part.total:
            break
        part = ask(client, "metrics.get", Metrics, {"offset": part.offset + len(part.text)})
    return part.model_copy(update={"text": text, "offset": 0, "total": len(text)})


def checked(value: Json, model: type[Answer], method: str) -> Answer:
    """A result as its model; raises PeerError if it is none."""
    try:
        return model.model_validate(value)
    except ValidationError as error:
        raise PeerError(
            f"{method}: the daemon's answer is not what this version of vgpud expects of it;"
            " is the daemon of another version?"
        ) from error


def events(client: Client, kinds: Sequence[str], device: str | None) -> Generator[Event]:
    """Events from now on, until the iterator is closed; raises HostError once the daemon is gone,
    and PeerError if what comes is no event."""
    with closing(client.events(kinds, device)) as values:
        for value in values:
            yield checked(value, Event, "event")


def has_file(method: str) -> bool:
    """Whether a file comes with the answer to a method that is known here."""
    return method in METHODS and METHODS[method].fd is not None
