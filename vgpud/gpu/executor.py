"""The executor: the threads that run a device's work off the event loop.

Work runs in order on each timeline, and in parallel with other timelines. Timelines share the
threads in time slices; work can be paused between two steps.
"""

from __future__ import annotations

import asyncio
import threading
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from time import perf_counter, thread_time

from vgpud.errors import VgpudError, stored
from vgpud.gpu.wire.protocol import ResourceId
from vgpud.gpu.work import INLINE_COST, Done, Timeline, Work
from vgpud.memory.page_freer import PageFreer
from vgpud.memory.pages import drop_in_thread
from vgpud.memory.steps import SLOW
from vgpud.unix.thread_priority import lower_thread_priority

THREADS = 2
"""Threads of one device, so that no guest can use another's. Two, so that a ring with short work
does not wait for one with long work."""

INLINE_TIME = 0.0005
"""Seconds after which work on the event loop is continued in a thread, whatever it was reckoned to
cost."""

MAX_RUNNING = 2 * THREADS
"""Time slices that are submitted to the threads at once: each thread has its next one queued, and
new work starts soon, however many timelines a guest has."""

LOOP_COST = 2_000_000
"""Nanoseconds up to which a copy is done on the event loop, in steps with turns of others between
them: a frame of 2560 x 1600. A thread would have it wait for Python's lock at each of its steps."""

BUSY_TURN = 0.002
"""Seconds of one turn of all others on the event loop after which the rest of a copy is done in a
thread, so that the copies of many devices don't fill the loop."""

END = 1.0
"""Seconds that the end of a session waits for steps that are running, which take a fraction of a
millisecond."""

QUANTUM = 0.002
"""Seconds after which a timeline with more work releases its thread to others."""


@dataclass(slots=True, eq=False)
class _Job:
    """Work, and what to call when it is done."""

    work: Work
    done: Done

    def run(self, halted: Callable[[], bool], seconds: float = QUANTUM) -> bool:
        """Run steps until none is left, time is up or a halt is requested, on any thread.

        Returns whether none is left.
        """
        return _run(self.work.steps, halted, seconds)

    def finish(self, error: VgpudError | None) -> None:
        """Complete the work, with an error or None."""
        self.release()
        self.done(self.work.refusal if error is None else error)

    def release(self) -> None:
        """Release the work's charge."""
        if self.work.charge is not None:
            self.work.charge.release()


@dataclass(slots=True, eq=False)
class _Copy:
    """A copy whose caller waits for it; `stopped` once no more of its steps are to be run."""

    steps: Iterator[None]
    stopped: bool = False

    def run(self) -> bool:
        """Run steps on a thread until none is left, or time is up; return whether none is left."""
        return _run(self.steps, lambda: self.stopped, QUANTUM)


@dataclass(slots=True, eq=False)
class _Line:
    """The work of one timeline, in order; `running` if the first is on a thread."""

    jobs: deque[_Job] = field(default_factory=deque)
    running: bool = False


