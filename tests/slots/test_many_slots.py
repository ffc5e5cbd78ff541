"""However many slots there are, no operation on all of them stops the event loop for longer."""

from __future__ import annotations

import gc
from collections.abc import Callable, Coroutine
from time import thread_time
from typing import Any, Final

from tests.support.long_stops import too_long_each_time
from vgpud.memory.addresses import Gpa
from vgpud.publish import unheard
from vgpud.slots.agent import AgentSlots, Grant
from vgpud.slots.entries import SlotBacking
from vgpud.slots.table import Operation
from vgpud.uapi.page import PAGE_SIZE
from vgpud.unix.fd import Fd

FEW, MANY = 500, 8192
"""A device has no more blobs with slots of their own."""
STEP: Final = 0.008
RATIO: Final = 4.0
BAR: Final = Gpa(1 << 40)


class NoFile(Fd):
    """Stands for a descriptor, of which there can't be as many."""

    __slots__ = ()

    def __init__(self) -> None:
        super().__init__(0)

    def close(self) -> None:
        pass

    def __del__(self) -> None:
        pass


class Willing:
    """An agent that does everything at once."""

    unanswered = 0

    async def ask(self, operation: Operation, file: Fd | None) -> None:
        pass

    def post(self, operation: Operation, file: Fd | None) -> None:
        pass

    def check(self) -> None:
        pass

    def close(self) -> None:
        pass


def longest_stop(operation: Coroutine[Any, Any, Any]) -> float:
    longest = 0.0
    while True:
        started = thread_time()
        try:
            operation.send(None)
        except StopIteration:
            return max(longest, thread_time() - started)
        longest = max(longest, thread_time() - started)


def stops(count: int) -> dict[str, float]:
    """Return the longest stop of each operation with so many slots."""
    slots = AgentSlots("gpu0", unheard)
    numbers = range(count)
    slots.connect(Willing(), Grant(numbers, BAR, flags=0))
    for page in numbers:
        change = slots.table.add(page * PAGE_SIZE, PAGE_SIZE, 0, SlotBacking(1, page, 0))
        slots.table.commit(change)
        assert change.added is not None
        slots._files[change.added.use, change.added.offset] = NoFile()
    found = {}
    operations: dict[str, Callable[[], Coroutine[Any, Any, Any]]] = {
        "move": lambda: slots.move(Gpa(2 * BAR)),
        "renumber": lambda: slots.change(Grant(range(7, 7 + count), BAR, flags=0)),
        "attach": lambda: slots.attach(Willing(), Grant(numbers, BAR, flags=0)),
        "clear": slots.clear,
    }
    for name, operation in operations.items():
        if name == "attach":
            slots.lost("for the test")
        found[name] = longest_stop(operation())
        started = thread_time()
        assert len(slots.part(count // 2, count // 2 + 50)) == (0 if name == "clear" else 50)
        found[f"list after {name}"] = thread_time() - started
    return found


def too_long() -> dict[str, float]:
    """Return the stops of operations on many slots that are longer than those on few allow."""
    gc.collect()
    gc.disable()  # its time is not that of the operations
    try:
        few, many = stops(FEW), stops(MANY)
    finally:
        gc.enable()
    limits = {name: max(RATIO * stop, STEP) for name, stop in few.items()}
    return {name: stop for name, stop in many.items() if stop > limits[name]}


def test_no_operation_on_all_slots_stops_the_loop() -> None:
    assert too_long_each_time(too_long) == {}
