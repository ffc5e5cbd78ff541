"""JSON-RPC 2.0, sans-IO, for both ends: decodes datagrams to calls and answers, and encodes them.

It has only the envelope; parameters and results of methods are in `control.methods`. Source: the
JSON-RPC 2.0 specification, sections 4 to 6.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from enum import IntEnum
from typing import Final, NoReturn, TypeAlias

from vgpud.errors import PeerError, VgpudError
from vgpud.publish import Json

CallId: TypeAlias = str | int | float | None
"""The id of a call, which its reply repeats; None (null) also for an id that could not be read."""

MAX_WAIT: Final = 86400.0
"""Seconds. The longest time-out of a call."""
MAX_BATCH: Final = 64
"""Calls. The answers to a batch, if they are short, fit into one datagram."""
MAX_OBJECTS: Final = 4 * MAX_BATCH
"""Objects of a message to a server, by its opening braces: no call has more than three, and reading
one takes a hundred times as long as copying it."""
_QUOTED: Final = 80
"""Bytes of a message that an error quotes."""


class ErrorCode(IntEnum):
    """The codes of section 5.1, and VGPUD, of the range for servers' own codes."""

    PARSE_ERROR = -32700
    INVALID_REQUEST = -32600
    METHOD_NOT_FOUND = -32601
    INVALID_PARAMS = -32602
    INTERNAL_ERROR = -32603
    VGPUD = -32000


class RpcError(VgpudError):
    """An error that a call is answered with."""

    def __init__(self, code: int, message: str, data: Json = None) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.data = data


@dataclass(frozen=True, slots=True)
class Call:
    """A request, or a notification, which is not answered even if it fails.

    `timeout` is how many seconds the server may work on it, an extension of JSON-RPC: it then gives
    the call up and answers with an error.
    """

    method: str
    params: dict[str, Json] | list[Json]
    id: CallId = None
    notification: bool = False
    timeout: float | None = None


@dataclass(frozen=True, slots=True)
class Result:
    """The answer to a call that was served."""

    id: CallId
    value: Json


@dataclass(frozen=True, slots=True)
class Failure:
    """The answer to a call that failed, or to a message that is no valid call."""

    id: CallId
    error: RpcError


@dataclass(frozen=True, slots=True)
class Incoming:
    """A decoded message: its calls in order, with a `Failure` in place of each invalid call.

    Answers are not among the calls, because answering them with errors could go on forever.
    `answer` says that the message has the form of an answer, and `reply` is that answer, or None if
    it is not valid. In a batch, answers are left out.
    """

    calls: tuple[Call | Failure, ...]
    batch: bool = False
    answer: bool = False
    reply: Result | Failure | None = None
    size: int = field(default=0, compare=False)
    """Bytes of the message."""
    start: bytes = field(default=b"", repr=False, compare=False)
    """The first bytes of the message, for an error that quotes it."""

    def expect_reply(self) -> Result | Failure:
        """Return the message as the answer to one call; raises PeerError if it is none."""
        match self.calls:
            case _ if self.reply is not None:
                return self.reply
            case (Failure(error=error),) if error.code == ErrorCode.PARSE_ERROR:
                raise PeerError(f"the reply is {error}")
        raise PeerError(f"the reply is not one of JSON-RPC 2.0: {self.start!r}")


def decode(message: bytes, max_objects: int | None = None) -> Incoming:
    """Decode a received message. It never raises: the result has `Failure`s for what is wrong.

    A message with more than `max_objects` opening braces is not read.
    """
    if max_objects is not None and message.count(b"{") > max_objects:
        text = f"a batch is at most {MAX_BATCH} calls, and a message {max_objects} objects"
        incoming = Incoming((_failure(ErrorCode.INVALID_REQUEST, text),))
    else:
        incoming = _incoming(message)
    return replace(incoming, size=len(message), start=message[:_QUOTED])


def encode(replies: Iterable[Result | Failure], *, batch: bool = False) -> bytes:
    """Encode a server's replies as one message; without replies it is empty."""
    values = [_reply(reply) for reply in replies]
    if not values:
        return b""
    return _bytes(values if batch else values[0])


def refusal(incoming: Incoming | None, error: RpcError) -> bytes:
    """Return the answer to a message that fails as a whole; no bytes for notifications."""
    if incoming is None or incoming.batch:
        return encode([Failure(None, error)])
    return encode(
        Failure(call.id, error)
        for call in incoming.calls
        if isinstance(call, Failure) or not call.notification
    )


