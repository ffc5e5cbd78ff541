"""Timelines: the order of answers, whatever completes first and on whichever thread."""

from __future__ import annotations

import asyncio
import threading
import time
import weakref
from collections.abc import Awaitable, Callable
from functools import partial
from itertools import permutations

import pytest

from tests.gpu.executor_stand import PATIENCE, A, Answers, B
from vgpud.errors import VgpudError
from vgpud.gpu.errors import Unspecified
from vgpud.gpu.timelines import Timelines
from vgpud.gpu.work import Done, Timeline


def run(main: Callable[[Timelines, Answers], Awaitable[None]]) -> None:
    async def whole() -> None:
        async with asyncio.timeout(PATIENCE):
            await main(Timelines(), Answers())

    asyncio.run(whole())


def begin(timelines: Timelines, timeline: Timeline, answer: Done) -> Done:
    """Starts a command; returns what completes it."""
    started: list[Done] = []
    timelines.run(timeline, started.append, answer)
    [done] = started
    return done


@pytest.mark.parametrize("behind", [False, True])
def test_what_is_complete_at_once_is_answered_at_once(behind: bool) -> None:
    async def main(timelines: Timelines, answers: Answers) -> None:
        error = Unspecified("no")

        def refuse(_: Done) -> None:
            raise error

        first = begin(timelines, A, answers.named("before")) if behind else None
        timelines.run(A, lambda done: done(None), answers.named("done"))
        timelines.run(A, lambda done: done(error), answers.named("fails"))
        timelines.run(A, refuse, answers.named("refused"))
        timelines.after(A, answers.named("fence"))
        assert timelines.empty is not behind
        if first is not None:
            assert answers.names == []
            first(None)
        seen = [("done", None), ("fails", error), ("refused", error), ("fence", None)]
        assert answers.seen[behind:] == seen
        assert timelines.empty

    run(main)


def test_an_error_that_waits_keeps_nothing_alive() -> None:
    class Data:
        pass

    async def main(timelines: Timelines, answers: Answers) -> None:
        data = Data()
        alive = weakref.ref(data)

        def refuse(data: Data, done: Done) -> None:
            raise Unspecified("no")

        before = begin(timelines, A, answers.named("before"))
        timelines.run(A, partial(refuse, data), answers.named("refused"))
        del data
        assert alive() is None
        before(None)
        assert answers.names == ["before", "refused"]

    run(main)


def test_a_bug_in_a_start_is_not_an_answer() -> None:
    async def main(timelines: Timelines, answers: Answers) -> None:
        def bug(_: Done) -> None:
            raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            timelines.run(A, bug, answers.named("never"))
        assert answers.names == []
        assert timelines.empty

    run(main)


@pytest.mark.parametrize("order", list(permutations(range(3))))
def test_answers_are_in_order_on_a_timeline_whatever_the_order_of_completion(
    order: tuple[int, ...],
) -> None:
    async def main(timelines: Timelines, answers: Answers) -> None:
        names = ["first", "second", "third"]
        done = []
        for name in names:
            done.append(begin(timelines, A, answers.named(name)))
            timelines.after(A, answers.named(f"{name} fence"))
        complete: set[int] = set()
        for number in order:
            done[number](None)
            complete.add(number)
            ready = next((n for n in range(3) if n not in complete), 3)
            expected = [text for name in names[:ready] for text in (name, f"{name} fence")]
            assert answers.names == expected
            assert timelines.empty is (ready == 3)

    run(main)


def test_timelines_do_not_wait_for_each_other() -> None:
    async def main(timelines: Timelines, answers: Answers) -> None:
        first = begin(timelines, A, answers.named("A"))
        timelines.after(A, answers.named("fence"))
        begin(timelines, B, answers.named("B"))(None)
        timelines.after(None, answers.named("device"))
        assert answers.names == ["B", "device"]
        first(None)
        assert answers.names == ["B", "device", "A", "fence"]

    run(main)


def test_another_thread_completes_and_the_loop_answers() -> None:
    async def main(timelines: Timelines, answers: Answers) -> None:
        error = Unspecified("no")
        first, second = (begin(timelines, A, answers.named(name)) for name in ("first", "second"))
        thread = threading.Thread(target=lambda: (second(None), first(error)))
        thread.start()
        thread.join()
        assert answers.names == []  # an answer is for the loop's thread
        await answers.number(2)
        assert answers.seen == [("first", error), ("second", None)]

    run(main)


