"""Native transfers: their results are right, and unusual ones are left to Python."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from vgpud.gpu.wire import commands as c
from vgpud.gpu.wire import responses
from vgpud.gpu.wire.command_codec import Command, encode
from vgpud.gpu.wire.header import Box, Header, Rect, echo
from vgpud.gpu.wire.protocol import CommandType, ContextId, Flag, ResourceId
from vgpud.native._native import ffi, lib
from vgpud.native.arrays import address_of
from vgpud.native.spans import SPAN, SpanList
from vgpud.native.transfers import MAX_IMAGES, TransferTable

WIDTH, HEIGHT = 20, 10
TO_2D, TO_3D = CommandType.TRANSFER_TO_HOST_2D, CommandType.TRANSFER_TO_HOST_3D


def spans(array: NDArray[np.uint8], piece: int) -> SpanList:
    address = address_of(array)
    starts = range(0, array.size, piece)
    return SpanList(np.array([(address + at, min(piece, array.size - at)) for at in starts], SPAN))


def execute(table: TransferTable, request: bytes) -> bytes | None:
    """The response to a command, if it is one that the fast path executes."""
    fast_path = table.fast_path.native
    response = ffi.new("uint8_t[]", lib.VGPUD_FAST_RESPONSE)
    length = fast_path.execute(fast_path.device, request, len(request), response)
    return bytes(ffi.buffer(response)[:length]) if length else None


class Images:
    """One image, 7, whose backing is in pieces of 48 bytes."""

    def __init__(self) -> None:
        self.pixels = np.zeros((HEIGHT, WIDTH, 4), np.uint8)
        self.backing = np.random.default_rng(5).integers(1, 256, WIDTH * HEIGHT * 4, np.uint8)
        self.table = TransferTable()
        self.enter(7)

    def enter(self, resource: int) -> None:
        flat = self.pixels.reshape(-1)
        self.table.add(
            resource, WIDTH, HEIGHT, spans(flat, flat.size), spans(self.backing, 48), self
        )

    def run(self, command: Command) -> bytes | None:
        """The response, or None if the command was left alone."""
        response = execute(self.table, encode(command))
        assert response is not None or not self.pixels.any()
        return response


def to_2d(rect: Rect, offset: int = 0, resource: int = 7, header: Header | None = None) -> Command:
    return c.TransferToHost2D(header or Header(TO_2D), rect, offset, ResourceId(resource))


def to_3d(box: Box, offset: int = 0, level: int = 0, stride: int = 0) -> Command:
    return c.TransferToHost3D(Header(TO_3D), box, offset, ResourceId(7), level, stride, 0)


@pytest.mark.parametrize("stride", [None, 0, WIDTH * 4, 16])
def test_a_rectangle_is_moved(stride: int | None) -> None:
    images = Images()
    command = (
        to_2d(Rect(3, 2, 4, 5), 40)
        if stride is None
        else to_3d(Box(3, 2, 0, 4, 5, 1), 40, stride=stride)
    )
    assert images.run(command) == responses.encode(responses.OkNoData(), command.header)
    expected = np.zeros_like(images.pixels)
    for row in range(5):
        at = 40 + row * (stride or WIDTH * 4)
        expected[2 + row, 3:7] = images.backing[at : at + 16].reshape(4, 4)
    assert np.array_equal(images.pixels, expected)
    assert images.table.collect() == ((1, 0, 0) if stride is None else (0, 1, 0))


def test_a_fence_is_echoed() -> None:
    images = Images()
    header = Header(TO_2D, Flag.FENCE | 0x80, 1 << 40, ContextId(3), 9)
    assert images.run(to_2d(Rect(0, 0, 1, 1), header=header)) == echo(header, 0x1100)
    assert images.table.collect() == (1, 0, 1)


LEFT_ALONE: dict[str, Command] = {
    "another command": c.ResourceFlush(
        Header(CommandType.RESOURCE_FLUSH), Rect(0, 0, 1, 1), ResourceId(7)
    ),
    "from the host": c.TransferFromHost3D(
        Header(CommandType.TRANSFER_FROM_HOST_3D),
        *(Box(0, 0, 0, 1, 1, 1), 0, ResourceId(7), 0, 0, 0),
    ),
    "a fence on a ring": to_2d(
        Rect(0, 0, 1, 1), header=Header(TO_2D, Flag.FENCE | Flag.INFO_RING_IDX)
    ),
    "another image": to_2d(Rect(0, 0, 1, 1), resource=8),
    "no width": to_2d(Rect(0, 0, 0, 1)),
    "no height": to_2d(Rect(0, 0, 1, 0)),
    "too wide": to_2d(Rect(1, 0, WIDTH, 1)),
    "too high": to_2d(Rect(0, 1, 1, HEIGHT)),
    "wraps": to_2d(Rect(1, 0, 0xFFFFFFFF, 1)),
    "wraps below": to_2d(Rect(0, 2, 1, 0xFFFFFFFF)),
    "beyond the backing": to_2d(Rect(0, 0, WIDTH, HEIGHT), 1),
    "far beyond the backing": to_2d(Rect(0, 0, 1, 1), (1 << 64) - 1),
    "rows that overlap": to_3d(Box(0, 0, 0, 4, 2, 1), stride=15),
    "rows that leave the backing": to_3d(Box(0, 0, 0, 4, 2, 1), stride=0xFFFFFFFF),
    "another layer": to_3d(Box(0, 0, 1, 1, 1, 1)),
    "more layers": to_3d(Box(0, 0, 0, 1, 1, 2)),
    "another level": to_3d(Box(0, 0, 0, 1, 1, 1), level=1),
}


@pytest.mark.parametrize("name", LEFT_ALONE)
def test_what_is_not_plain_is_left_alone(name: str) -> None:
    images = Images()
    assert images.run(LEFT_ALONE[name]) is None
    assert images.table.collect() == (0, 0, 0)


def test_of_a_device_without_renderer_only_2d_transfers_are_executed() -> None:
    images = Images()
    images.table.with_3d = False
    assert images.run(to_3d(Box(0, 0, 0, 1, 1, 1))) is None
    assert images.run(to_2d(Rect(0, 0, 1, 1))) is not None
    assert images.table.collect() == (1, 0, 0)


@pytest.mark.parametrize("length", [0, 23, 24, 55])
def test_a_short_request_is_left_alone(length: int) -> None:
    images = Images()
    request = encode(to_2d(Rect(0, 0, 1, 1)))
    assert execute(images.table, request[:length]) is None


def test_what_is_large_is_left_alone() -> None:
    table = TransferTable()
    pixels = np.zeros(256 * 256 * 4, np.uint8)
    backing = pixels.copy()
    table.add(1, 256, 256, spans(pixels, pixels.size), spans(backing, pixels.size), pixels)
    assert execute(table, encode(to_2d(Rect(0, 0, 129, 128), resource=1))) is None
    assert execute(table, encode(to_2d(Rect(0, 0, 128, 128), resource=1))) is not None


def test_images_come_and_go() -> None:
    images = Images()
    for resource in range(8, 7 + MAX_IMAGES):
        images.enter(resource)
    assert len(images.table) == MAX_IMAGES
    images.table.remove(9)
    images.table.remove(9)
    assert 9 not in images.table
    assert images.run(to_2d(Rect(0, 0, 1, 1), resource=9)) is None
    assert images.run(to_2d(Rect(0, 0, 1, 1), resource=10)) is not None
    images.pixels[:] = 0
    images.enter(9)
    images.enter(99)  # one too many
    assert len(images.table) == 1
    assert images.run(to_2d(Rect(0, 0, 1, 1), resource=10)) is None
    images.table.clear()
    assert images.run(to_2d(Rect(0, 0, 1, 1), resource=99)) is None


def test_a_batch_has_a_cost() -> None:
    """Bytes, rows and pieces count, of all commands since the batch began."""
    table = TransferTable()
    pixels = np.zeros(16 * 16384 * 4, np.uint8)
    backing = pixels.copy()
    table.add(1, 16, 16384, spans(pixels, pixels.size), spans(backing, 64), pixels)
    thin = encode(to_2d(Rect(0, 0, 1, 16384), resource=1))  # as many rows and pieces
    assert execute(table, thin) is None
    few = encode(to_2d(Rect(0, 0, 16, 100), resource=1))
    done = 0
    while execute(table, few) is not None:
        done += 1
    assert 5 < done < 80
    table.begin_batch()
    assert execute(table, few) is not None


def test_rows_that_may_need_a_page_each_cost_one() -> None:
    def commands_in_a_batch(width: int) -> int:
        table = TransferTable()
        pixels = np.zeros(width * 100 * 4, np.uint8)
        table.add(1, width, 100, spans(pixels, pixels.size), spans(pixels, pixels.size), pixels)
        column = encode(to_2d(Rect(0, 0, 1, 100), resource=1))
        done = 0
        while execute(table, column) is not None:
            done += 1
        return done

    assert commands_in_a_batch(1023) > 4 * commands_in_a_batch(1024) > 4 * 10


def test_pieces_before_the_rectangle_cost_nothing() -> None:
    table = TransferTable()
    pixels = np.zeros(16 * 16384 * 4, np.uint8)
    backing = np.random.default_rng(5).integers(1, 256, pixels.size, np.uint8)
    table.add(1, 16, 16384, spans(pixels, pixels.size), spans(backing, 4), pixels)
    last = encode(to_2d(Rect(3, 16383, 2, 1), (16383 * 16 + 3) * 4, resource=1))
    assert execute(table, last) is not None
    assert np.array_equal(pixels[-52:-44], backing[-52:-44])
    assert not pixels[:-52].any()
