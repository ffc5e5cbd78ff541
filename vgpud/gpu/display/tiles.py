"""Changed tiles of a scanout, as the rectangles that are the cheapest to send to a display."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from vgpud.gpu.wire.header import Rect

RECT_COST = 16384
"""The cost of sending, receiving and drawing a message, in pixels that could be moved in that time:
about 50 microseconds."""

MAX_RECTS = 32
"""Messages for one comparison of tiles: a slow display should not lag behind by more."""

Block = tuple[int, int, int, int]
"""Left, top, right and bottom in tiles; right and bottom are exclusive."""


def rectangles(changed: NDArray[np.uint8], area: Rect, tile: tuple[int, int]) -> list[Rect]:
    """Return rectangles in the area that cover all tiles that are not 0.

    `changed` are the tiles that the area touches, (rows, columns), of a grid whose origin is 0, 0;
    `tile` is their width and height in pixels. The cheapest of these sets is returned: the tiles
    themselves, tiles of 2, 4, 8 and more times their size, and one rectangle for all.
    """
    touched = np.flatnonzero(changed.any(axis=1))
    if not touched.size:
        return []
    across = np.flatnonzero(changed.any(axis=0))
    bounds = int(across[0]), int(touched[0]), int(across[-1]) + 1, int(touched[-1]) + 1
    best = [_on_screen(bounds, area, tile)]
    scale, grid = 1, changed
    while max(grid.shape) > 1:
        blocks = _blocks(grid)
        if blocks is not None:
            found = [_on_screen(_clip(block, scale, bounds), area, tile) for block in blocks]
            best = min(best, found, key=_cost)
            if len(found) == 1:
                break  # larger tiles only cover more
        scale, grid = 2 * scale, _coarser(grid)
    return best


def _cost(rects: Sequence[Rect]) -> int:
    return sum(RECT_COST + rect.width * rect.height for rect in rects)


def _blocks(grid: NDArray[np.uint8]) -> list[Block] | None:
    """Return the runs of tiles in each row, equal ones of successive rows merged into a block.

    None if there are too many.
    """
    found: list[Block] = []
    begun: dict[tuple[int, int], int] = {}  # (left, right) to top
    before = b""
    width = grid.shape[1]
    flat = grid.tobytes()
    for y in range(len(grid)):
        row = flat[y * width : (y + 1) * width]
        if row == before:
            continue
        runs = _runs(row)
        found += [
            (left, top, right, y)
            for (left, right), top in begun.items()
            if (left, right) not in runs
        ]
        begun = {run: begun.get(run, y) for run in runs}
        before = row
        if len(found) + len(begun) > MAX_RECTS:
            return None
    return found + [(left, top, right, len(grid)) for (left, right), top in begun.items()]


def _runs(row: bytes) -> list[tuple[int, int]]:
    runs = []
    start = row.find(1)
    while start >= 0:
        end = row.find(0, start)
        if end < 0:
            end = len(row)
        runs.append((start, end))
        start = row.find(1, end)
    return runs


def _coarser(grid: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return the grid in tiles of twice the width and height."""
    rows, columns = grid.shape
    even = np.pad(grid, ((0, rows % 2), (0, columns % 2)))
    pairs = even[0::2] | even[1::2]
    joined: NDArray[np.uint8] = pairs[:, 0::2] | pairs[:, 1::2]
    return joined


def _clip(block: Block, scale: int, bounds: Block) -> Block:
    """Return a block of larger tiles in units of the smallest, clipped to the bounds."""
    left, top, right, bottom = (scale * edge for edge in block)
    return (
        max(left, bounds[0]),
        max(top, bounds[1]),
        min(right, bounds[2]),
        min(bottom, bounds[3]),
    )


def _on_screen(block: Block, area: Rect, tile: tuple[int, int]) -> Rect:
    """Return a block in pixels, clipped to the area."""
    width, height = tile
    column, row = area.x // width, area.y // height
    left, top = max((column + block[0]) * width, area.x), max((row + block[1]) * height, area.y)
    right = min((column + block[2]) * width, area.x + area.width)
    bottom = min((row + block[3]) * height, area.y + area.height)
    return Rect(left, top, right - left, bottom - top)