def test_only_the_first_completion_counts() -> None:
    async def main(timelines: Timelines, answers: Answers) -> None:
        first, second = (begin(timelines, A, answers.named(name)) for name in ("first", "second"))
        second(None)
        second(Unspecified("again"))
        thread = threading.Thread(target=lambda: (first(None), first(Unspecified("again"))))
        thread.start()
        thread.join()
        await answers.number(2)
        await asyncio.sleep(0)
        assert answers.seen == [("first", None), ("second", None)]

    run(main)


def test_what_completes_while_answers_are_held_is_answered_later() -> None:
    async def main(timelines: Timelines, answers: Answers) -> None:
        first, second = (begin(timelines, A, answers.named(name)) for name in ("first", "second"))
        timelines.hold()
        second(None)
        first(None)
        await asyncio.sleep(0)
        assert answers.names == []
        assert not timelines.empty
        timelines.run(B, lambda done: done(None), answers.named("other"))
        assert answers.names == []
        timelines.resume()
        assert answers.names == ["first", "second", "other"]
        assert timelines.empty

    run(main)


@pytest.mark.parametrize("held", [False, True])
def test_many_answers_are_given_in_order_and_in_several_turns(held: bool) -> None:
    async def main(timelines: Timelines, answers: Answers) -> None:
        turns: list[int] = []
        timelines.after_batch(lambda: turns.append(len(answers.names)))

        def slow(name: str) -> Done:
            def answer(error: VgpudError | None) -> None:
                time.sleep(0.0001)
                answers.named(name)(error)

            return answer

        names = [f"fence {number}" for number in range(100)]
        first = begin(timelines, A, answers.named("first"))
        for name in names:
            timelines.after(A, slow(name))
        if held:
            timelines.hold()
        first(None)
        if held:
            timelines.resume()
        assert len(answers.names) < 20
        timelines.after(A, answers.named("last"))
        await timelines.drained()
        assert answers.names == ["first", *names, "last"]
        assert len(turns) > 5
        assert turns[-1] >= len(names)
        assert not timelines.batching

    run(main)


def test_a_hold_between_two_turns_of_answers() -> None:
    async def main(timelines: Timelines, answers: Answers) -> None:
        first = begin(timelines, A, answers.named("first"))
        for _ in range(20):
            timelines.after(A, lambda _: time.sleep(0.001))
        timelines.after(A, answers.named("last"))
        first(None)
        timelines.hold()
        await asyncio.sleep(0.05)
        assert answers.names == ["first"]
        timelines.resume()
        await answers.number(2)
        assert timelines.empty

    run(main)


def test_drop_answers_nothing_now_or_later() -> None:
    async def main(timelines: Timelines, answers: Answers) -> None:
        late = begin(timelines, A, answers.named("dropped"))
        timelines.after(A, answers.named("dropped"))
        timelines.hold()
        timelines.drop()
        assert timelines.empty
        fresh = begin(timelines, A, answers.named("fresh"))
        late(None)
        assert answers.names == []
        fresh(None)
        assert answers.names == ["fresh"]

    run(main)


def test_whoever_waits_for_the_last_answer_goes_on_after_a_drop() -> None:
    async def main(timelines: Timelines, answers: Answers) -> None:
        begin(timelines, A, answers.named("dropped"))
        waiting = [asyncio.create_task(timelines.drained()) for _ in range(2)]
        await asyncio.sleep(0)
        assert not any(task.done() for task in waiting)
        timelines.drop()
        await asyncio.gather(*waiting)
        assert answers.names == []

    run(main)


def test_a_completion_after_the_loop_has_ended_does_no_harm() -> None:
    late: list[Callable[[None], None]] = []

    async def main(timelines: Timelines, answers: Answers) -> None:
        late.append(begin(timelines, A, answers.named("late")))

    run(main)
    thread = threading.Thread(target=late[0], args=(None,))
    thread.start()
    thread.join(PATIENCE)
    assert not thread.is_alive()


def test_an_answer_may_bring_the_next_command() -> None:
    async def main(timelines: Timelines, answers: Answers) -> None:
        def answer(_: object) -> None:
            answers.named("first")(None)
            begin(timelines, A, answers.named("next"))(None)

        done = begin(timelines, A, answer)
        timelines.after(A, answers.named("fence"))
        done(None)
        assert answers.names == ["first", "fence", "next"]
        assert timelines.empty

    run(main)
