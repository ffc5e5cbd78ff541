"""What accesses to memory cost, and the short steps that long ones are made in.

A guest chooses how many rows, extents and bytes an access has, so its time is reckoned from all of
them. The numbers are those of native.h, in nanoseconds.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from typing import Final, NamedTuple, TypeAlias

from vgpud.memory.extents import Extents
from vgpud.native.spans import BYTES_PER_NS, COST_PAGE, COST_ROW, COST_SPAN
from vgpud.uapi.page import PAGE_SIZE

STEP: Final = 250_000
"""The most that one step costs, in nanoseconds. About a millisecond at the worst, with pages that
the kernel makes now or memory that others use as well."""

SLOW: Final = 0.0005
"""Seconds after which a step was slow, whatever it was reckoned to cost:
the kernel makes pages, which takes a few microseconds for each in a VM. Those that follow are not
for the event loop."""

_GRAIN: Final = 64
# Rows are cut at multiples of this: a cache line, and of a fill's pattern, which so continues.

Steps: TypeAlias = Generator[None, None, None]
"""An operation in steps: it stops at each `yield`, and may be resumed at any time on any thread."""


class Place(NamedTuple):
    """A rectangle's place in a buffer: the offset of its first byte, and the distance of rows."""

    buffer: Extents
    offset: int
    stride: int


class Part(NamedTuple):
    """A part of a rectangle: `rows` rows from `row` on, of each `bytes` bytes from `column` on."""

    row: int
    rows: int
    column: int
    bytes: int


def cost(row_bytes: int, rows: int, *places: Place) -> int:
    """Return about how many nanoseconds it takes to access a rectangle, which is in all `places`.

    They have been checked: the rectangle is inside the buffers. Its pages are there: those of most
    buffers are, after the first time.
    """
    if not row_bytes or not rows:
        return 0
    total = row_bytes * rows // BYTES_PER_NS + rows * COST_ROW
    for buffer, offset, stride in places:
        if buffer.simple:
            total += COST_SPAN
            continue
        length = (rows - 1) * stride + row_bytes
        extents = buffer.extents_in(offset, length)
        total += extents * COST_SPAN
        if buffer.logged:
            total += (rows + extents) * COST_ROW
        if buffer.access.flush_around_write:  # also the bytes between rows
            total += 2 * length // BYTES_PER_NS
    return total


def parts(
    row_bytes: int, rows: int, *places: Place, limit: int = STEP, backward: bool = False
) -> Iterator[Part]:
    """Cut a rectangle into parts that cost at most `limit` each, row by row, from its first byte to
    its last; `backward` for the other direction.

    The rectangle has been checked, as for `cost`. It is halved until its parts are cheap enough,
    because extents may be anywhere in it; also if rows that are a page apart each need a new page.
    """
    most_rows = max(limit // COST_PAGE, 1)
    if rows > most_rows and not any(stride >= PAGE_SIZE for _, _, stride in places):
        most_rows = rows
    left: list[Part] = []
    if row_bytes and rows:
        if rows <= most_rows and cost(row_bytes, rows, *places) <= limit:
            yield Part(0, rows, 0, row_bytes)
        else:
            left.append(Part(0, rows, 0, row_bytes))
    while left:
        part = left.pop()
        row, height, column, width = part
        here = (
            Place(buffer, offset + row * stride + column, stride)
            for buffer, offset, stride in places
        )
        if (height == 1 and width <= _GRAIN) or (
            height <= most_rows and cost(width, height, *here) <= limit
        ):
            yield part
            continue
        if height > 1:
            half = height // 2
            halves = (
                Part(row, half, column, width),
                Part(row + half, height - half, column, width),
            )
        else:
            half = -(-width // (2 * _GRAIN)) * _GRAIN
            halves = Part(row, 1, column, half), Part(row, 1, column + half, width - half)
        left += halves if backward else reversed(halves)


def copy_steps(to: Place, source: Place, row_bytes: int, rows: int, *, limit: int = STEP) -> Steps:
    """Copy a rectangle between two buffers that share no memory, in steps that cost up to `limit`;
    raise `OutOfRange` before the first step if it leaves one of them."""
    for buffer, offset, stride in (to, source):
        buffer.check_rect(offset, stride, row_bytes, rows)
    return _copy(to, source, row_bytes, rows, limit)


def _copy(to: Place, source: Place, row_bytes: int, rows: int, limit: int) -> Steps:
    for row, height, column, width in parts(row_bytes, rows, to, source, limit=limit):
        to.buffer.copy_rect(
            to.offset + row * to.stride + column,
            to.stride,
            source.buffer,
            source.offset + row * source.stride + column,
            source.stride,
            row_bytes=width,
            rows=height,
        )
        yield


def copy_all_steps(to: Extents, source: Extents) -> Steps:
    """Copy all of a buffer to the beginning of another one, which shares no memory with it."""
    size = source.size
    return copy_steps(Place(to, 0, size), Place(source, 0, size), size, 1)


def flush_steps(buffer: Extents) -> Steps:
    """Write back and invalidate all cache lines of a buffer."""
    for _, _, column, width in parts(buffer.size, 1, Place(buffer, 0, buffer.size)):
        buffer.flush(column, width)
        yield
