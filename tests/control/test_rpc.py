"""JSON-RPC 2.0: the envelope, both ways, whole, truncated and hostile."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vgpud.control.rpc import (
    MAX_BATCH,
    MAX_OBJECTS,
    Call,
    ErrorCode,
    Failure,
    Incoming,
    Result,
    RpcError,
    decode,
    encode,
    encode_call,
)
from vgpud.errors import PeerError

INVALID = ErrorCode.INVALID_REQUEST
CALLS = [
    (b'{"jsonrpc":"2.0","method":"daemon.info","id":1}', Call("daemon.info", {}, 1)),
    (b'{"jsonrpc":"2.0","method":"m","params":{"a":[1]},"id":"x"}', Call("m", {"a": [1]}, "x")),
    (b'{"jsonrpc":"2.0","method":"m","params":[1,null],"id":-2}', Call("m", [1, None], -2)),
    (b'{"jsonrpc":"2.0","method":"m","id":null}', Call("m", {}, None)),
    (b'{"jsonrpc":"2.0","method":"m"}', Call("m", {}, notification=True)),
    (b'{"jsonrpc":"2.0","method":"m","id":1,"timeout":2.5}', Call("m", {}, 1, timeout=2.5)),
]
REPLIES: list[tuple[bytes, Result | Failure]] = [
    (b'{"jsonrpc":"2.0","id":1,"result":{"a":1}}', Result(1, {"a": 1})),
    (b'{"jsonrpc":"2.0","id":"x","result":null}', Result("x", None)),
    (
        b'{"jsonrpc":"2.0","id":null,"error":{"code":-32700,"message":"no"}}',
        Failure(None, RpcError(-32700, "no")),
    ),
    (
        b'{"jsonrpc":"2.0","id":2,"error":{"code":-32000,"message":"no","data":{"kind":"HostError"}}}',
        Failure(2, RpcError(-32000, "no", {"kind": "HostError"})),
    ),
]


def _plain(reply: Result | Failure) -> object:
    if isinstance(reply, Result):
        return reply
    return reply.id, reply.error.code, reply.error.message, reply.error.data


@pytest.mark.parametrize(("message", "call"), CALLS)
def test_calls_both_ways(message: bytes, call: Call) -> None:
    assert decode(message) == Incoming((call,))
    assert encode_call(call) == message


@pytest.mark.parametrize(("message", "reply"), REPLIES)
def test_replies_both_ways(message: bytes, reply: Result | Failure) -> None:
    assert encode([reply]) == message
    assert _plain(decode(message).expect_reply()) == _plain(reply)


def test_batches_both_ways() -> None:
    message = b"[" + b",".join(text for text, _ in CALLS) + b"]"
    assert decode(message) == Incoming(tuple(call for _, call in CALLS), batch=True)
    replies: list[Result | Failure] = [reply for _, reply in REPLIES]
    assert encode(replies, batch=True) == b"[" + b",".join(text for text, _ in REPLIES) + b"]"


def test_a_batch_of_one_is_answered_by_a_batch_of_one() -> None:
    assert decode(b"[" + CALLS[0][0] + b"]").batch
    assert encode([Result(1, 2)], batch=True) == b'[{"jsonrpc":"2.0","id":1,"result":2}]'


@pytest.mark.parametrize("batch", [False, True])
def test_nothing_to_say_is_no_message(batch: bool) -> None:
    assert encode([], batch=batch) == b""


@pytest.mark.parametrize(("message", "_"), CALLS)
def test_a_truncated_call_is_a_parse_error(message: bytes, _: Call) -> None:
    for length in range(len(message)):
        [failure] = decode(message[:length]).calls
        assert isinstance(failure, Failure)
        assert (failure.id, failure.error.code) == (None, ErrorCode.PARSE_ERROR)


@pytest.mark.parametrize(("message", "_"), REPLIES)
def test_a_truncated_reply_is_a_peer_error(message: bytes, _: Result | Failure) -> None:
    for length in range(len(message)):
        with pytest.raises(PeerError):
            decode(message[:length]).expect_reply()


def test_lists_in_lists_are_no_call_however_deep_the_interpreter_reads_them() -> None:
    [failure] = decode(b"[" * 50_000 + b"]" * 50_000).calls
    assert isinstance(failure, Failure)
    assert failure.id is None
    assert failure.error.code in {ErrorCode.PARSE_ERROR, ErrorCode.INVALID_REQUEST}


@pytest.mark.parametrize(
    ("message", "code", "call_id"),
    [
        (b"", ErrorCode.PARSE_ERROR, None),
        (b"\xff\xfe{}", ErrorCode.PARSE_ERROR, None),
        (b"nonsense", ErrorCode.PARSE_ERROR, None),
        (b'{"id":NaN}', ErrorCode.PARSE_ERROR, None),
        (b"[" * 50_000, ErrorCode.PARSE_ERROR, None),
        (b"9" * 5000, ErrorCode.PARSE_ERROR, None),
        (b'{"jsonrpc":"2.0","method":"m","id":1,"id":2}', ErrorCode.PARSE_ERROR, None),
        (b'{"jsonrpc":"2.0","method":"m","params":{"a":1,"a":1}}', ErrorCode.PARSE_ERROR, None),
        (b'{"jsonrpc":"2.0","method":"m","params":[Infinity]}', ErrorCode.PARSE_ERROR, None),
        (b"\xef\xbb\xbf{}", ErrorCode.PARSE_ERROR, None),
        (b"[]", ErrorCode.INVALID_REQUEST, None),
        (b"3", ErrorCode.INVALID_REQUEST, None),
        (b"null", ErrorCode.INVALID_REQUEST, None),
        (b"{}", ErrorCode.INVALID_REQUEST, None),
        (b'{"jsonrpc":"1.0","method":"m","id":4}', ErrorCode.INVALID_REQUEST, 4),
        (b'{"jsonrpc":"2.0","id":4}', ErrorCode.INVALID_REQUEST, 4),
        (b'{"jsonrpc":"2.0","method":7,"id":4}', ErrorCode.INVALID_REQUEST, 4),
        (b'{"jsonrpc":"2.0","method":"m","params":7,"id":4}', ErrorCode.INVALID_REQUEST, 4),
        (b'{"jsonrpc":"2.0","method":"m","params":null,"id":4}', ErrorCode.INVALID_REQUEST, 4),
        (b'{"jsonrpc":"2.0","method":"m","id":[4]}', ErrorCode.INVALID_REQUEST, None),
        *(
            (b'{"jsonrpc":"2.0","method":"m","id":4,"timeout":%s}' % wrong, INVALID, 4)
            for wrong in (b"0", b"-1", b"1e9", b"1e999", b'"5"', b"true", b"[1]")
        ),
        (b'{"jsonrpc":"2.0","method":"m","id":true}', ErrorCode.INVALID_REQUEST, None),
        (b'{"jsonrpc":"2.0","method":"m","id":1e999}', ErrorCode.INVALID_REQUEST, None),
    ],
)
def test_what_is_no_call(message: bytes, code: ErrorCode, call_id: int | None) -> None:
    [failure] = decode(message).calls
    assert isinstance(failure, Failure)
    assert (failure.id, failure.error.code) == (call_id, code)
    assert json.loads(encode([failure]))["error"]["code"] == code


@pytest.mark.parametrize(("message", "_"), REPLIES)
def test_an_answer_is_no_call_and_not_answered(message: bytes, _: Result | Failure) -> None:
    incoming = decode(message)
    assert incoming == Incoming((), answer=True, reply=incoming.reply)
    assert decode(b"[" + message + b"]") == Incoming((), batch=True)
    both = decode(b"[" + message + b"," + CALLS[0][0] + b"]")
    assert both == Incoming((CALLS[0][1],), batch=True)


def test_a_call_with_a_result_is_answered() -> None:
    assert decode(b'{"jsonrpc":"2.0","method":"m","id":1,"result":2}').calls == (Call("m", {}, 1),)


def test_each_bad_item_of_a_batch_fails_by_itself() -> None:
    calls = decode(b'[1,{"jsonrpc":"2.0","method":"m","id":2},{"id":3}]').calls
    assert [type(call) for call in calls] == [Failure, Call, Failure]


@pytest.mark.parametrize(
    "message",
    [
        b"{}",
        b"[]",
        b'{"jsonrpc":"2.0","id":1}',
        b'{"jsonrpc":"2.0","id":1,"result":1,"error":{"code":1,"message":"x"}}',
        b'{"jsonrpc":"2.0","id":1,"error":{"code":"1","message":"x"}}',
        b'{"jsonrpc":"2.0","id":1,"error":"x"}',
    ],
)
def test_what_is_no_reply(message: bytes) -> None:
    with pytest.raises(PeerError):
        decode(message).expect_reply()


_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8) | st.floats(),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3)
    ),
)
_envelopes = st.fixed_dictionaries(
    {},
    optional={
        "jsonrpc": st.just("2.0") | _json,
        "method": st.text() | _json,
        "params": _json,
        "id": _json,
    },
)


@given(_envelopes | st.lists(_envelopes) | _json)
def test_whatever_is_sent_can_be_answered(value: Any) -> None:
    incoming = decode(json.dumps(value).encode())
    replies = [
        call if isinstance(call, Failure) else Result(call.id, call.params)
        for call in incoming.calls
    ]
    answer = json.loads(encode(replies, batch=incoming.batch))
    assert isinstance(answer, list) == incoming.batch


@given(st.binary())
def test_no_bytes_raise(message: bytes) -> None:
    assert decode(message).calls


@pytest.mark.parametrize(
    "message",
    [
        b"[" + b"{}," * 21_800 + b"{}]",
        b'{"jsonrpc":"2.0","method":"m","id":1,"params":[' + b"{}," * 21_000 + b"{}]}",
    ],
)
def test_a_message_of_many_objects_is_refused_unread(message: bytes) -> None:
    """To read them would take ten milliseconds."""
    began = time.thread_time()
    incoming = decode(message, MAX_OBJECTS)
    assert time.thread_time() - began < 0.001
    [failure] = incoming.calls
    assert isinstance(failure, Failure)
    assert (failure.id, failure.error.code) == (None, INVALID)


def test_a_full_batch_is_read() -> None:
    call = b'{"jsonrpc":"2.0","method":"m","id":1,"params":{"a":{}}}'
    incoming = decode(b"[" + b",".join([call] * MAX_BATCH) + b"]", MAX_OBJECTS)
    assert len(incoming.calls) == MAX_BATCH
    assert all(isinstance(each, Call) for each in incoming.calls)
