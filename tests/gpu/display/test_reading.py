"""Pictures are read in parts that each cost little, and cover everything once."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import numpy as np
import pytest

from vgpud.gpu.display import reading
from vgpud.gpu.display.reading import STEP, Budget, Parts
from vgpud.gpu.rects import halves
from vgpud.gpu.wire.header import Rect

Cost = Callable[[Rect], int]


class Source:
    """A picture whose parts cost what a test says, once they are prepared."""

    def __init__(self, cost: Cost) -> None:
        self._cost = cost
        self.prepared = 0

    def cost(self, scanout_id: int, rect: Rect) -> int | None:
        return self._cost(rect) if self.prepared else None

    async def prepare(self, scanout_id: int) -> None:
        self.prepared += 1


def flat(rect: Rect) -> int:
    return rect.width * rect.height


def dear_corner(rect: Rect) -> int:
    """Most of it is cheap, but for the first pixels."""
    return flat(rect) + (1_000 if rect.x < 4 and rect.y < 4 else 0)


def priceless(rect: Rect) -> int:
    return 1 << 40


async def every(parts: Parts) -> list[Rect]:
    found = []
    while (part := await parts.next()) is not None:
        found.append(part)
    return found


@pytest.mark.parametrize("cost", [flat, dear_corner])
@pytest.mark.parametrize("step", [10, 2_000, 1 << 30])
@pytest.mark.parametrize("tile", [(1, 1), (8, 4)])
def test_parts_are_cheap_and_cover_everything_once(
    cost: Cost, step: int, tile: tuple[int, int]
) -> None:
    rects = [Rect(3, 1, 50, 30), Rect(60, 0, 1, 90), Rect(0, 95, 99, 1)]
    source = Source(cost)
    found = asyncio.run(every(Parts(source, 0, rects, step, tile)))
    seen = np.zeros((100, 100), int)
    for part in found:
        assert cost(part) <= step or flat(part) == 1
        seen[part.y : part.y + part.height, part.x : part.x + part.width] += 1
    expected = np.zeros_like(seen)
    for rect in rects:
        expected[rect.y : rect.y + rect.height, rect.x : rect.x + rect.width] = 1
    assert np.array_equal(seen, expected)
    assert source.prepared == len(found)


def test_what_is_too_dear_is_read_pixel_by_pixel() -> None:
    found = asyncio.run(every(Parts(Source(priceless), 0, [Rect(1, 1, 3, 5)], STEP)))
    assert [flat(part) for part in found] == [1] * 15


def test_others_run_between_parts() -> None:
    async def test() -> None:
        parts = Parts(Source(flat), 0, [Rect(0, 0, 4, 4)], 4)
        turns = 0

        async def count() -> None:
            nonlocal turns
            while True:
                turns += 1
                await asyncio.sleep(0)

        counting = asyncio.create_task(count())
        assert len(await every(parts)) == 4
        assert turns >= 3
        counting.cancel()

    asyncio.run(test())


@pytest.mark.parametrize("tile", [(1, 1), (64, 16)])
@pytest.mark.parametrize("rect", [Rect(0, 0, 640, 480), Rect(60, 10, 10, 10), Rect(7, 15, 1, 2)])
def test_halves_end_between_tiles(rect: Rect, tile: tuple[int, int]) -> None:
    found = halves(rect, tile)
    assert found is not None
    first, second = found
    assert flat(first) + flat(second) == flat(rect)
    below = second.y > first.y
    edge, size = (second.y, tile[1]) if below else (second.x, tile[0])
    start, length = (rect.y, rect.height) if below else (rect.x, rect.width)
    if start // size != (start + length - 1) // size:
        assert edge % size == 0
    assert halves(Rect(7, 7, 1, 1), tile) is None


def test_a_budget_is_spent_by_costs_and_by_time(monkeypatch: pytest.MonkeyPatch) -> None:
    budget = Budget()
    assert not budget.spend(STEP + 1)
    assert budget.spend(STEP - 1)
    assert not budget.spend(2)
    assert budget.spend(1)
    assert budget.spent
    assert not Budget().spent
    monkeypatch.setattr(reading, "COMMAND", 0.0)
    assert Budget().spent
