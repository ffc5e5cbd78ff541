"""A ring that stops while a command waits: nothing is lost, and the command can be done again.

Each case is run once to count its pauses, and then cancelled at each of them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest

from tests.gpu import driver as d
from tests.gpu.machine import KIB, Machine, cancel, finish, random_bytes, stop_at
from vgpud import pace
from vgpud.coherency.slot_policy import Layout
from vgpud.gpu.wire.command_codec import Command
from vgpud.gpu.wire.responses import MappedBlob, OkNoData, Response

SIZE = 256 * KIB


@dataclass(frozen=True)
class Case:
    """`blobs` are resource: where it is mapped, None for nowhere; `parked` are then unmapped."""

    command: Command
    blobs: dict[int, int | None]
    parked: tuple[int, ...] = ()
    expected: type[Response] = OkNoData
    then_at: dict[int, int | None] | None = None


CASES = {
    "map": Case(d.map_blob(1, SIZE), {1: None}, expected=MappedBlob, then_at={1: SIZE}),
    "map beside": Case(
        d.map_blob(1, SIZE), {1: None, 2: 0}, expected=MappedBlob, then_at={1: SIZE, 2: 0}
    ),
    "map again": Case(d.map_blob(1, 0), {1: 0}, (1,), MappedBlob, {1: 0}),
    "map elsewhere": Case(d.map_blob(1, SIZE // 2), {1: 0}, (1,), MappedBlob, {1: SIZE // 2}),
    "map over two": Case(
        d.map_blob(1, SIZE // 2), {1: None, 2: 0, 3: SIZE}, (2, 3), MappedBlob, {1: SIZE // 2}
    ),
    "map over itself and another": Case(
        d.map_blob(1, SIZE // 2), {1: 0, 2: SIZE}, (1, 2), MappedBlob, {1: SIZE // 2}
    ),
    "unmap": Case(d.unmap_blob(1), {1: SIZE, 2: 0}, then_at={2: 0}),
    "destroy": Case(d.unref(1), {1: None, 2: 0}, then_at={2: 0}),
    "destroy while mapped": Case(d.unref(1), {1: SIZE, 2: 0}, then_at={2: 0}),
    "destroy while parked": Case(d.unref(1), {1: SIZE, 2: 0}, (1,), then_at={2: 0}),
}


def prepare(layout: Layout, case: Case) -> Machine:
    machine = Machine(layout)
    machine.do(d.ctx_create())
    for resource, offset in case.blobs.items():
        machine.all(d.create_blob(resource, SIZE), d.ctx_attach(resource))
        machine.do(d.submit(d.fill(resource, 0, SIZE, 0)))
        data = random_bytes(SIZE, resource)
        machine.gpu.resources.get(resource).contents().write(0, data)  # type: ignore[arg-type]
        if offset is not None:
            machine.do(d.map_blob(resource, offset))
    for resource in case.parked:
        machine.do(d.unmap_blob(resource))
    return machine


def check(machine: Machine, case: Case, *, done: bool) -> None:
    gone = isinstance(case.command, type(d.unref(1)))
    for resource in case.blobs:
        if resource == 1 and gone:
            continue
        assert machine.bytes_of(resource) == random_bytes(SIZE, resource)
    if not done:
        return
    for resource, offset in (case.then_at or {}).items():
        if offset is not None:
            assert machine.bar.read(offset, SIZE) == random_bytes(SIZE, resource)
    if machine.spec.layout is Layout.PER_BLOB:
        assert sorted(machine.bar.mappings) == sorted(
            offset for offset in (case.then_at or {}).values() if offset is not None
        )


def count_pauses(layout: Layout, case: Case) -> int:
    with prepare(layout, case) as machine:
        machine.patience.pausing = True
        coroutine = machine.start(case.command)
        count = 0
        while stop_at(coroutine):
            count += 1
        return count


@pytest.fixture(autouse=True)
def _pauses_at_every_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """However quick the machine is."""
    monkeypatch.setattr(pace, "STEP", -1.0)


@pytest.mark.parametrize("layout", Layout)
@pytest.mark.parametrize("name", CASES)
def test_a_cancelled_command_loses_nothing_and_can_be_done_again(layout: Layout, name: str) -> None:
    case = CASES[name]
    expected_use = use_after(layout, case)
    for pause in range(count_pauses(layout, case)):
        with prepare(layout, case) as machine:
            machine.patience.pausing = True
            coroutine = machine.start(case.command)
            for _ in range(pause + 1):
                assert stop_at(coroutine)
            cancel(coroutine)
            machine.patience.pausing = False
            check(machine, case, done=False)
            assert isinstance(machine.do(case.command), case.expected)
            check(machine, case, done=True)
            assert machine.used == expected_use
            leave(machine, case)


def test_there_is_something_to_cancel() -> None:
    pauses = {
        (layout, name): count_pauses(layout, case)
        for layout in Layout
        for name, case in CASES.items()
    }
    assert pauses[Layout.WINDOW, "map"] == 2  # the window, and the move into it
    assert pauses[Layout.WINDOW, "map over itself and another"] == 7
    assert pauses[Layout.PER_BLOB, "map"] == 2  # the flush before the guest gets it, and the VMM
    assert pauses[Layout.PER_BLOB, "unmap"] == 1
    # To be unmapped, and to be detached from contexts.
    assert pauses[Layout.PER_BLOB, "destroy while mapped"] == 2


def use_after(layout: Layout, case: Case) -> int:
    """What is charged when the command was done without an interruption."""
    with prepare(layout, case) as machine:
        machine.do(case.command)
        return machine.used


def leave(machine: Machine, case: Case) -> None:
    for resource in case.blobs:
        if resource in {one.id for one in machine.gpu.resources}:
            machine.do(d.unref(resource))
    machine.do(d.ctx_destroy())
    assert machine.used == machine.empty


@pytest.mark.parametrize("layout", Layout)
@pytest.mark.parametrize("name", CASES)
def test_a_reset_after_a_cancelled_command_leaves_nothing(layout: Layout, name: str) -> None:
    case = CASES[name]
    for pause in range(count_pauses(layout, case)):
        with prepare(layout, case) as machine:
            machine.patience.pausing = True
            coroutine = machine.start(case.command)
            for _ in range(pause + 1):
                assert stop_at(coroutine)
            cancel(coroutine)
            machine.patience.pausing = False
            machine.reset()
            assert machine.used == machine.empty
            machine.all(d.ctx_create(), d.create_blob(1, SIZE), d.map_blob(1, 0))
            assert machine.bar.read(0, SIZE) == bytes(SIZE)


WAITING: list[Callable[[], Command]] = [
    lambda: d.map_blob(1, 0),
    lambda: d.unmap_blob(1),
    lambda: d.unref(1),
    lambda: d.ctx_detach(1),
    lambda: d.assign_uuid(1),
]


@pytest.mark.parametrize("make", WAITING)
def test_a_command_cancelled_while_it_waits_for_work_has_done_nothing(
    make: Callable[[], Command],
) -> None:
    with Machine() as machine:
        machine.all(d.ctx_create(), d.create_blob(1, SIZE), d.ctx_attach(1), d.map_blob(1, SIZE))
        done = machine.hold(d.submit(d.fill(1, 0, SIZE, 0x01020304)))
        used = machine.used
        coroutine = machine.start(make())
        assert stop_at(coroutine)
        assert stop_at(coroutine)
        cancel(coroutine)
        assert machine.used == used
        done()
        assert machine.bytes_of(1) == b"\4\3\2\1" * (SIZE // 4)
        assert machine.bar.read(SIZE, 4) == b"\4\3\2\1"
        again = machine.gpu.execute(d.unmap_blob(1))
        assert isinstance(finish(again), OkNoData)  # type: ignore[arg-type]
