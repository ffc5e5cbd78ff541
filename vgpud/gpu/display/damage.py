"""Damage: the parts of a scanout that have to be sent to a display, as a few rectangles."""

from __future__ import annotations

from collections.abc import Iterator

from vgpud.gpu.wire.header import Rect

MAX_RECTS = 16
"""Rectangles kept apart: with more, a message for each costs more than the pixels between them."""


class Damage:
    """A set of rectangles, which may overlap."""

    def __init__(self) -> None:
        self._rects: list[Rect] = []

    def __bool__(self) -> bool:
        return bool(self._rects)

    def add(self, rect: Rect) -> None:
        """Add a rectangle, merged with others where the union is no larger than both."""
        merged = True
        while merged:
            merged = False
            for other in self._rects:
                joined = union(rect, other)
                if _area(joined) <= _area(rect) + _area(other):
                    self._rects.remove(other)
                    rect, merged = joined, True
                    break
        self._rects.append(rect)
        if len(self._rects) > MAX_RECTS:
            first, *rest = self._rects
            for other in rest:
                first = union(first, other)
            self._rects = [first]

    def __iter__(self) -> Iterator[Rect]:
        return iter(self._rects)

    def pop(self) -> Rect:
        """Remove and return the rectangle that was added first."""
        return self._rects.pop(0)

    def pop_all(self) -> list[Rect]:
        """Remove and return all rectangles."""
        rects, self._rects = self._rects, []
        return rects


def union(a: Rect, b: Rect) -> Rect:
    """Return the smallest rectangle that contains both."""
    x, y = min(a.x, b.x), min(a.y, b.y)
    right = max(a.x + a.width, b.x + b.width)
    bottom = max(a.y + a.height, b.y + b.height)
    return Rect(x, y, right - x, bottom - y)


def _area(rect: Rect) -> int:
    return rect.width * rect.height
