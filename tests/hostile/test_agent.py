"""Agents that lie, and agents that come and go while something else is under way."""

from __future__ import annotations

import asyncio
import errno
import json
import resource
from collections.abc import Iterator
from functools import partial
from itertools import count
from typing import Any

import pytest

from vgpud.control.agent_calls import AgentCalls
from vgpud.control.events import Events
from vgpud.control.models import Event
from vgpud.control.rpc import Incoming, decode
from vgpud.errors import HostError
from vgpud.memory import memfd
from vgpud.memory.addresses import Gpa
from vgpud.slots.agent import FEW_UNDOS, AgentSlots, Grant
from vgpud.slots.entries import Entry, Slot, SlotBacking, SlotUse
from vgpud.slots.table import SetSlot
from vgpud.uapi.memslot import SlotFlag
from vgpud.unix.fd import Fd

PAGE = 4096
BAR = Gpa(0x4_0000)
FLAG = 8


class Link:
    """An agent's end as a list of what it was asked; `answer` is the agent."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, int]] = []
        self.calls: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self.closed = False
        self._answers: asyncio.Queue[Incoming | None] = asyncio.Queue()

    def send(self, data: bytes, fd: Fd | None) -> None:
        if self.closed:
            raise ConnectionResetError(errno.ECONNRESET, "closed")
        call = json.loads(data)
        if "id" in call:
            self.asked.append((call["method"], call["params"]["slot"]))
            self.calls.put_nowait(call)

    async def recv(self) -> Incoming | None:
        return None if self.closed else await self._answers.get()

    async def writable(self) -> None:
        await asyncio.sleep(0)

    def close(self) -> None:
        self.closed = True
        self._answers.put_nowait(None)

    async def agree(self) -> None:
        """To the next thing that it is asked."""
        call = await self.calls.get()
        self.say({"jsonrpc": "2.0", "id": call["id"], "result": {}})

    async def refuse(self, message: str) -> None:
        """The next thing that it is asked."""
        call = await self.calls.get()
        self.say({"jsonrpc": "2.0", "id": call["id"], "error": {"code": 1, "message": message}})

    def say(self, answer: object) -> None:
        self._answers.put_nowait(decode(json.dumps(answer).encode()))


class ReportingSlots:
    """Slots that report to a list."""

    def __init__(self, patience: float = 5.0) -> None:
        self.events: list[Event] = []
        events = Events()
        events.listen(self.events.append)
        self.slots = AgentSlots("gpu0", partial(events.publish, device="gpu0"))
        self._ids = count(1)
        self._patience = patience

    def calls(self, link: Link) -> AgentCalls:
        """The daemon's end of a link."""
        return AgentCalls(link, self._ids, patience=self._patience)

    @property
    def kinds(self) -> list[str]:
        return [event.kind for event in self.events]


@pytest.fixture
def blob() -> Iterator[Fd]:
    with memfd.create("test-blob", 4 * PAGE) as fd:
        yield fd


def grant(base: Gpa | None = BAR, flags: int = 0) -> Grant:
    return Grant(range(1, 9), base, flags, pid=1, uid=0)


@pytest.mark.parametrize(
    "message", ["\ud800", "a\nforged line device=gpu1", "x" * 60_000], ids=["half", "lines", "long"]
)
def test_what_an_agent_says_is_told_as_a_line(
    message: str, blob: Fd, caplog: pytest.LogCaptureFixture
) -> None:
    """It ends up in events and in the log, where it must neither break nor forge anything."""

    async def main() -> None:
        stand, link = ReportingSlots(), Link()
        stand.slots.connect(stand.calls(link), grant())
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(link.refuse(message))
            with pytest.raises(HostError) as raised:
                await stand.slots.map(blob, 0, 0, PAGE)
        assert raised.value.errno == errno.EREMOTEIO
        [event] = stand.events
        assert event.kind == "slot.refused"
        for text in (event.message, caplog.text.rstrip("\n")):
            assert len(text) < 1000
            assert "\n" not in text
            text.encode()
        stand.slots.close()

    asyncio.run(main())


def test_an_agent_that_goes_while_the_bar_leaves(blob: Fd) -> None:
    """Its slots go with it, so that the move is done; but nobody is attached then."""

    async def main() -> None:
        stand, link = ReportingSlots(), Link()
        slots = stand.slots
        slots.connect(stand.calls(link), grant())
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(link.agree())
            await slots.map(blob, 0, 0, PAGE)
        moving = asyncio.create_task(slots.move(None))
        await link.calls.get()
        slots.lost("killed")
        with pytest.raises(HostError, match="no agent is attached"):
            await moving
        assert slots.attached() is None
        assert "agent.moved" not in stand.kinds
        slots.close()

    asyncio.run(main())


@pytest.mark.parametrize("given_up", ["late", "cancelled"])
def test_a_trial_that_nobody_knows_the_end_of_is_undone(given_up: str, blob: Fd) -> None:
    """The page of a trial that was set late would be in the way of the first blob."""

    async def main() -> None:
        stand, link = ReportingSlots(patience=0.1), Link()
        stand.slots.connect(stand.calls(link), grant(None, FLAG))
        moving = asyncio.create_task(stand.slots.move(BAR))
        call = await link.calls.get()
        if given_up == "cancelled":
            moving.cancel()
        [error] = await asyncio.gather(moving, return_exceptions=True)
        assert isinstance(error, HostError | asyncio.CancelledError)
        assert link.asked == [("slot.set", 1), ("slot.delete", 1)]
        link.say({"jsonrpc": "2.0", "id": call["id"], "result": {}})
        await link.agree()
        stand.slots.close()

    asyncio.run(main())


