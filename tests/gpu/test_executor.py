"""The executor: order on each timeline, side by side, halts between steps, and where errors go."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from time import perf_counter

import pytest

from tests.gpu.executor_stand import LONG, A, Answers, B, C, Gate, run, run_steps, work
from vgpud.gpu.errors import InvalidParameter, Unspecified
from vgpud.gpu.executor import QUANTUM, THREADS, Executor
from vgpud.gpu.wire.protocol import ContextId, ResourceId
from vgpud.gpu.work import INLINE_COST
from vgpud.memory.steps import SLOW


def ignoring(_: object) -> None:
    """Make a step of what returns something."""


def test_work_on_one_timeline_runs_in_order() -> None:
    async def main(executor: Executor) -> None:
        ran: list[int] = []
        answers = Answers()
        gate = Gate()
        executor.submit(A, work(gate), answers.named("gate"))
        for number in range(30):
            # Small or large: behind something else, all wait.
            cost = LONG if number % 3 else 0
            steps = [lambda at=at: ran.append(at) for at in (2 * number, 2 * number + 1)]
            executor.submit(A, work(*steps, cost=cost), answers.named(str(number)))
        await gate.reached()
        assert ran == []
        gate.open.set()
        assert await answers.number(31) == ["gate", *map(str, range(30))]
        assert ran == list(range(60))

    run(main)


def test_timelines_run_side_by_side() -> None:
    async def main(executor: Executor) -> None:
        answers = Answers()
        gates = [Gate() for _ in range(THREADS)]
        for key, gate in zip((A, B), gates, strict=True):
            executor.submit(key, work(gate), answers.named("gate"))
        for gate in gates:
            await gate.reached()
        gates[1].open.set()
        await answers.number(1)
        executor.submit(C, work(lambda: None), answers.named("other"))
        executor.submit(None, work(lambda: None), answers.named("device"))
        assert set(await answers.number(3)) == {"gate", "other", "device"}
        gates[0].open.set()
        await answers.number(4)

    run(main)


def test_a_long_timeline_lets_the_others_have_its_thread() -> None:
    async def main(executor: Executor) -> None:
        answers = Answers()
        stop = threading.Event()
        steps = [lambda: ignoring(stop.wait(QUANTUM))] * 2000
        for number in range(THREADS):
            key = (ContextId(9), number)
            executor.submit(key, work(*steps), answers.named("long"))
        executor.submit(A, work(lambda: None), answers.named("short"))
        assert await answers.number(1) == ["short"]
        stop.set()
        assert await answers.number(1 + THREADS) == ["short"] + ["long"] * THREADS

    run(main)


def test_little_work_on_an_idle_timeline_is_done_at_once() -> None:
    async def main(executor: Executor) -> None:
        answers = Answers()
        where: list[threading.Thread] = []
        step = lambda: where.append(threading.current_thread())  # noqa: E731
        executor.submit(A, work(step, step, cost=INLINE_COST), answers.named("small"))
        assert answers.names == ["small"]
        assert where == [threading.current_thread()] * 2
        executor.submit(A, work(step, cost=LONG), answers.named("large"))
        assert answers.names == ["small"]
        await answers.number(2)
        assert where[2] is not threading.current_thread()
        # It is idle again.
        executor.submit(A, work(step, cost=0), answers.named("small"))
        assert answers.names == ["small", "large", "small"]

    run(main)


@pytest.mark.parametrize("cost", [0, LONG])
def test_a_refusal_ends_its_own_work_only(cost: int) -> None:
    async def main(executor: Executor) -> None:
        ran: list[str] = []
        error, late = InvalidParameter("no"), Unspecified("bad packet")

        def fail() -> None:
            raise error

        answers = Answers()
        steps: list[Callable[[], None]]
        steps = [lambda: ran.append("before"), fail, lambda: ran.append("after")]
        executor.submit(A, work(*steps, cost=cost), answers.named("fails"))
        # What was bad behind the steps is told when they have run.
        steps = [lambda: ran.append("good")]
        executor.submit(A, work(*steps, cost=cost, refusal=late), answers.named("refused"))
        executor.submit(A, work(cost=cost), answers.named("well"))
        await answers.number(3)
        assert answers.seen == [("fails", error), ("refused", late), ("well", None)]
        assert ran == ["before", "good"]

    run(main)


def test_resources_are_busy_until_the_last_that_touches_them_is_done() -> None:
    async def main(executor: Executor) -> None:
        answers = Answers()
        first, second = Gate(), Gate()
        executor.submit(A, work(first, resources=(1, 2)), answers.named("first"))
        executor.submit(B, work(second, resources=(2, 3)), answers.named("second"))
        waits = {
            number: asyncio.create_task(executor.drained(ResourceId(number)))
            for number in (1, 2, 3)
        }
        await executor.drained(ResourceId(4))
        await first.reached()
        busy = [executor.busy(ResourceId(number)) for number in (1, 2, 3, 4)]
        assert busy == [True, True, True, False]
        first.open.set()
        await waits[1]
        assert not executor.busy(ResourceId(1))
        assert executor.busy(ResourceId(2))
        assert not waits[2].done()
        assert not waits[3].done()
        second.open.set()
        await asyncio.gather(*waits.values())
        assert not executor.busy(ResourceId(2))
        assert answers.names == ["first", "second"]

    run(main)


def test_pause_stops_between_steps_and_resume_goes_on() -> None:
    async def main(executor: Executor) -> None:
        ran: list[str] = []
        answers = Answers()
        gate = Gate()
        steps = (lambda: ran.append("a"), gate, lambda: ran.append("b"), lambda: ran.append("c"))
        executor.submit(A, work(*steps, resources=(1,)), answers.named("A"))
        await gate.reached()
        pausing = asyncio.create_task(executor.pause())
        await asyncio.sleep(0.02)
        assert not pausing.done()  # a step is not cut in two
        gate.open.set()
        await pausing
        # What comes meanwhile waits too, however little it is.
        executor.submit(B, work(lambda: ran.append("small"), cost=0), answers.named("B"))
        executor.submit(C, work(lambda: ran.append("large")), answers.named("C"))
        await asyncio.sleep(0.05)
        assert ran == ["a"]
        assert answers.names == []
        assert executor.busy(ResourceId(1))
        executor.resume()
        assert set(await answers.number(3)) == {"A", "B", "C"}
        assert [step for step in ran if len(step) == 1] == ["a", "b", "c"]
        assert sorted(ran) == ["a", "b", "c", "large", "small"]

    run(main)


def test_pause_does_not_wait_for_the_steps_that_are_left() -> None:
    async def main(executor: Executor) -> None:
        loop = asyncio.get_running_loop()
        ran: list[int] = []

        def step() -> None:
            ran.append(len(ran))
            if len(ran) == 3:  # quick, so that it is not for want of time that the work stops
                asyncio.run_coroutine_threadsafe(executor.pause(), loop)
                while not executor._halted:
                    pass

        answers = Answers()
        executor.submit(A, work(*[step] * 6), answers.named("work"))
        while not ran or executor._running:  # noqa: ASYNC110
            await asyncio.sleep(0)
        assert len(ran) == 3
        executor.resume()
        assert await answers.number(1) == ["work"]
        assert len(ran) == 6

    run(main)


def test_drop_forgets_what_was_not_done() -> None:
    async def main(executor: Executor) -> None:
        ran: list[str] = []
        answers = Answers()
        gate = Gate()
        steps = (gate, lambda: ran.append("dropped"))
        executor.submit(A, work(*steps, resources=(1,)), answers.named("dropped"))
        waits = asyncio.create_task(executor.drained(ResourceId(1)))
        await gate.reached()
        gate.open.set()
        await executor.pause()
        executor.drop()
        await waits
        assert not executor.busy(ResourceId(1))
        # All is as new: nothing is queued before what comes now, and nothing is halted.
        executor.submit(A, work(lambda: ran.append("small"), cost=0), answers.named("small"))
        assert answers.names == ["small"]
        executor.submit(A, work(lambda: ran.append("large")), answers.named("large"))
        assert await answers.number(2) == ["small", "large"]
        await asyncio.sleep(0.02)
        assert ran == ["small", "large"]

    run(main)


def test_a_bug_in_a_step_surfaces_through_failed() -> None:
    async def main(executor: Executor) -> None:
        def bug() -> None:
            raise ZeroDivisionError("a bug")

        answers = Answers()
        failed = asyncio.create_task(executor.wait_for_failure())
        executor.submit(A, work(bug), answers.named("never"))
        with pytest.raises(ZeroDivisionError, match="a bug"):
            await failed
        assert answers.names == []  # nobody is told that it was done
        executor.submit(B, work(lambda: None), answers.named("other"))
        await asyncio.sleep(0.02)
        assert answers.names == []  # the session is ending: nothing more runs
        executor.resume()
        assert await answers.number(1) == ["other"]
        with pytest.raises(ZeroDivisionError):
            executor.submit(C, work(bug, cost=0), answers.named("never"))

    run(main)


def test_failed_does_not_end_for_a_refusal() -> None:
    async def main(executor: Executor) -> None:
        def refuse() -> None:
            raise InvalidParameter("no")

        answers = Answers()
        failed = asyncio.create_task(executor.wait_for_failure())
        executor.submit(A, work(refuse), answers.named("refused"))
        await answers.number(1)
        await asyncio.sleep(0)
        assert not failed.done()
        executor.close()
        with pytest.raises(asyncio.CancelledError):
            await failed

    run(main)


def test_both_threads_answer_also_behind_many_busy_timelines() -> None:
    """A guest can have thousands; what is asked of the threads must not wait for all of them."""

    async def main(executor: Executor) -> None:
        await executor.check_threads()
        stop = threading.Event()
        answers = Answers()
        for number in range(1000):
            steps = [lambda: ignoring(stop.wait(QUANTUM))] * 10
            executor.submit((ContextId(9), number), work(*steps), answers.named("long"))
        before = perf_counter()
        await executor.check_threads()
        assert perf_counter() - before < 0.5  # in the queue of all of them it takes a second
        stop.set()
        await answers.number(1000)

    run(main)


def test_a_thread_that_hangs_does_not_answer() -> None:
    async def main(executor: Executor) -> None:
        answers = Answers()
        gate = Gate()
        executor.submit(A, work(gate), answers.named("hung"))
        await gate.reached()
        for _ in range(3):
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.05):
                    await executor.check_threads()
        # The other one goes on with its work meanwhile.
        executor.submit(B, work(lambda: None), answers.named("well"))
        assert await answers.number(1) == ["well"]
        gate.open.set()
        await executor.check_threads()

    run(main)


def test_after_the_end_there_is_nothing_to_answer() -> None:
    async def main(executor: Executor) -> None:
        gate = Gate()
        executor.submit(A, work(gate), Answers().named("hung"))
        await gate.reached()
        asked = asyncio.create_task(executor.check_threads())
        await asyncio.sleep(0.02)
        executor.close()
        gate.open.set()
        await asked
        await executor.check_threads()

    run(main)


def test_a_pause_holds_back_what_no_thread_has_taken_yet() -> None:
    async def main(executor: Executor) -> None:
        ran: list[int] = []
        answers = Answers()
        for number in range(50):
            steps = [lambda number=number: ran.append(number)]
            executor.submit((ContextId(9), number), work(*steps), answers.named("work"))
        await executor.pause()
        done = len(ran)
        assert done < 50
        await asyncio.sleep(0.05)
        assert len(ran) == done
        executor.resume()
        await answers.number(50)
        assert sorted(ran) == list(range(50))

    run(main)


def test_a_pause_waits_for_the_copies_that_have_begun_and_for_no_others() -> None:
    async def main(executor: Executor) -> None:
        copying = True

        async def copy_again(after: float) -> None:
            await asyncio.sleep(after)
            while copying:
                await executor.run_in_thread(run_steps(lambda: time.sleep(0.02)))

        tasks = [asyncio.create_task(copy_again(after)) for after in (0, 0.01)]
        await asyncio.sleep(0.03)
        async with asyncio.timeout(1):
            await executor.pause()
        copying = False
        await asyncio.gather(*tasks)

    run(main)


def test_a_copy_on_the_event_loop_goes_on_in_a_thread_after_a_slow_step() -> None:
    async def main(executor: Executor) -> None:
        threads: list[int] = []

        def step() -> None:
            threads.append(threading.get_ident())

        def slow() -> None:
            step()
            until = time.thread_time() + 2 * SLOW
            while time.thread_time() < until:
                pass

        await executor.run_steps(run_steps(step, slow, step, step), cost=1000)
        here = threading.get_ident()
        assert [ident == here for ident in threads] == [True, True, False, False]

    run(main)
