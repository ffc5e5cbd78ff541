"""The thread that frees pages of shared files, which may hang for as long as another process has
the lock of such a file."""

from __future__ import annotations

import asyncio
import errno
import threading
from collections.abc import Callable, Coroutine, Iterator
from typing import Any

import pytest

from vgpud.errors import HostError
from vgpud.memory import page_freer
from vgpud.memory.page_freer import MAX_GIVEN_UP, FileHeldError, PageFreer
from vgpud.memory.window import UnusedRanges

LIMIT = 10.0


@pytest.fixture(autouse=True)
def _short_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page_freer, "PATIENCE", 0.05)


class Lock:
    """The lock of a file that a process holds; `steps` wait for it."""

    def __init__(self) -> None:
        self._free = threading.Event()

    def steps(self) -> Iterator[None]:
        assert self._free.wait(LIMIT)
        yield

    def release(self) -> None:
        self._free.set()


def run(test: Callable[[Lock], Coroutine[Any, Any, None]]) -> None:
    async def main() -> None:
        lock = Lock()
        try:
            async with asyncio.timeout(LIMIT):
                await test(lock)
        finally:
            lock.release()

    asyncio.run(main())


def test_steps_run_in_order_and_their_error_is_raised() -> None:
    done = []

    def steps(number: int) -> Iterator[None]:
        done.append(number)
        yield

    def fails() -> Iterator[None]:
        yield
        raise HostError("fallocate", OSError(errno.EIO, ""))

    async def test(_: Lock) -> None:
        freer = PageFreer()
        freer.free_soon(steps(1))
        freer.free_soon(fails())  # logged
        await freer.free(steps(2), give_up=True)
        with pytest.raises(HostError):
            await freer.free(fails())
        await freer.freed()
        assert done == [1, 2]

    run(test)


def test_a_caller_that_is_cancelled_returns_at_once_and_the_next_one_waits() -> None:
    async def test(lock: Lock) -> None:
        freer = PageFreer()
        task = asyncio.create_task(freer.free(lock.steps()))
        await asyncio.sleep(0.01)
        task.cancel()
        await asyncio.wait([task], timeout=1)
        assert task.cancelled()
        waiting = asyncio.create_task(freer.freed())
        await asyncio.sleep(0.1)
        assert not waiting.done()
        lock.release()
        await waiting

    run(test)


def test_the_end_of_a_session_gives_up() -> None:
    async def test(lock: Lock) -> None:
        freer = PageFreer()
        with pytest.raises(FileHeldError):
            await freer.free(lock.steps(), give_up=True)
        lock.release()
        await freer.freed()

    run(test)


def test_a_thread_that_gets_on_is_waited_for() -> None:
    async def test(_: Lock) -> None:
        def steps() -> Iterator[None]:
            for _ in range(20):
                threading.Event().wait(0.02)
                yield

        await PageFreer().free(steps(), give_up=True)

    run(test)


def test_few_threads_are_given_up_at_the_same_time() -> None:
    async def test(lock: Lock) -> None:
        for _ in range(MAX_GIVEN_UP):
            with pytest.raises(FileHeldError):
                await PageFreer().free(lock.steps(), give_up=True)
        more = asyncio.create_task(PageFreer().free(lock.steps(), give_up=True))
        await asyncio.sleep(0.3)
        assert not more.done()
        more.cancel()  # the daemon is stopping
        await asyncio.wait([more], timeout=1)
        assert more.cancelled()
        lock.release()
        freer = PageFreer()
        await freer.free(iter(()), give_up=True)

    run(test)


def test_a_daemon_that_stops_gives_up_however_many_hang() -> None:
    async def test(lock: Lock) -> None:
        async def session() -> None:
            try:
                await asyncio.sleep(LIMIT)
            finally:
                with pytest.raises(FileHeldError):
                    await PageFreer().free(lock.steps(), give_up=True)

        for _ in range(MAX_GIVEN_UP):
            with pytest.raises(FileHeldError):
                await PageFreer().free(lock.steps(), give_up=True)
        stopping = asyncio.create_task(session())
        await asyncio.sleep(0.01)
        stopping.cancel()
        await asyncio.wait([stopping], timeout=2)
        assert stopping.cancelled()

    run(test)


@pytest.mark.parametrize(
    ("used", "left"),
    [
        ((0, 10), [(20, 10), (40, 10)]),
        ((20, 10), [(40, 10)]),
        ((15, 10), [(25, 5), (40, 10)]),
        ((25, 20), [(20, 5), (45, 5)]),
        ((22, 4), [(20, 2), (26, 4), (40, 10)]),
        ((0, 100), []),
    ],
)
def test_a_range_that_is_used_again_is_not_freed(
    used: tuple[int, int], left: list[tuple[int, int]]
) -> None:
    ranges = UnusedRanges()
    ranges.add(20, 10)
    ranges.add(40, 10)
    ranges.remove(*used)
    assert (len(ranges), ranges.size) == (len(left), sum(size for _, size in left))
    assert ranges.take() == left
    assert (len(ranges), ranges.size) == (0, 0)
