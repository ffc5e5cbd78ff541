"""A new vhost-user request is one class: declared here, it is decoded, checked and answered."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from tests.vhost.wire.peer import Peer, broken, raw
from vgpud.vhost.wire.protocol import FrontEndRequest
from vgpud.vhost.wire.replies import U64Reply
from vgpud.vhost.wire.requests import (
    REQUESTS,
    Request,
    decode_reply,
    decode_request,
    encode_request,
    request,
)


@dataclass(frozen=True, slots=True)
class Toy(Request):
    """Ask for the product of two numbers, and bring one descriptor."""

    first: int
    second: int


NUMBER = FrontEndRequest.IOTLB_MSG  # has a number, needs no feature, and is no message of ours


@pytest.fixture(autouse=True)
def declared() -> Iterator[None]:
    assert request(NUMBER, "=IQ", max_fds=1, reply=U64Reply)(Toy) is Toy
    yield
    del REQUESTS[NUMBER]


def test_it_is_written_and_read() -> None:
    payload = bytes.fromhex("03000000 0500000000000000")
    assert encode_request(Toy(3, 5)) == raw(22, 1, payload)
    assert decode_request(NUMBER, payload) == Toy(3, 5)
    assert decode_reply(NUMBER, bytes([15, *bytes(7)])) == U64Reply(15)


def test_it_is_received_and_answered() -> None:
    peer = Peer()
    received = peer.ask(Toy(3, 5), (7,))
    assert received.message == Toy(3, 5)
    assert received.handles == (7,)
    assert received.need_reply
    assert peer.session.reply(received, U64Reply(15)) == raw(22, 5, bytes([15, *bytes(7)]))


def test_its_size_and_its_descriptors_are_checked() -> None:
    broken(Peer(), r"IOTLB_MSG \(22\) has a payload of 8 bytes", raw(22, payload=bytes(8)))
    broken(Peer(), r"IOTLB_MSG \(22\) has 0 fds, must have 1", encode_request(Toy(3, 5)))
    broken(Peer(), r"IOTLB_MSG \(22\) has 2 fds", encode_request(Toy(3, 5)), (7, 8))


def test_a_number_is_declared_once() -> None:
    with pytest.raises(ValueError, match=r"IOTLB_MSG \(22\) is declared twice"):
        request(NUMBER)(Toy)
