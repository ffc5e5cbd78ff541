"""Operations: they run for any caller, and end before their session does."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from vgpud.errors import Interrupted, Unsupported
from vgpud.gpu.operations import Operations

PATIENCE = 5.0

RESET = "the device was reset meanwhile"


def run(main: Callable[[Operations, asyncio.TaskGroup], Awaitable[None]]) -> None:
    async def whole() -> None:
        async with asyncio.timeout(PATIENCE), asyncio.TaskGroup() as tasks:
            await main(Operations(), tasks)

    asyncio.run(whole())


class Slow:
    """An operation that takes until it is told, and as long again to be undone."""

    def __init__(self) -> None:
        self.done = asyncio.Event()
        self.undone = asyncio.Event()
        self.begun = asyncio.Event()
        self.over = False

    async def __call__(self) -> str:
        self.begun.set()
        try:
            await self.done.wait()
        except asyncio.CancelledError:
            await self.undone.wait()
            raise
        finally:
            self.over = True
        return "done"


def test_whoever_asks_gets_what_comes_of_it() -> None:
    async def fails() -> None:
        raise Unsupported("no")

    async def main(operations: Operations, tasks: asyncio.TaskGroup) -> None:
        slow = Slow()
        slow.done.set()
        assert await operations.run(slow(), tasks) == "done"
        with pytest.raises(Unsupported, match="no"):
            await operations.run(fails(), tasks)

    run(main)


def test_stop_undoes_what_is_half_done() -> None:
    async def main(operations: Operations, tasks: asyncio.TaskGroup) -> None:
        slow = Slow()
        slow.undone.set()
        asked = asyncio.create_task(operations.run(slow(), tasks))
        await slow.begun.wait()
        await operations.stop(RESET)
        assert slow.over
        with pytest.raises(Interrupted, match=RESET):
            await asked

    run(main)


def test_stop_waits_also_for_one_whose_asker_has_gone() -> None:
    async def main(operations: Operations, tasks: asyncio.TaskGroup) -> None:
        slow = Slow()
        asked = asyncio.create_task(operations.run(slow(), tasks))
        await slow.begun.wait()
        asked.cancel()
        await asyncio.wait([asked])
        stopping = asyncio.create_task(operations.stop(RESET))
        await asyncio.sleep(0)
        assert not stopping.done()
        slow.undone.set()
        await stopping
        assert slow.over

    run(main)


def test_while_it_stops_nothing_is_begun() -> None:
    async def main(operations: Operations, tasks: asyncio.TaskGroup) -> None:
        first, second, third = Slow(), Slow(), Slow()
        asked = asyncio.create_task(operations.run(first(), tasks))
        await first.begun.wait()
        stopping = asyncio.create_task(operations.stop(RESET))
        await asyncio.sleep(0)
        with pytest.raises(Interrupted, match=RESET):
            await operations.run(second(), tasks)
        assert not second.begun.is_set()
        first.undone.set()
        await stopping
        with pytest.raises(Interrupted, match=RESET):
            await asked
        with pytest.raises(Interrupted, match=RESET):  # until they may start again
            await operations.run(second(), tasks)
        operations.resume()
        third.done.set()
        assert await operations.run(third(), tasks) == "done"

    run(main)


def test_after_the_end_nothing_is_begun() -> None:
    async def main(operations: Operations, tasks: asyncio.TaskGroup) -> None:
        await operations.close()
        await operations.stop(RESET)
        operations.resume()
        slow = Slow()
        with pytest.raises(Interrupted, match="front-end has gone"):
            await operations.run(slow(), tasks)
        assert not slow.begun.is_set()

    run(main)
