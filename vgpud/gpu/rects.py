"""Checks and intersections of the rectangles that guests send."""

from __future__ import annotations

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
