"""However many things a guest makes, no operation stops the event loop for longer.

The longest stop of the event loop in an operation is measured, in processor time, so that other
processes do not count.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from time import thread_time
from typing import Any, Final, TypeAlias

import pytest

from tests.gpu import driver as d
from tests.gpu.machine import PAGE, FakeExecutor, Machine, finish
from tests.support.long_stops import too_long_each_time
from vgpud.coherency.slot_policy import Layout
from vgpud.gpu.contexts import Submission
from vgpud.gpu.wire.command_codec import Command

pytestmark = pytest.mark.timeout(600)

FEW, MANY = 1_000, 100_000
STEP: Final = 0.002
"""Seconds that a stop may take however many there are: a step, and what a slow machine adds."""
RATIO: Final = 4.0

Operation: TypeAlias = Callable[[Machine], object]
Stops: TypeAlias = dict[str, float]


class Threads(FakeExecutor):
    """Does on this thread what is done on another one, and notes how long that takes."""

    elsewhere = 0.0

    async def run_steps(self, steps: Iterator[None], cost: int) -> None:
        await self.run_in_thread(steps)

    async def run_in_thread(self, steps: Iterator[None]) -> None:
        started = thread_time()
        for _ in steps:
            pass
        Threads.elsewhere += thread_time() - started


def loop_time() -> float:
    """Seconds of this thread that would have been the event loop's."""
    return thread_time() - Threads.elsewhere


@contextmanager
def no_collection() -> Iterator[None]:
    """Without the garbage collector, whose time is not that of the operation."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def longest_stop(operation: Callable[[], object]) -> float:
    """Run an operation to its end; return its longest time without a pause, in seconds."""
    with no_collection():
        started = loop_time()
        outcome = operation()
        longest = loop_time() - started
        while isinstance(outcome, Coroutine):
            started = loop_time()
            try:
                outcome.send(None)
            except StopIteration:
                outcome = None
            longest = max(longest, loop_time() - started)
    return longest


def command(command: Command) -> Operation:
    def execute(machine: Machine) -> object:
        outcome = machine.gpu.execute(command)
        assert not isinstance(outcome, Submission)
        return outcome

    return execute


def empty(machine: Machine) -> Coroutine[Any, Any, None]:
    return machine.gpu.empty()


def machine_for(count: int) -> Machine:
    return Machine(
        Layout.WINDOW,
        window=1 << 30,
        limit=(1 << 30) + (count + 16_000) * 6 * PAGE,
        executor=Threads,
    )


def compare(make: Callable[[Machine, int], None], *operations: tuple[str, Operation]) -> None:
    """Assert that no operation on many stops the loop for longer than on few."""
    assert too_long_each_time(lambda: too_long(make, *operations)) == {}


def too_long(make: Callable[[Machine, int], None], *operations: tuple[str, Operation]) -> Stops:
    """Make few and many, and do the operations one after the other; return the stops with many that
    are longer than those with few allow."""
    found: list[Stops] = []
    for count in (FEW, MANY):
        with machine_for(count) as machine:
            make(machine, count)
            found.append({})
            for name, operation in operations:
                found[-1][name] = longest_stop(lambda do=operation: do(machine))  # type: ignore[misc]
            finish(machine.gpu.empty(), 1 << 20)
    few, many = found
    limits = {name: max(RATIO * stop, STEP) for name, stop in few.items()}
    return {name: stop for name, stop in many.items() if stop > limits[name]}


def parked_blobs(machine: Machine, count: int) -> None:
    machine.do(d.ctx_create())
    for number in range(1, count + 1):
        machine.do(d.create_blob(number, PAGE))
        machine.do(d.map_blob(number, number * PAGE))
        machine.do(d.unmap_blob(number))
    # over all of them
    machine.do(d.create_blob(count + 1, (count + 2) * PAGE))


def test_blobs() -> None:
    """Mapping over parked ones, listing, searching, and dropping all."""
    own: list[Any] = []

    def make(machine: Machine, count: int) -> None:
        parked_blobs(machine, count)
        own[:] = [finish(machine.gpu.vmm_blobs.create(16 << 20))]

    compare(
        make,
        ("count", lambda machine: machine.gpu.blob_count),
        ("list", lambda machine: machine.gpu.blobs(500, 600)),
        ("search", lambda machine: machine.gpu.vmm_blobs.map(own[0], None)),
        ("take away", lambda machine: machine.gpu.vmm_blobs.unmap(own[0])),
        ("unref", command(d.unref(77))),
        (
            "map over all",
            lambda machine: command(d.map_blob(len(machine.gpu.resources), 0))(machine),
        ),
        ("reset", empty),
    )


def test_contexts() -> None:
    """Of a resource that is in none of many contexts, and of one that is in all."""

    def make(machine: Machine, count: int) -> None:
        machine.all(d.create_2d(1, 1, 1), d.create_2d(2, 1, 1))
        for number in range(1, count + 1):
            machine.do(d.ctx_create(number))
            machine.do(d.ctx_attach(2, number))

    compare(
        make,
        ("unref of one in none", command(d.unref(1))),
        ("unref of one in all", command(d.unref(2))),
        ("reset", empty),
    )


def test_attached_resources() -> None:
    def make(machine: Machine, count: int) -> None:
        machine.all(d.ctx_create(1), d.ctx_create(2))
        for number in range(1, count + 1):
            machine.do(d.create_2d(number, 1, 1))
            machine.all(d.ctx_attach(number, 1), d.ctx_attach(number, 2))

    compare(make, ("destroy", command(d.ctx_destroy(1))), ("reset", empty))


def test_blobs_of_the_vmms() -> None:
    def make(machine: Machine, count: int) -> None:
        for _ in range(count):
            finish(machine.gpu.vmm_blobs.create(PAGE))

    compare(make, ("list", lambda machine: machine.gpu.blobs(500, 600)), ("reset", empty))