class Executor:
    """The threads of one device, a `gpu.work.WorkExecutor`. All methods are called on the event
    loop's thread."""

    def __init__(self, name: str) -> None:
        self._loop = asyncio.get_running_loop()
        self._threads = ThreadPoolExecutor(
            THREADS, thread_name_prefix=f"{name}-dma", initializer=lower_thread_priority
        )
        freer = PageFreer()
        self.free_soon, self.free_pages, self.pages_freed = freer.free_soon, freer.free, freer.freed
        self._lines: dict[Timeline, _Line] = {}
        self._ready: deque[tuple[Timeline, _Line]] = deque()
        self._barriers: set[threading.Barrier] = set()
        self._touched: Counter[ResourceId] = Counter()
        self._halted = False
        self._closed = False
        self._running = 0
        self._copies: set[_Copy] = set()
        self.submitted = 0
        self._changed = asyncio.Event()
        self._failure: asyncio.Future[None] = self._loop.create_future()

    def submit(self, key: Timeline, work: Work, done: Done) -> None:
        """Queue work; `done` is called on the event loop when it and all before it on its timeline
        are done."""
        self.submitted += 1
        line = self._lines.get(key)
        job = _Job(work, done)
        if line is None and work.cost <= INLINE_COST and not self._halted and self._run_now(job):
            return
        self._touched.update(work.resources)
        self._append(key, job)

    def busy(self, resource: ResourceId) -> bool:
        """Return whether work that touches the resource waits or runs."""
        return self._touched.get(resource, 0) > 0  # not [], which calls __missing__

    async def drained(self, resource: ResourceId) -> None:
        """Wait until no work that touches the resource is left."""
        while self.busy(resource):
            self._changed.clear()
            await self._changed.wait()

    async def run_in_thread(self, steps: Iterator[None]) -> None:
        """Run a long copy on one of the threads, which it shares with other work.

        A caller that is cancelled waits for the step that is running, however often it is
        cancelled, and the steps after that are left out.
        """
        await self.run_steps(steps, LOOP_COST + 1)

    async def run_steps(self, steps: Iterator[None], cost: int) -> None:
        """Run a copy as `run_in_thread` does, but a short one on the event loop, with turns of
        others between its steps."""
        copy = _Copy(steps)
        self._copies.add(copy)
        try:
            if cost <= LOOP_COST and await self._run_in_turns(copy):
                return
            while not await self._run_copy(copy):
                pass
        finally:
            self._copies.discard(copy)
            self._changed.set()

    async def _run_in_turns(self, copy: _Copy) -> bool:
        """Run steps of a copy on the event loop while that is not busy, and they are short; return
        whether none is left."""
        began = thread_time()
        for _ in copy.steps:
            slow = thread_time() - began > SLOW
            before = perf_counter()
            await asyncio.sleep(0)
            if slow or copy.stopped or perf_counter() - before > BUSY_TURN:
                return False
            began = thread_time()
        return True

    async def _run_copy(self, copy: _Copy) -> bool:
        """Run steps of a copy on a thread for a time slice; return whether none is left."""
        if copy.stopped:
            raise asyncio.CancelledError
        running = self._loop.run_in_executor(self._threads, copy.run)
        try:
            while not running.done():
                try:
                    await asyncio.wait([running])
                except asyncio.CancelledError:
                    copy.stopped = True
            if not copy.stopped:
                return running.result()
            if not running.cancelled():
                bug = running.exception()
                if bug is not None and not isinstance(bug, VgpudError):
                    self._fail(bug)
        finally:
            del running  # an error of its own would refer to this frame, and this frame to it
        raise asyncio.CancelledError

    async def pause(self) -> None:
        """Stop between two steps: when this returns no step runs, and none does until `resume`.

        Copies that have begun are waited for, but not those that begin meanwhile: there could
        always be another one. Nothing runs on any thread if all callers of `run_steps` have
        been cancelled before, and that takes no longer than a step.
        """
        self._halted = True
        begun = set(self._copies)
        while self._running or not begun.isdisjoint(self._copies):
            self._changed.clear()
            await self._changed.wait()

    def resume(self) -> None:
        """Go on where `pause` stopped."""
        self._halted = False
        for key, line in list(self._lines.items()):
            self._start(key, line)
        self._hand_over()

    def drop(self) -> None:
        """Forget all work that has not been done; `pause` comes first. Its `done` is never
        called."""
        assert not self._running
        for line in self._lines.values():
            for job in line.jobs:
                job.release()
        self._forget_work()
        self._touched.clear()
        self._halted = False
        self._changed.set()

    async def wait_for_failure(self) -> None:
        """Wait until a step raises something other than a `VgpudError`, which is a bug; raise
        that.

        When this ends, also because it is cancelled, no work runs, and none does until `resume`:
        the next session may have the same memory. A thread that hangs is not waited for.
        """
        try:
            await self._failure
        finally:
            with suppress(TimeoutError):
                async with asyncio.timeout(END):
                    await self.pause()

    async def check_threads(self) -> None:
        """Wait until each thread has run something new; return at once after `close`."""
        if self._closed:
            return
        barrier = threading.Barrier(THREADS)  # so that one thread can't run both calls
        self._barriers.add(barrier)
        calls = [self._threads.submit(_wait_at, barrier) for _ in range(THREADS)]
        try:
            await asyncio.wait([asyncio.wrap_future(call) for call in calls])
        finally:
            self._barriers.discard(barrier)
            for call in calls:
                call.cancel()
            barrier.abort()  # releases a thread that waits there

    def close(self) -> None:
        """End the threads; a step that is running goes on to its end, on memory that it
        keeps alive."""
        self._halted = self._closed = True
        for copy in self._copies:
            copy.stopped = True
        self._threads.shutdown(wait=False, cancel_futures=True)
        for barrier in self._barriers:
            barrier.abort()
        self._forget_work()
        self._failure.cancel()

    def _forget_work(self) -> None:
        # In a thread, because the steps keep buffers, which can be large.
        drop_in_thread([job.work.steps for line in self._lines.values() for job in line.jobs])
        self._lines.clear()
        self._ready.clear()

    def _untouch(self, resources: Iterable[ResourceId]) -> None:
        touched = self._touched
        for resource in resources:
            touched[resource] -= 1
            if not touched[resource]:
                del touched[resource]

    def _fail(self, bug: BaseException) -> None:
        if not self._failure.done():
            self._failure.set_exception(bug)

    def _run_now(self, job: _Job) -> bool:
        """Run a job on the event loop, for a short time; return whether it has been finished."""
        error: VgpudError | None = None
        try:
            if not job.run(lambda: False, INLINE_TIME):
                return False
        except VgpudError as caught:
            error = stored(caught)
        job.finish(error)
        return True

    def _append(self, key: Timeline, job: _Job) -> None:
        line = self._lines.setdefault(key, _Line())
        line.jobs.append(job)
        self._start(key, line)

    def _start(self, key: Timeline, line: _Line) -> None:
        if line.running or self._halted or not line.jobs:
            return
        line.running = True
        self._ready.append((key, line))
        self._hand_over()

    def _hand_over(self) -> None:
        while self._ready and self._running < MAX_RUNNING and not self._halted:
            key, line = self._ready.popleft()
            self._running += 1
            future = self._threads.submit(line.jobs[0].run, lambda: self._halted)
            future.add_done_callback(partial(self._report, key, line))

    def _report(self, key: Timeline, line: _Line, ran: Future[bool]) -> None:
        # Called on the thread. The loop may have ended while the step was running.
        with suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._ran, key, line, ran)

    def _ran(self, key: Timeline, line: _Line, ran: Future[bool]) -> None:
        line.running = False
        self._running -= 1
        self._changed.set()
        if self._closed or ran.cancelled():
            return
        self._hand_over()
        error = ran.exception()
        if error is not None and not isinstance(error, VgpudError):
            line.jobs.popleft()  # its steps can't go on
            self._fail(error)
            return
        if error is None and not ran.result():
            self._start(key, line)
            return
        job = line.jobs.popleft()
        self._untouch(job.work.resources)
        if line.jobs:
            self._start(key, line)
        else:
            del self._lines[key]
        job.finish(error)


def _run(steps: Iterator[None], halted: Callable[[], bool], seconds: float) -> bool:
    """Run steps until none is left, time is up or a halt is requested; return whether none is
    left."""
    until = perf_counter() + seconds
    while not halted() and perf_counter() < until:
        if next(steps, steps) is steps:
            return True
    return False


def _wait_at(barrier: threading.Barrier) -> None:
    with suppress(threading.BrokenBarrierError):
        barrier.wait()