def encode_call(call: Call) -> bytes:
    """Encode a client's call as a message."""
    value: dict[str, Json] = {"jsonrpc": "2.0", "method": call.method}
    if call.params:
        value["params"] = call.params
    if not call.notification:
        value["id"] = call.id
    if call.timeout is not None:
        value["timeout"] = min(call.timeout, MAX_WAIT)
    return _bytes(value)


def _incoming(message: bytes) -> Incoming:
    try:
        value = _json(message)
    except ValueError as error:
        return Incoming((_failure(ErrorCode.PARSE_ERROR, f"not JSON: {error}"),))
    if _is_answer(value):
        return Incoming((), answer=True, reply=_answered(value))
    if not isinstance(value, list):
        return Incoming((_call(value),))
    if not value:
        return Incoming((_failure(ErrorCode.INVALID_REQUEST, "a batch must not be empty"),))
    if len(value) > MAX_BATCH:
        text = f"a batch is at most {MAX_BATCH} calls"
        return Incoming((_failure(ErrorCode.INVALID_REQUEST, text),))
    return Incoming(tuple(_call(item) for item in value if not _is_answer(item)), batch=True)


def _call(value: Json) -> Call | Failure:
    if not isinstance(value, dict):
        return _failure(ErrorCode.INVALID_REQUEST, "a request is an object")
    call_id = value.get("id")
    if not _is_id(call_id):
        return _failure(ErrorCode.INVALID_REQUEST, "id must be a string, a number or null")
    if value.get("jsonrpc") != "2.0":
        return _failure(ErrorCode.INVALID_REQUEST, 'jsonrpc must be "2.0"', call_id)
    method, params = value.get("method"), value.get("params", {})
    if not isinstance(method, str):
        return _failure(ErrorCode.INVALID_REQUEST, "method must be a string", call_id)
    if not isinstance(params, dict | list):
        return _failure(ErrorCode.INVALID_REQUEST, "params must be an object or an array", call_id)
    timeout = value.get("timeout")
    if timeout is not None and not _is_timeout(timeout):
        text = "timeout must be a number of seconds, more than 0"
        return _failure(ErrorCode.INVALID_REQUEST, text, call_id)
    return Call(method, params, call_id, "id" not in value, timeout)


def _is_timeout(value: Json) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value <= MAX_WAIT


def _is_answer(value: Json) -> bool:
    return (
        isinstance(value, dict)
        and "method" not in value
        and ("result" in value or "error" in value)
    )


def _answered(value: Json) -> Result | Failure | None:
    match value:
        case {"jsonrpc": "2.0", "id": reply_id, "result": result, **rest} if not rest:
            return Result(reply_id, result)
        case {
            "jsonrpc": "2.0",
            "id": reply_id,
            "error": {"code": int(code), "message": str(text), **more},
            **rest,
        } if not rest:
            return Failure(reply_id, RpcError(code, text, more.get("data")))
    return None


def _is_id(value: Json) -> bool:
    if isinstance(value, float):
        return math.isfinite(value)  # 1e999 is JSON, but is read as infinity, which is not.
    return value is None or (isinstance(value, str | int) and not isinstance(value, bool))


def _failure(code: ErrorCode, message: str, call_id: CallId = None) -> Failure:
    return Failure(call_id, RpcError(code, message))


def _reply(reply: Result | Failure) -> dict[str, Json]:
    value: dict[str, Json] = {"jsonrpc": "2.0", "id": reply.id}
    if isinstance(reply, Result):
        return value | {"result": reply.value}
    error: dict[str, Json] = {"code": int(reply.error.code), "message": reply.error.message}
    if reply.error.data is not None:
        error["data"] = reply.error.data
    return value | {"error": error}


def _json(message: bytes) -> Json:
    try:
        return json.loads(
            message.decode("utf-8"), parse_constant=_no_constant, object_pairs_hook=_object
        )
    except RecursionError:
        raise ValueError("nested too deeply") from None


def _object(pairs: list[tuple[str, Json]]) -> dict[str, Json]:
    value = dict(pairs)
    if len(value) < len(pairs):
        # RFC 8259 leaves open which one counts: two readers could see different calls.
        raise ValueError("an object has a key twice")
    return value


def _no_constant(word: str) -> NoReturn:
    raise ValueError(f"{word} is not JSON")


def _bytes(value: Json) -> bytes:
    # ASCII, because a string with a lone surrogate can't be encoded as UTF-8.
    return json.dumps(value, separators=(",", ":"), allow_nan=False).encode("ascii")
