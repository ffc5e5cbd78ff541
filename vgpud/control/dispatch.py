"""The dispatch of calls: it validates parameters, calls handlers and translates errors to JSON-RPC.

Source: the JSON-RPC 2.0 specification, sections 4 to 6.
"""

from __future__ import annotations

import asyncio
import inspect
import json
import logging
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Final, TypeAlias

from pydantic import BaseModel, ValidationError

from vgpud.control.call import Caller, Handler, Handlers, Reply, refused
from vgpud.control.fitting import INTERNAL_ERROR, Answer, Outgoing, fit
from vgpud.control.lane import Lane
from vgpud.control.methods import METHODS, Method
from vgpud.control.models import ErrorKind
from vgpud.control.params import Params
from vgpud.control.rpc import Call, ErrorCode, Failure, Incoming, RpcError
from vgpud.errors import ConfigError, HostError, PeerError, RingError, VgpudError, stored
from vgpud.publish import Json

_log = logging.getLogger(__name__)

_MAX_SHOWN: Final = 60
"""Characters of a caller's value in a message."""
_MAX_FAULTS: Final = 8
"""Faults of one call that are listed in its answer."""
_MAX_ITEMS: Final = 64
"""Unknown parameters of one call that are looked at, and values that an array may have: each fault
takes some time."""


Check: TypeAlias = Callable[[Method, Params, Caller], None]
"""A function that raises RpcError if the caller may not call the method with these parameters."""


class Dispatcher:
    """The table of handlers, by method, each of which is called only after `check`.

    Raises ValueError for a method that METHODS lacks.
    """

    def __init__(self, handlers: Handlers, check: Check, lane: Lane | None = None) -> None:
        self._lane = lane or Lane()
        self._handlers: dict[str, Handler] = {}
        self._check = check
        self.add(handlers)

    def add(self, handlers: Handlers) -> None:
        """Add handlers. Raises ValueError for a method that METHODS lacks."""
        if unknown := handlers.keys() - METHODS.keys():
            raise ValueError(f"not in METHODS: {sorted(unknown)}")
        self._handlers.update(handlers)

    async def answer(self, incoming: Incoming, caller: Caller) -> Outgoing | None:
        """Serve the calls of a message, and return the answer, or None if there is none."""
        if incoming.batch:
            answers = await self._answer_batch(incoming, caller)
        else:
            answers = [await self._answer(call, caller) for call in incoming.calls]
        answers = [answer for answer in answers if not answer.suppressed]
        if not answers:
            return None
        return self._lane.count(partial(fit, answers, batch=incoming.batch))

    async def _answer_batch(self, incoming: Incoming, caller: Caller) -> list[Answer]:
        async with asyncio.TaskGroup() as group:
            tasks = []
            for call in incoming.calls:
                tasks.append(group.create_task(self._answer(call, caller, alone=False)))
                await asyncio.sleep(0)  # calls start in their order
        return [task.result() for task in tasks]

    async def _answer(self, call: Call | Failure, caller: Caller, *, alone: bool = True) -> Answer:
        if isinstance(call, Failure):
            return Answer(call.id, call.error)
        try:
            work = self._value(call, caller, alone=alone)
            value = await _within(call, self._lane.run(caller.uid, work))
        except VgpudError as error:
            # A task may keep the error, and its traceback would keep the caller's socket.
            return Answer(call.id, as_rpc_error(stored(error)), suppressed=call.notification)
        except Exception:
            _log.exception("control method failed method=%s", call.method)
            return Answer(call.id, INTERNAL_ERROR, suppressed=call.notification)
        if isinstance(value, Reply):
            if call.notification:  # it is not in a batch: `_value` refuses that
                value.fd.close()
                return Answer(call.id, value.value, suppressed=True)
            return Answer(call.id, value.value, value.fd)
        return Answer(call.id, value, suppressed=call.notification)

    async def _value(self, call: Call, caller: Caller, *, alone: bool) -> BaseModel | Reply:
        handler = self._handlers.get(call.method)
        if handler is None:
            text = f"no method {_shown(call.method)}; rpc.discover lists the methods"
            raise RpcError(ErrorCode.METHOD_NOT_FOUND, text)
        method = METHODS[call.method]
        params = _params(method.params, call)
        if method.fd is not None and not alone:
            text = f"{method.name} answers with a descriptor: call it alone, not in a batch"
            raise refused(ErrorKind.NOT_POSSIBLE, text)
        self._check(method, params, caller)
        value = handler(params, caller)
        if inspect.isawaitable(value):
            value = await value
        return value


