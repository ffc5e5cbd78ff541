"""The share of the loop that callers get: what they cost others, and each other."""

from __future__ import annotations

import asyncio
import time

import pytest

from vgpud.control.lane import Lane


def busy(seconds: float) -> None:
    """Use the processor."""
    end = time.thread_time() + seconds
    while time.thread_time() < end:
        pass


async def work(seconds: float, steps: int = 1) -> int:
    """Work that lets others run between its steps."""
    for _ in range(steps):
        busy(seconds)
        await asyncio.sleep(0)
    return steps


def test_work_takes_a_part_of_the_loop_only() -> None:
    async def main() -> float:
        lane = Lane()
        began = time.monotonic()
        async with asyncio.TaskGroup() as group:
            for _ in range(50):
                group.create_task(lane.run(1, work(0.001)))
        return time.monotonic() - began

    assert asyncio.run(main()) > 2.5 * 50 * 0.001


def test_a_little_work_waits_for_nothing() -> None:
    async def main() -> int:
        lane, rounds = Lane(), 0

        async def count() -> None:
            nonlocal rounds
            while True:
                rounds += 1
                await asyncio.sleep(0)

        counting = asyncio.create_task(count())
        await asyncio.sleep(0)
        assert await lane.run(1, work(0.0, 1)) == 1
        counting.cancel()
        return rounds

    assert asyncio.run(main()) < 5


def test_a_user_with_much_work_delays_itself() -> None:
    async def main() -> list[int]:
        lane, order = Lane(), list[int]()

        async def note(uid: int) -> None:
            order.append(uid)
            await work(0.001)

        async with asyncio.TaskGroup() as group:
            for _ in range(30):
                group.create_task(lane.run(1, note(1)))
            await asyncio.sleep(0)
            for _ in range(2):
                group.create_task(lane.run(2, note(2)))
        return order

    order = asyncio.run(main())
    assert order.count(1) == 30
    assert 2 in order[:6]
    assert order.index(2, order.index(2) + 1) < 10


def test_the_calls_of_a_user_begin_in_their_order() -> None:
    async def main() -> list[int]:
        lane, order = Lane(), list[int]()

        async def note(number: int) -> None:
            order.append(number)
            busy(0.0005)

        async with asyncio.TaskGroup() as group:
            for number in range(40):
                group.create_task(lane.run(1, note(number)))
        return order

    assert asyncio.run(main()) == [*range(40)]


def test_what_is_given_up_while_it_waits_never_begins() -> None:
    async def main() -> None:
        lane = Lane()
        lane.count(lambda: busy(0.05))

        async def never() -> None:
            raise AssertionError("begun")

        waiting = [asyncio.create_task(lane.run(1, never())) for _ in range(3)]
        after = asyncio.create_task(lane.run(1, work(0)))
        await asyncio.sleep(0)
        for task in waiting:
            task.cancel()
        assert await asyncio.wait_for(after, 2) == 1

    asyncio.run(main())


def test_work_sees_that_it_is_cancelled_and_its_errors_pass() -> None:
    async def main() -> None:
        lane, seen = Lane(), list[str]()

        async def wait() -> None:
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                seen.append("cancelled")
                raise

        async def fail() -> None:
            await asyncio.sleep(0)
            raise KeyError("mine")

        task = asyncio.create_task(lane.run(1, wait()))
        await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert seen == ["cancelled"]
        with pytest.raises(KeyError, match="mine"):
            await lane.run(1, fail())

    asyncio.run(main())
