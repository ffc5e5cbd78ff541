"""Answers that fit into a datagram: long listings get fewer items, other answers become errors.

There is no I/O, except that a descriptor that can't be sent is closed.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from pydantic import BaseModel

from vgpud.control.call import refused
from vgpud.control.models import ErrorKind, Model, Page
from vgpud.control.rpc import CallId, ErrorCode, Failure, Result, RpcError, encode
from vgpud.unix.fd import Fd

_log = logging.getLogger(__name__)

MAX_REPLY: Final = 64 << 10
"""Bytes of a datagram to a client, so that clients know how much to read at once. It fits into the
send buffer of any system."""

_TOO_LARGE: Final = refused(
    ErrorKind.TOO_LARGE,
    f"the answer does not fit into a datagram of {MAX_REPLY} bytes; ask for less at once",
)
INTERNAL_ERROR: Final = RpcError(
    ErrorCode.INTERNAL_ERROR, "internal error; the daemon's log has more"
)


@dataclass(frozen=True, slots=True)
class Answer:
    """The answer to a call; `suppressed` if the call was a notification."""

    id: CallId
    value: BaseModel | RpcError
    fd: Fd | None = None
    suppressed: bool = False


@dataclass(frozen=True, slots=True)
class Outgoing:
    """A datagram to a client, with its descriptor."""

    data: bytes
    fd: Fd | None = None


def fit(answers: Sequence[Answer], *, batch: bool) -> Outgoing:
    """Encode answers as one datagram of at most MAX_REPLY bytes; earlier ones get room first.

    It takes the descriptor of an answer that is alone; answers in a batch have none.
    """
    needs = [len(_error(answer.id, _TOO_LARGE)) for answer in answers]
    room = MAX_REPLY - sum(needs) - len(needs) - 1  # commas and brackets
    if room < 0:
        # The calls' ids alone are too long.
        answers, needs, batch = [Answer(None, _TOO_LARGE, answers[0].fd)], [0], False
        room = MAX_REPLY
    texts = []
    fd = None
    for answer, need in zip(answers, needs, strict=True):
        encoded = _encoded(answer, room + need)
        text = _error(answer.id, encoded) if isinstance(encoded, RpcError) else encoded
        if answer.fd is None or not isinstance(encoded, RpcError):
            fd = answer.fd
        else:
            answer.fd.close()
        room -= len(text) - need
        texts.append(text)
    return Outgoing(b"[" + b",".join(texts) + b"]" if batch else texts[0], fd)


def _encoded(answer: Answer, room: int) -> bytes | RpcError:
    """Return the answer in at most `room` bytes, or the error to send instead."""
    if isinstance(answer.value, RpcError):
        fits = len(_error(answer.id, answer.value)) <= room
        return answer.value if fits else _TOO_LARGE
    try:
        if isinstance(answer.value, Page):
            text = _page(answer.id, answer.value, room)
        else:
            text = encode([Result(answer.id, answer.value.model_dump(mode="json"))])
    except Exception:
        # JSON can't express it.
        _log.exception("control result not encoded")
        return INTERNAL_ERROR
    return text if len(text) <= room else _TOO_LARGE


def _page(call_id: CallId, page: Page[Model], room: int) -> bytes:
    """Encode a listing's first items that fit into `room`, and at least one.

    Items that do not fit are not encoded, so that a batch of long listings costs no more than one.
    """
    around = page.model_copy(update={"items": ()}).model_dump(mode="json")
    room -= len(encode([Result(call_id, around)]))
    items: list[bytes] = []
    for item in page.items:
        text = item_text(item)
        room -= len(text) + 1  # 1 for a comma
        if room < -1 and items:
            break
        items.append(text)
    before, after = encode([Result(call_id, around | {"items": [_HERE]})]).rsplit(_PLACE, 1)
    return before + b",".join(items) + after


def item_text(item: Model) -> bytes:
    """Encode an item of a listing, in ASCII as everything else."""
    text = item.model_dump_json()
    if not text.isascii():
        text = json.dumps(item.model_dump(mode="json"), separators=(",", ":"), allow_nan=False)
    return text.encode("ascii")


def _error(call_id: CallId, error: RpcError) -> bytes:
    return encode([Failure(call_id, error)])


_HERE: Final = "items"
_PLACE: Final = b'"' + _HERE.encode() + b'"'
