"""Calls to answers, without a socket: what may go wrong, and the answer for each kind of error."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Awaitable
from typing import Any

import pytest

from vgpud.control.call import Caller, Handler, refused
from vgpud.control.dispatch import Dispatcher
from vgpud.control.fitting import MAX_REPLY
from vgpud.control.models import Done, ErrorKind
from vgpud.control.params import AttachAgent, Nothing, Resize
from vgpud.control.rpc import ErrorCode, decode
from vgpud.errors import ConfigError, HostError, PeerError, RingError

CALLER = Caller("/run/me", 1, 2, 3)


def answer(handlers: dict[str, Handler], message: bytes) -> Any:
    """What goes back, None if nothing does."""
    outgoing = asyncio.run(Dispatcher(handlers, lambda *_: None).answer(decode(message), CALLER))
    return None if outgoing is None else json.loads(outgoing.data)


def call(handlers: dict[str, Handler], method: str, params: object) -> Any:
    value = {"jsonrpc": "2.0", "method": method, "id": 1, "params": params}
    return answer(handlers, json.dumps(value).encode())


def raising(error: Exception) -> Handler:
    def handler(params: Nothing, caller: Caller) -> Done:
        raise error

    return handler


@pytest.mark.parametrize(
    ("error", "data"),
    [
        (HostError("it", OSError(13, "")), {"kind": "host", "errno": 13}),
        (RingError("bad"), {"kind": "guest"}),
        (ConfigError("bad"), {"kind": "config"}),
        (PeerError("bad"), {"kind": "peer"}),
        (refused(ErrorKind.BUSY, "taken", who=7), {"kind": "busy", "who": 7}),
    ],
)
@pytest.mark.parametrize("waits", [False, True])
def test_an_error_of_ours_has_a_kind(error: Exception, data: object, waits: bool) -> None:
    plain = raising(error)

    async def later(params: Nothing, caller: Caller) -> Done:
        await asyncio.sleep(0)
        result: Done = plain(params, caller)  # type: ignore[assignment]
        return result

    handler: Handler = later if waits else plain
    reply = call({"config.reload": handler}, "config.reload", {})
    assert reply["error"] == {"code": -32000, "message": str(error), "data": data}


@pytest.mark.parametrize("error", [RuntimeError("secret"), KeyError("secret"), RecursionError()])
def test_a_bug_is_an_internal_error_and_logged(
    error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    reply = call({"config.reload": raising(error)}, "config.reload", {})
    assert reply["error"]["code"] == ErrorCode.INTERNAL_ERROR
    assert "secret" not in reply["error"]["message"]
    assert "config.reload" in caplog.text
    assert type(error).__name__ in caplog.text


def test_a_result_that_json_has_no_words_for_is_a_bug(caplog: pytest.LogCaptureFixture) -> None:
    def handler(params: Nothing, caller: Caller) -> Any:
        return object()

    reply = call({"config.reload": handler}, "config.reload", {})
    assert reply["error"]["code"] == ErrorCode.INTERNAL_ERROR
    assert "not encoded" in caplog.text


def _resized(params: Resize, caller: Caller) -> Done:
    assert (params.device, params.width, params.height, params.scanout) == ("gpu0", 640, 480, 1)
    return Done()


RESIZE: dict[str, Handler] = {"device.resize": _resized}


@pytest.mark.parametrize(
    "params",
    [
        {"device": "gpu0", "width": 640, "height": 480, "scanout": 1},
        ["gpu0", 640, 480, 1],
    ],
)
def test_parameters_by_name_or_by_place(params: object) -> None:
    assert call(RESIZE, "device.resize", params)["result"] == {}


@pytest.mark.parametrize(
    ("params", "texts"),
    [
        ({}, ["device is missing", "width is missing", "height is missing"]),
        (["gpu0", 5, 10_000], ["width is 5", "or equal to 32", "height is 10000", "8192"]),
        (["gpu0", True, 640.0], ["width is true", "height is 640.0", "integer"]),
        (["gpu0", "640", None], ['width is "640"', "height is null"]),
        (["gpu0", [[[]]], {}], ["width is an array", "height is an object"]),
        (["gpu0", 10**4000, 480], ["width is a huge number"]),
        (["", 640, 480], ['device is ""', "at least 1 character"]),
        (["\ud800", 640, 480], ['device is "\\ud800"']),
        (["x" * 5000, 640, 480], ['device is "xxxx', "at most 63"]),
        (["gpu0", 640, 480, 1, 2], ["takes device, width, height, scanout, not 5 values"]),
        ({"\ud800": 1}, ["\\ud800"]),
        (
            {"device": "gpu0", "width": 640, "height": 480, "depth": 24},
            ["depth is unknown", "device, width, height, scanout"],
        ),
        ({f"k{number}": 1 for number in range(3000)}, ["device is missing", "and 2995 more"]),
    ],
)
def test_wrong_parameters_are_named_with_what_is_allowed(params: object, texts: list[str]) -> None:
    error = call(RESIZE, "device.resize", params)["error"]
    assert error["code"] == ErrorCode.INVALID_PARAMS
    assert len(error["message"]) < 1000
    for text in texts:
        assert text in error["message"].encode("ascii", "backslashreplace").decode()


def test_an_infinite_number_and_deep_nesting_are_wrong_parameters() -> None:
    for value in (b"1e999", b"-1e999", b"[" * 500 + b"]" * 500):
        message = b'{"jsonrpc":"2.0","method":"device.resize","id":1,"params":["g",%s,480]}'
        assert answer(RESIZE, message % value)["error"]["code"] == ErrorCode.INVALID_PARAMS


def test_arrays_are_taken_where_a_tuple_is_meant() -> None:
    seen = []

    def attach(params: AttachAgent, caller: Caller) -> Done:
        seen.append(params.vm_setup)
        return Done()

    params = {"device": "g", "guest_phys_addr": None, "first_slot": 1, "slot_count": 1}
    setups = [["non-coherent-vfio"], ["warp"], "x"]
    replies = [
        call({"agent.attach": attach}, "agent.attach", params | {"vm_setup": setup})
        for setup in setups
    ]
    assert seen == [("non-coherent-vfio",)]
    assert [reply.get("error", {}).get("code") for reply in replies] == [None, -32602, -32602]


def test_calls_of_a_batch_wait_at_the_same_time() -> None:
    """Each waits for the other; one that waits does not hold up those after it."""
    met: dict[str, asyncio.Event] = {}

    def meet(own: str, other: str) -> Handler:
        async def handler(params: Nothing, caller: Caller) -> Done:
            met.setdefault(own, asyncio.Event()).set()
            await asyncio.wait_for(met.setdefault(other, asyncio.Event()).wait(), 5)
            return Done()

        return handler

    handlers = {"config.reload": meet("a", "b"), "daemon.info": meet("b", "a")}
    reply = answer(
        handlers,
        b'[{"jsonrpc":"2.0","method":"config.reload","id":"a"},7,'
        b'{"jsonrpc":"2.0","method":"daemon.info","id":"b"},'
        b'{"jsonrpc":"2.0","method":"config.reload"}]',
    )
    assert [(one["id"], "result" in one) for one in reply] == [
        ("a", True),
        (None, False),
        ("b", True),
    ]


@pytest.mark.parametrize("batch", [b"%s", b"[%s]", b"[%s,%s]"])
def test_notifications_are_done_and_not_answered(batch: bytes) -> None:
    done = []

    async def later(params: Nothing, caller: Caller) -> Done:
        done.append(caller)
        raise HostError("it", OSError(1, ""))

    notes = [b'{"jsonrpc":"2.0","method":"config.reload"}'] * batch.count(b"%s")
    assert answer({"config.reload": later}, batch % tuple(notes)) is None
    assert done == [CALLER] * len(notes)


def test_a_method_with_a_descriptor_has_no_effect_in_a_batch() -> None:
    done = []

    def export(params: Any, caller: Caller) -> Awaitable[Done]:
        done.append(params)
        raise AssertionError

    one = b'{"jsonrpc":"2.0","method":"blob.export","params":["gpu0",1]%s}'
    batch = b"[" + one % b"" + b"," + one % b',"id":1' + b"]"
    [reply] = answer({"blob.export": export}, batch)
    assert reply["error"]["data"]["kind"] == "not-possible"
    assert not done


def test_a_long_method_name_is_cut_in_the_answer() -> None:
    error = call({}, "m" * 60_000, {})["error"]
    assert error["code"] == ErrorCode.METHOD_NOT_FOUND
    assert len(error["message"]) < 200


def test_whatever_a_batch_says_back_fits_into_a_datagram() -> None:
    one = {"jsonrpc": "2.0", "method": "m" * 900, "id": "i" * 100}
    message = json.dumps([one] * 60).encode()
    outgoing = asyncio.run(Dispatcher({}, lambda *_: None).answer(decode(message), CALLER))
    assert outgoing is not None
    assert len(outgoing.data) <= MAX_REPLY
    assert len(json.loads(outgoing.data)) == 60


@pytest.mark.parametrize(
    "message",
    [
        b"[" + b"1," * 30_000 + b"1]",
        b"[" + b'{"jsonrpc":"2.0","method":"a","id":1},' * 1500 + b"1]",
        b'{"jsonrpc":"2.0","method":"daemon.info","id":1,"params":{%s}}'
        % b",".join(b'"k%d":1' % number for number in range(5000)),
        b'{"jsonrpc":"2.0","method":"events.subscribe","id":1,"params":{"kinds":[%s]}}'
        % b",".join([b"1"] * 30_000),
        b'{"jsonrpc":"2.0","method":"events.subscribe","id":1,"params":[[%s]]}'
        % b",".join([b"1"] * 30_000),
    ],
    ids=["values", "batch", "parameters", "array", "array by position"],
)
def test_many_faults_are_not_looked_at_one_by_one(message: bytes) -> None:
    def info(params: Any, caller: Caller) -> Done:
        return Done()

    handlers: dict[str, Handler] = {"daemon.info": info, "events.subscribe": info}
    times = []
    for _ in range(5):
        began = time.thread_time()
        replied = answer(handlers, message)
        times.append(time.thread_time() - began)
        assert replied["error"]["code"] in {ErrorCode.INVALID_REQUEST, ErrorCode.INVALID_PARAMS}
    assert min(times) < 0.008  # it took 20 to 80 ms; most of it is now reading the JSON
