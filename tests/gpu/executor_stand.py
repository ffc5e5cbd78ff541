"""Work that waits for a test, and an executor to run it."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Iterator

from vgpud.errors import VgpudError
from vgpud.gpu.executor import Executor
from vgpud.gpu.quota import Charge
from vgpud.gpu.wire.protocol import ContextId, ResourceId
from vgpud.gpu.work import INLINE_COST, Timeline, Work

LONG = INLINE_COST + 1
A: Timeline = (ContextId(1), 0)
B: Timeline = (ContextId(1), 1)
C: Timeline = (ContextId(2), 0)
PATIENCE = 5.0


class Gate:
    """A step that waits until the test lets it go on."""

    def __init__(self) -> None:
        self.entered = threading.Event()
        self.open = threading.Event()

    def __call__(self) -> None:
        self.entered.set()
        assert self.open.wait(PATIENCE)

    async def reached(self) -> None:
        assert await asyncio.to_thread(self.entered.wait, PATIENCE)


def run(main: Callable[[Executor], Awaitable[None]]) -> None:
    """Runs a test with an executor of its own, and ends its threads."""

    async def whole() -> None:
        executor = Executor("test")
        try:
            async with asyncio.timeout(PATIENCE):
                await main(executor)
        finally:
            executor.close()

    asyncio.run(whole())


def work(
    *steps: Callable[[], None],
    cost: int = LONG,
    resources: tuple[int, ...] = (),
    refusal: VgpudError | None = None,
    charge: Charge | None = None,
) -> Work:
    return Work(run_steps(*steps), frozenset(map(ResourceId, resources)), cost, refusal, charge)


def run_steps(*steps: Callable[[], None]) -> Iterator[None]:
    """Makes steps of functions."""
    for step in steps:
        step()
        yield


class Answers:
    """Collects what `done` is called with, in order."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, VgpudError | None]] = []
        self._more = asyncio.Event()

    def named(self, name: str) -> Callable[[VgpudError | None], None]:
        def done(error: VgpudError | None) -> None:
            asyncio.get_running_loop()  # on the event loop's thread, or this raises
            self.seen.append((name, error))
            self._more.set()

        return done

    @property
    def names(self) -> list[str]:
        return [name for name, _ in self.seen]

    async def number(self, count: int) -> list[str]:
        while len(self.seen) < count:
            self._more.clear()
            await self._more.wait()
        return self.names