def test_slots_that_are_closed_while_they_are_cleared(blob: Fd) -> None:
    async def main() -> None:
        stand, link = ReportingSlots(), Link()
        stand.slots.connect(stand.calls(link), grant())
        for number in range(2):
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(link.agree())
                await stand.slots.map(blob, 0, number * PAGE, PAGE)
        clearing = asyncio.create_task(stand.slots.clear())
        await link.calls.get()
        stand.slots.close()
        await clearing
        assert len(stand.slots.table) == 0

    asyncio.run(main())


def test_slots_that_are_closed_tell_so_and_take_no_agent(blob: Fd) -> None:
    """The configuration has taken the device away, or has given its slots to the front-end."""

    async def main() -> None:
        stand, link, late = ReportingSlots(), Link(), Link()
        stand.slots.connect(stand.calls(link), grant())
        mapping = asyncio.create_task(stand.slots.map(blob, 0, 0, PAGE))
        await link.calls.get()
        stand.slots.lost("killed")
        attaching = asyncio.create_task(stand.slots.attach(stand.calls(late), grant()))
        stand.slots.close()
        with pytest.raises(HostError):
            await mapping
        with pytest.raises(HostError, match="has no slot agent any more"):
            await attaching
        assert late.closed
        assert late.asked == []

    asyncio.run(main())


def test_an_agent_whose_device_goes_is_told_of_as_detached() -> None:
    async def main() -> None:
        stand, link = ReportingSlots(), Link()
        stand.slots.connect(stand.calls(link), grant())
        stand.slots.close()
        stand.slots.close()
        assert stand.kinds == ["agent.detached"]
        assert link.closed

    asyncio.run(main())


def test_whoever_looks_often_has_the_host_looked_at_once() -> None:
    """To look is to make a VM, which takes milliseconds."""

    async def main() -> None:
        stand, link = ReportingSlots(), Link()
        slots = stand.slots
        slots.connect(stand.calls(link), grant(None, FLAG))
        found = slots.finding()
        assert slots.finding() is found
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(slots.move(BAR))
            await link.agree()  # to a slot with the flag
            await link.agree()
        accepted = slots.finding()
        assert accepted is not found
        assert slots.finding() is accepted
        slots.lost("killed")
        slots.connect(stand.calls(Link()), grant(None, FLAG))
        assert slots.finding() is not found
        slots.close()

    asyncio.run(main())


def test_what_can_be_undone_is_where_descriptors_have_run_out(
    blob: Fd, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        stand, link = ReportingSlots(), Link()
        stand.slots.connect(stand.calls(link), grant())
        for number in range(2):
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(link.agree())
                await stand.slots.map(blob, 0, number * PAGE, PAGE)
        link.asked.clear()
        moving = asyncio.create_task(stand.slots.move(Gpa(0x8_0000)))
        for _ in range(3):
            await link.agree()
        async with asyncio.timeout(5):
            last = await link.calls.get()
        link.calls.put_nowait(last)
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
        try:
            await link.refuse("no")
            with pytest.raises(HostError, match="agent says: no"):
                await moving
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        done = [("slot.delete", 1), ("slot.delete", 2), ("slot.set", 1), ("slot.set", 2)]
        assert link.asked == [*done, ("slot.delete", 1)]
        stand.slots.close()

    asyncio.run(main())
    assert caplog.text.count("slot not restored by the agent device=gpu0 slot=") == 2


def test_maps_that_are_given_up_are_undone_once(blob: Fd) -> None:
    async def main() -> None:
        stand, link = ReportingSlots(), Link()
        calls = stand.calls(link)
        stand.slots.connect(calls, grant())
        for _ in range(100):
            task = asyncio.create_task(stand.slots.map(blob, 0, 0, PAGE))
            for _ in range(5):
                await asyncio.sleep(0)
            task.cancel()
            await asyncio.wait([task])
        assert link.asked == [("slot.set", 1), ("slot.delete", 1)]
        assert calls.unanswered == 2
        assert stand.slots.grant is not None
        stand.slots.close()

    asyncio.run(main())


def test_an_agent_that_lets_undone_operations_pile_up_is_lost(blob: Fd) -> None:
    async def main() -> None:
        stand, link = ReportingSlots(), Link()
        calls, slots = stand.calls(link), stand.slots
        slots.connect(calls, grant())
        most = 2 * len(grant().numbers) + FEW_UNDOS
        entry = Entry(Slot(1), SlotUse.BAR, 0, PAGE, SlotFlag.NONE, SlotBacking(0, 0, 0))
        slots._hold(entry, blob)
        for _ in range(most + 1):
            slots._undo([SetSlot(entry, BAR)])
        assert (calls.unanswered, slots.grant) == (most + 1, grant())
        slots._undo([SetSlot(entry, BAR)])
        assert (calls.unanswered, slots.grant, link.closed) == (0, None, True)
        assert stand.kinds == ["agent.lost"]
        slots.close()

    asyncio.run(main())
