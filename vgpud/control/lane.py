"""The share of the event loop that work for callers of the control socket takes.

The devices run on the same loop. So after some work for callers, no more is begun for several times
as long; and what waits is begun user by user, so that one who calls much delays himself.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict, deque
from collections.abc import Callable, Coroutine, Generator
from time import monotonic, thread_time
from types import coroutine
from typing import Any, Final, TypeVar

T = TypeVar("T")

PRICE: Final = 3.0
"""Seconds of time for a second of work: work for callers takes a third of the loop at most."""
CREDIT: Final = 0.0015
"""Seconds by which work may be ahead: half a millisecond of it at once, of the processor's time."""


class Lane:
    """The calls that wait for their turn on the loop, in their order for each user."""

    def __init__(self) -> None:
        self._paid = 0.0  # until when the work so far has been waited for
        self._waiting: OrderedDict[int, deque[asyncio.Future[None]]] = OrderedDict()
        self._awaited = False  # whether `_begin` is going to be called

    async def run(self, uid: int, work: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine that begins when it is this user's turn, and count its time."""
        try:
            await self._turn(uid)
        except BaseException:
            work.close()
            raise
        return await self._timed(work)

    def count(self, work: Callable[[], T]) -> T:
        """Call a function at once and count its time."""
        began = thread_time()
        try:
            return work()
        finally:
            self._spent(thread_time() - began)

    def _wait(self) -> float:
        return self._paid - CREDIT - monotonic()

    def _spent(self, seconds: float) -> None:
        self._paid = max(self._paid, monotonic()) + PRICE * seconds

    async def _turn(self, uid: int) -> None:
        if not self._waiting and self._wait() <= 0:
            return
        turn = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(uid, deque()).append(turn)
        self._begin_after(self._wait())
        await turn

    def _begin_after(self, seconds: float) -> None:
        if not self._awaited:
            self._awaited = True
            loop = asyncio.get_running_loop()
            if seconds > 0:
                loop.call_later(seconds, self._begin)
            else:
                loop.call_soon(self._begin)

    def _begin(self) -> None:
        """Let one call begin, of the user that has waited longest."""
        self._awaited = False
        begun = False
        while self._waiting and not begun and self._wait() <= 0:
            uid, turns = self._waiting.popitem(last=False)
            turn = turns.popleft()
            if turns:
                self._waiting[uid] = turns
            if begun := not turn.done():  # else it was given up
                turn.set_result(None)
        if self._waiting:
            # At once means: after the first step of the call that begins now, which is counted.
            self._begin_after(self._wait())

    @coroutine
    def _timed(self, work: Coroutine[Any, Any, T]) -> Generator[Any, Any, T]:
        """Run a coroutine and count the time of each of its steps."""
        resume, value = work.send, None
        while True:
            began = thread_time()
            try:
                waits_for = resume(value)
            except StopIteration as end:
                result: T = end.value
                return result
            finally:
                value = None  # an error must not be in a frame that its traceback keeps,
                self._spent(thread_time() - began)
            try:
                resume, value = work.send, (yield waits_for)
            except BaseException as error:  # such as CancelledError, which the work has to see
                resume, value = work.throw, error
            waits_for = None  # nor in a future that is