async def _within(call: Call, working: Awaitable[BaseModel | Reply]) -> BaseModel | Reply:
    """Wait for a handler as long as the call says; what is not done by then is cancelled."""
    try:
        async with asyncio.timeout(call.timeout) as limit:
            return await working
    except TimeoutError:
        if not limit.expired():
            raise
        text = (
            f"{call.method} was not done in {call.timeout:g} seconds, and was given up: what it"
            " waits for, such as the VMM, may be stopped or busy"
        )
        raise refused(ErrorKind.TIMED_OUT, text) from None


def as_rpc_error(error: VgpudError) -> RpcError:
    """Return an error of vgpud as the JSON-RPC error that a caller gets."""
    match error:
        case RpcError():
            return error
        case HostError():
            return refused(ErrorKind.HOST, str(error), errno=error.errno)
        case RingError():
            return refused(ErrorKind.GUEST, str(error))
        case ConfigError():
            return refused(ErrorKind.CONFIG, str(error))
        case PeerError():
            return refused(ErrorKind.PEER, str(error))
        case _:
            return refused(ErrorKind.HOST, str(error))


def _params(model: type[Params], call: Call) -> Params:
    names = list(model.model_fields)
    given = call.params
    if isinstance(given, list):
        if len(given) > len(names):
            text = f"{call.method} takes {_listed(names)}, not {len(given)} values"
            raise RpcError(ErrorCode.INVALID_PARAMS, text)
        given = dict(zip(names, given, strict=False))
    _check_lengths(call.method, given)
    unknown = [name for name in given if name not in names]
    left_out = unknown[_MAX_ITEMS:]
    if left_out:
        given = {name: given[name] for name in (*names, *unknown[:_MAX_ITEMS]) if name in given}
    try:
        return model.model_validate(given)
    except ValidationError as error:
        faults = error.errors(include_url=False, include_context=False)
        texts = [_fault(fault, names) for fault in faults[:_MAX_FAULTS]]
        if (more := len(faults) - len(texts) + len(left_out)) > 0:
            texts.append(f"and {more} more")
        text = f"{call.method}: {'; '.join(texts)}"
    # Not in the context of that error: the errors of validators in it keep their frames.
    raise RpcError(ErrorCode.INVALID_PARAMS, text)


def _check_lengths(method: str, given: dict[str, Json]) -> None:
    """Raise RpcError for an array of so many values that to check each would take long."""
    for name, value in given.items():
        if isinstance(value, list) and len(value) > _MAX_ITEMS:
            text = f"{method}: {_shown(name)} has {len(value)} values, at most {_MAX_ITEMS}"
            raise RpcError(ErrorCode.INVALID_PARAMS, text)


def _fault(fault: Json, names: list[str]) -> str:
    first, *rest = fault["loc"] or ("params",)
    field = f"{first}"[:_MAX_SHOWN] + "".join(f"[{index}]"[:_MAX_SHOWN] for index in rest)
    match fault["type"]:
        case "missing":
            return f"{field} is missing"
        case "extra_forbidden":
            return f"{field} is unknown: it takes {_listed(names)}"
    text = fault["msg"].replace("tuple", "array").replace(" after validation", "")
    return f"{field} is {_shown(fault['input'])}: {text[:1].lower()}{text[1:]}"


def _listed(names: list[str]) -> str:
    return ", ".join(names) or "no parameters"


def _shown(value: Json) -> str:
    match value:
        case dict():
            return "an object"
        case list() | tuple():
            return "an array"
        case bool():
            return json.dumps(value)
        case float():
            return str(value)  # it may be infinite, which JSON can't express
        case int():
            # Writing out a number of thousands of digits would take long.
            return str(value) if abs(value) < 1 << 70 else "a huge number"
        case str():
            text = json.dumps(value[: _MAX_SHOWN + 1])
            return text if len(value) <= _MAX_SHOWN else f"{text[:_MAX_SHOWN]}..."
        case _:
            return json.dumps(value)
