"""A new virtio-gpu command is one class: declared here, it is decoded, checked and encoded."""

from __future__ import annotations

from collections.abc import Iterator
from enum import IntEnum
from typing import cast

import pytest

from vgpud.gpu.errors import Unspecified
from vgpud.gpu.wire.command_codec import COMMANDS, Command, command, decode, encode
from vgpud.gpu.wire.header import Header, Rect
from vgpud.gpu.wire.protocol import CommandType, ContextId, ResourceId
from vgpud.gpu.wire.value import value


class ToyType(IntEnum):
    TOY = 0x1FF


TOY = cast("CommandType", ToyType.TOY)


@value
class Toy(Command):
    """Paint a rectangle of a resource."""

    header: Header
    rect: Rect
    resource_id: ResourceId
    colour: int


@pytest.fixture(autouse=True)
def declared() -> Iterator[None]:
    assert command(TOY, "I4xQ", shape=Rect)(Toy) is Toy
    yield
    del COMMANDS[TOY]


REQUEST = bytes.fromhex(
    "ff010000 00000000 0000000000000000 05000000 00000000"
    "01000000 02000000 03000000 04000000 0a000000 00000000 8877665544332211"
)
HEADER = Header(TOY, ctx_id=ContextId(5))
VALUE = Toy(HEADER, Rect(1, 2, 3, 4), ResourceId(10), 0x1122334455667788)


def test_it_is_read_and_written() -> None:
    assert decode(REQUEST) == VALUE
    assert type(decode(memoryview(REQUEST + b"\xff"))) is Toy
    assert encode(VALUE) == REQUEST


@pytest.mark.parametrize("size", range(len(REQUEST)))
def test_it_is_not_read_from_less(size: int) -> None:
    with pytest.raises(Unspecified):
        decode(REQUEST[:size])


def test_a_type_is_declared_once() -> None:
    with pytest.raises(ValueError, match="TOY is declared twice"):
        command(TOY)(Toy)
