"""The executor's end: what happens to copies, charges and threads."""

from __future__ import annotations

import asyncio
import gc
import threading
import weakref
from collections.abc import Callable
from functools import partial

import pytest

from tests.gpu.executor_stand import LONG, PATIENCE, A, Answers, B, Gate, run, run_steps, work
from tests.support.until import until_async
from vgpud.errors import VgpudError
from vgpud.gpu.errors import InvalidParameter
from vgpud.gpu.executor import Executor
from vgpud.gpu.quota import Quota


@pytest.mark.parametrize("cost", [0, LONG])
@pytest.mark.parametrize("fails", [False, True])
def test_what_work_was_charged_for_is_given_back_when_it_is_done(cost: int, fails: bool) -> None:
    async def main(executor: Executor) -> None:
        quota = Quota(100)
        held: list[int] = []

        def step() -> None:
            held.append(quota.used)
            if fails:
                raise InvalidParameter("no")

        answers = Answers()
        executor.submit(A, work(step, cost=cost, charge=quota.charge(70)), answers.named("done"))
        await answers.number(1)
        assert held == [70]
        assert quota.used == 0

    run(main)


def test_what_dropped_work_was_charged_for_is_given_back() -> None:
    async def main(executor: Executor) -> None:
        quota = Quota(100)
        answers = Answers()
        gate = Gate()
        executor.submit(A, work(gate, gate, charge=quota.charge(30)), answers.named("begun"))
        executor.submit(A, work(gate, charge=quota.charge(20)), answers.named("waits"))
        await gate.reached()
        pausing = asyncio.create_task(executor.pause())
        await asyncio.sleep(0)
        gate.open.set()
        await pausing
        assert quota.used == 50
        executor.drop()
        assert quota.used == 0
        assert answers.names == []

    run(main)


def complaints() -> list[object]:
    """Collects what asyncio has to say of exceptions that nobody took."""
    found: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: found.append(context))
    return found


@pytest.mark.parametrize("end", [Executor.drop, Executor.close], ids=lambda end: end.__name__)
def test_what_ended_work_has_kept_is_freed_in_another_thread(
    end: Callable[[Executor], None],
) -> None:
    class Kept:
        """Memory that a step uses."""

    def use(_: Kept) -> None:
        pass

    freed: list[int] = []

    async def main(executor: Executor) -> None:
        for timeline in (A, B):
            kept = Kept()
            weakref.finalize(kept, lambda: freed.append(threading.get_ident()))
            executor._halted = True
            executor.submit(timeline, work(partial(use, kept)), lambda _: None)
            del kept
        end(executor)
        await until_async(lambda: len(freed) == 2)

    run(main)
    assert threading.get_ident() not in freed


def test_a_copy_aside_leaves_the_loop_free_and_raises_what_it_raises() -> None:
    async def main(executor: Executor) -> None:
        gate = Gate()
        copying = asyncio.create_task(executor.run_in_thread(run_steps(gate)))
        await gate.reached()
        assert not copying.done()
        gate.open.set()
        await copying

        def fail() -> None:
            raise InvalidParameter("no")

        with pytest.raises(VgpudError, match="no"):
            await executor.run_in_thread(run_steps(fail))

    run(main)


@pytest.mark.parametrize("fails", [False, True])
def test_a_cancelled_copy_is_waited_for(fails: bool) -> None:
    async def main(executor: Executor) -> None:
        gate = Gate()
        ended = threading.Event()

        def copy() -> None:
            gate()
            ended.set()
            if fails:
                raise InvalidParameter("no")

        found = complaints()
        copying = asyncio.create_task(executor.run_in_thread(run_steps(copy)))
        await gate.reached()
        copying.cancel()
        await asyncio.sleep(0.02)
        assert not copying.done()
        gate.open.set()
        with pytest.raises(asyncio.CancelledError):
            await copying
        assert ended.is_set()
        del copying
        await asyncio.sleep(0)
        gc.collect()
        assert found == []

    run(main)


def test_a_copy_is_waited_for_however_often_it_is_cancelled() -> None:
    async def main(executor: Executor) -> None:
        gate = Gate()
        copying = asyncio.create_task(executor.run_in_thread(run_steps(gate)))
        await gate.reached()
        for _ in range(3):
            copying.cancel()
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            assert not copying.done()
        gate.open.set()
        await asyncio.wait([copying])
        assert copying.cancelled()

    run(main)


def test_a_bug_in_a_cancelled_copy_surfaces_through_failed() -> None:
    async def main(executor: Executor) -> None:
        gate = Gate()

        def copy() -> None:
            gate()
            raise ZeroDivisionError("a bug")

        failed = asyncio.create_task(executor.wait_for_failure())
        copying = asyncio.create_task(executor.run_in_thread(run_steps(copy)))
        await gate.reached()
        copying.cancel()
        gate.open.set()
        with pytest.raises(ZeroDivisionError):
            await failed

    run(main)


def test_close_does_not_wait_and_tells_nobody() -> None:
    answers: list[object] = []
    gate = Gate()

    async def main() -> None:
        executor = Executor("test")
        found = complaints()
        executor.submit(A, work(gate, lambda: answers.append("next step")), answers.append)
        executor.submit(A, work(lambda: answers.append("next work")), answers.append)
        await gate.reached()
        executor.close()
        await asyncio.sleep(0.02)
        assert found == []

    asyncio.run(main())
    gate.open.set()  # the loop is gone by now; its thread ends all the same
    for thread in threading.enumerate():
        if thread.name.startswith("test-dma"):
            thread.join(PATIENCE)
            assert not thread.is_alive()
    assert answers == []
