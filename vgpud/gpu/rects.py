"""Checks, intersections and parts of the rectangles that guests send."""

from __future__ import annotations

from collections.abc import Iterator

from vgpud.gpu.errors import InvalidParameter
from vgpud.gpu.wire.header import Rect


def check_rect(rect: Rect, width: int, height: int) -> Rect:
    """Return `rect` if it is not empty and inside `width` x `height`, else raise
    `InvalidParameter`."""
    inside = rect.x + rect.width <= width and rect.y + rect.height <= height
    if not inside or rect.width == 0 or rect.height == 0:
        raise InvalidParameter(
            f"rectangle {rect.width}x{rect.height}+{rect.x}+{rect.y} in {width}x{height}",
        )
    return rect


def is_empty(rect: Rect) -> bool:
    """Return whether a rectangle has no pixels."""
    return rect.width == 0 or rect.height == 0


def intersect(a: Rect, b: Rect) -> Rect | None:
    """Return the intersection of two rectangles, None if it is empty."""
    x, y = max(a.x, b.x), max(a.y, b.y)
    right = min(a.x + a.width, b.x + b.width)
    bottom = min(a.y + a.height, b.y + b.height)
    return Rect(x, y, right - x, bottom - y) if x < right and y < bottom else None


def cut(rect: Rect, most: int, tile: tuple[int, int] = (1, 1)) -> Iterator[Rect]:
    """Yield parts of a rectangle of `most` pixels or fewer, from the top; where there is room,
    they end between tiles of this width and height."""
    bottom, right = rect.y + rect.height, rect.x + rect.width
    y = rect.y
    while y < bottom:
        height = _whole_tiles(y, max(most // max(rect.width, 1), 1), tile[1], bottom)
        x = rect.x
        while x < right:
            width = _whole_tiles(x, max(most // height, 1), tile[0], right)
            yield Rect(x, y, width, height)
            x += width
        y += height


def halves(rect: Rect, tile: tuple[int, int] = (1, 1)) -> tuple[Rect, Rect] | None:
    """Return the upper and the lower half of a rectangle, or if it has one row the left and the
    right one; None for a single pixel.

    As long as it touches several tiles of this width and height, the two share none.
    """
    x, y, width, height = rect.x, rect.y, rect.width, rect.height
    for tile_width, tile_height in (tile, (1, 1)):
        if upper := _half(y, height, tile_height):
            return Rect(x, y, width, upper), Rect(x, y + upper, width, height - upper)
        if left := _half(x, width, tile_width):
            return Rect(x, y, left, height), Rect(x + left, y, width - left, height)
    return None


def _half(start: int, length: int, tile: int) -> int:
    """Return about half of a length, which ends between two tiles; 0 if it touches only one."""
    first, last = start // tile, (start + length - 1) // tile
    return 0 if first == last else (first + last + 1) // 2 * tile - start


def _whole_tiles(start: int, most: int, tile: int, end: int) -> int:
    """Return a length of up to `most` that ends at `end`, or if possible between two tiles."""
    if most >= end - start:
        return end - start
    return most - (start + most) % tile if most >= tile else most
