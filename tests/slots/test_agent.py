"""Slots that a VMM sets for us: a real agent, and agents that refuse, lag, lie or are gone."""

from __future__ import annotations

import array
import asyncio
import errno
import json
import os
import socket
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from tests.support.fake_vm import FakeVm, accept, refusing
from tests.support.kvm_host import Poker, has_flag, open_kvm
from vgpud.client.slot_agent import SlotAgent
from vgpud.control.agent_calls import AgentCalls
from vgpud.control.agent_link import SocketLink
from vgpud.errors import HostError
from vgpud.memory import memfd
from vgpud.memory.addresses import Gpa
from vgpud.memory.mapping import map_shared
from vgpud.publish import unheard
from vgpud.slots.agent import AgentSlots, Grant
from vgpud.slots.errors import InDoubtError
from vgpud.unix.fd import Fd

PAGE = 4096
SIZE = 16 * PAGE
BAR = Gpa(0x4_0000)
MOVED = Gpa(0x8_0000)
FLAG = 8


@pytest.fixture
def window() -> Iterator[Fd]:
    with memfd.create("test-window", SIZE) as fd:
        yield fd


@pytest.fixture(params=[socket.SOCK_DGRAM, socket.SOCK_SEQPACKET], ids=["dgram", "seqpacket"])
def kind(request: pytest.FixtureRequest) -> socket.SocketKind:
    found: socket.SocketKind = request.param
    return found


def open_windows() -> int:
    """Descriptors of the window in this process: the test's own, and what was kept for slots."""
    count = 0
    for entry in Path("/proc/self/fd").iterdir():
        with suppress(FileNotFoundError):  # the one of the directory itself
            count += "/memfd:test-window" in str(entry.readlink())
    return count


@contextmanager
def serving(
    vm: Any, kind: socket.SocketKind = socket.SOCK_DGRAM, **grants: Any
) -> Iterator[tuple[socket.socket, SlotAgent]]:
    """An agent on a thread, and the daemon's end of its socket."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, kind)
    grants.setdefault("numbers", range(1, 32))
    with ours, SlotAgent(theirs, vm, **grants) as agent:
        thread = threading.Thread(target=agent.run)
        thread.start()
        try:
            yield ours, agent
        finally:
            agent.stop()
            thread.join(5)
            assert not thread.is_alive()


def with_slots(
    sock: socket.socket, work: Callable[[AgentSlots], Awaitable[None]], patience: float = 5.0
) -> None:
    async def main() -> None:
        slots = AgentSlots("gpu0", unheard)
        agent = AgentCalls(SocketLink(sock), count(1), patience=patience)
        slots.connect(agent, Grant(range(1, 9), BAR))
        try:
            async with asyncio.timeout(20):
                await work(slots)
        finally:
            slots.close()

    before = open_windows()
    asyncio.run(main())
    assert open_windows() == before


def test_a_guest_writes_through_a_slot_of_the_agent_and_the_slot_moves(
    window: Fd, kind: socket.SocketKind
) -> None:
    async def work(slots: AgentSlots) -> None:
        await slots.map(window, 0, 0, SIZE)
        poker.poke(BAR + 0x1234, 0x42)
        assert view[0x1234] == 0x42
        await slots.move(MOVED)
        poker.poke(MOVED + 0x1235, 0x43)
        assert view[0x1235] == 0x43
        with pytest.raises(AssertionError):
            poker.poke(BAR, 1)
        await slots.unmap(0, SIZE)
        with pytest.raises(AssertionError):
            poker.poke(MOVED, 1)

    view = map_shared(window, SIZE)
    with open_kvm() as kvm, ExitStack() as stack:
        poker = Poker(kvm)
        stack.callback(poker.close)
        sock, agent = stack.enter_context(serving(poker.vm, kind))
        with_slots(sock, work)
        assert agent.live == {}


def test_the_flag_reaches_the_vmms_kvm(window: Fd) -> None:
    async def work(slots: AgentSlots) -> None:
        if flagged:
            await slots.map(window, 0, 0, SIZE, flags=FLAG)
            assert {slot: params.flags for slot, params in agent.live.items()} == {1: FLAG}
            return
        with pytest.raises(HostError) as raised:
            await slots.map(window, 0, 0, SIZE, flags=FLAG)
        assert raised.value.errno == errno.EINVAL
        assert str(raised.value).startswith("slot.set slot=1 addr=0x40000 size=0x10000 flags=0x8")
        assert "does not have KVM_MEM_NON_COHERENT_DMA" in str(raised.value)
        assert len(slots.table) == 0
        await slots.map(window, 0, 0, SIZE)

    with open_kvm() as kvm, kvm.create_vm() as vm, serving(vm) as (sock, agent):
        flagged = has_flag(kvm)
        with_slots(sock, work)


def test_blobs_come_and_go(window: Fd, kind: socket.SocketKind) -> None:
    async def work(slots: AgentSlots) -> None:
        await asyncio.gather(
            *(slots.map(window, blob * PAGE, blob * PAGE, PAGE, flags=FLAG) for blob in range(8))
        )
        assert sorted(at for _, at, _ in vm.slots.values()) == [BAR + n * PAGE for n in range(8)]
        with pytest.raises(HostError, match="all 8 slots of this device are taken"):
            await slots.map(window, 8 * PAGE, 8 * PAGE, PAGE)
        await slots.unmap(3 * PAGE, PAGE)
        await slots.map(window, 9 * PAGE, 3 * PAGE, PAGE, flags=FLAG)
        await slots.move(None)
        assert vm.slots == {}
        await slots.move(MOVED)
        assert len(vm.slots) == 8
        await slots.clear()
        assert vm.slots == {}
        assert len(slots.table) == 0

    vm = FakeVm()
    with serving(vm, kind) as (sock, _):
        with_slots(sock, work)


def test_what_the_vmm_refuses_is_not_registered(window: Fd) -> None:
    async def work(slots: AgentSlots) -> None:
        vm.check = refusing(errno.ENOMEM)
        with pytest.raises(
            HostError, match=r"Cannot allocate memory.*agent says.*as told"
        ) as raised:
            await slots.map(window, 0, 0, PAGE)
        assert raised.value.errno == errno.ENOMEM
        assert not isinstance(raised.value, InDoubtError)
        vm.check = accept
        await slots.map(window, 0, 0, PAGE)
        assert list(vm.slots) == [1]

    vm = FakeVm()
    with serving(vm) as (sock, _):
        with_slots(sock, work)


def test_a_move_that_the_vmm_refuses_is_undone(window: Fd) -> None:
    async def work(slots: AgentSlots) -> None:
        for blob in range(4):
            await slots.map(window, blob * PAGE, blob * PAGE, PAGE)
        before = dict(vm.slots)
        with pytest.raises(HostError, match="leaves the BAR"):
            await slots.move(Gpa(MOVED - 2 * PAGE))
        assert slots.table.base == BAR
        await slots.unmap(3 * PAGE, PAGE)  # answered after everything that was undone
        del before[4]
        assert vm.slots == before

    vm = FakeVm()
    with serving(vm, window=range(BAR, MOVED)) as (sock, _):
        with_slots(sock, work)


def test_a_slot_that_the_vmm_no_longer_has_is_gone(window: Fd) -> None:
    async def work(slots: AgentSlots) -> None:
        await slots.map(window, 0, 0, PAGE)
        delete = slots.table.remove(0, PAGE).operations[0]
        await slots._do(delete)  # behind the table's back
        assert vm.slots == {}
        await slots.unmap(0, PAGE)
        assert len(slots.table) == 0

    vm = FakeVm()
    with serving(vm) as (sock, _):
        with_slots(sock, work)


class Script:
    """An agent that answers by hand: what it was asked, in order, and whatever it says."""

    def __init__(self, kind: socket.SocketKind = socket.SOCK_DGRAM) -> None:
        self.daemon, self.sock = socket.socketpair(socket.AF_UNIX, kind)
        self.sock.settimeout(5)

    def asked(self) -> dict[str, Any]:
        data, ancillary, _, _ = self.sock.recvmsg(65536, socket.CMSG_SPACE(64))
        for _, _, rights in ancillary:
            for fd in array.array("i", rights):
                os.close(fd)
        call: dict[str, Any] = json.loads(data)
        return call

    def all_asked(self) -> list[tuple[str, int]]:
        """Methods and slots of everything that waits."""
        calls = []
        self.sock.setblocking(False)
        try:
            while True:
                call = self.asked()
                calls.append((call["method"], call["params"]["slot"]))
        except BlockingIOError:
            return calls

    def say(self, text: str | bytes) -> None:
        self.sock.send(text if isinstance(text, bytes) else text.encode())

    def agree(self, call_id: object) -> None:
        self.say(json.dumps({"jsonrpc": "2.0", "id": call_id, "result": {}}))

    def close(self) -> None:
        self.sock.close()


@pytest.fixture
def script(kind: socket.SocketKind) -> Iterator[Script]:
    agent = Script(kind)
    yield agent
    agent.close()


def test_an_agent_is_asked_as_the_protocol_says(window: Fd, script: Script) -> None:
    async def work(slots: AgentSlots) -> None:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(slots.map(window, 2 * PAGE, 4 * PAGE, 3 * PAGE, flags=FLAG))
            call = await asyncio.to_thread(script.asked)
            assert call["method"] == "slot.set"
            assert call["params"] == {
                "slot": 1,
                "flags": 8,
                "guest_phys_addr": BAR + 4 * PAGE,
                "memory_size": 3 * PAGE,
                "fd_offset": 2 * PAGE,
                "prot": 3,
            }
            script.agree(call["id"])
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(slots.unmap(4 * PAGE, 3 * PAGE))
            call = await asyncio.to_thread(script.asked)
            assert (call["method"], call["params"]) == ("slot.delete", {"slot": 1})
            script.agree(call["id"])

    with_slots(script.daemon, work)


def test_an_agent_that_does_not_answer_is_told_to_undo_it(window: Fd, script: Script) -> None:
    async def work(slots: AgentSlots) -> None:
        with pytest.raises(InDoubtError, match=r"slot.set slot=1.*has not answered") as raised:
            await slots.map(window, 0, 0, PAGE)
        assert raised.value.errno == errno.ETIMEDOUT
        assert len(slots.table) == 0
        # Nothing new is asked, and nobody waits again, until it has answered.
        loop = asyncio.get_running_loop()
        start = loop.time()
        with pytest.raises(HostError, match="has not answered earlier calls") as refused:
            await slots.map(window, 0, 0, PAGE)
        assert loop.time() - start < 0.15
        assert not isinstance(refused.value, InDoubtError)
        assert script.all_asked() == [("slot.set", 1), ("slot.delete", 1)]
        # It was only slow.
        script.agree(1)
        script.agree(2)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(slots.map(window, 0, 0, PAGE))
            script.sock.settimeout(5)
            call = await asyncio.to_thread(script.asked)
            script.agree(call["id"])
        assert len(slots.table) == 1
        # And is waited for as any other: here for its answer to what was given up.
        task = asyncio.create_task(slots.map(window, PAGE, PAGE, PAGE))
        given_up = await asyncio.to_thread(script.asked)
        task.cancel()
        undone = await asyncio.to_thread(script.asked)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(slots.map(window, PAGE, PAGE, PAGE))
            await asyncio.sleep(0.05)
            script.agree(given_up["id"])
            script.agree(undone["id"])
            script.agree((await asyncio.to_thread(script.asked))["id"])
        assert len(slots.table) == 2

    with_slots(script.daemon, work, patience=0.2)


def test_a_map_that_is_cancelled_is_undone(window: Fd, script: Script) -> None:
    async def work(slots: AgentSlots) -> None:
        task = asyncio.create_task(slots.map(window, 0, 0, PAGE))
        call = await asyncio.to_thread(script.asked)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        undone = await asyncio.to_thread(script.asked)
        assert (undone["method"], undone["params"]) == ("slot.delete", {"slot": 1})
        assert len(slots.table) == 0
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(slots.map(window, 0, 0, PAGE))
            script.agree(call["id"])
            script.agree(undone["id"])
            again = await asyncio.to_thread(script.asked)
            assert again["params"]["slot"] == 1
            script.agree(again["id"])

    with_slots(script.daemon, work)


def test_an_unmap_that_is_not_answered_leaves_the_slot_where_it_was(
    window: Fd, script: Script
) -> None:
    async def work(slots: AgentSlots) -> None:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(slots.map(window, 0, 0, PAGE))
            script.agree((await asyncio.to_thread(script.asked))["id"])
        with pytest.raises(InDoubtError):
            await slots.unmap(0, PAGE)
        assert script.all_asked() == [("slot.delete", 1), ("slot.set", 1)]
        assert len(slots.table) == 1

    with_slots(script.daemon, work, patience=0.2)


def test_a_reset_does_not_wait_for_a_silent_agent_slot_by_slot(window: Fd, script: Script) -> None:
    async def work(slots: AgentSlots) -> None:
        for blob in range(6):
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(slots.map(window, 0, blob * PAGE, PAGE))
                script.agree((await asyncio.to_thread(script.asked))["id"])
        loop = asyncio.get_running_loop()
        start = loop.time()
        await slots.clear()
        assert loop.time() - start < 0.6
        assert len(slots.table) == 0
        # Whatever it does with them, in the end none is left.
        asked = script.all_asked()
        last = {slot: method for method, slot in asked}
        assert last == dict.fromkeys(range(1, 7), "slot.delete")

    with_slots(script.daemon, work, patience=0.2)


def test_an_agent_that_is_gone_is_an_error_at_once(window: Fd, script: Script) -> None:
    async def work(slots: AgentSlots) -> None:
        script.close()
        for _ in range(3):
            with pytest.raises(HostError, match="gone"):
                await slots.map(window, 0, 0, PAGE)
            assert len(slots.table) == 0

    with_slots(script.daemon, work)


def test_an_agent_that_goes_while_it_is_asked(window: Fd, script: Script) -> None:
    async def work(slots: AgentSlots) -> None:
        task = asyncio.create_task(slots.map(window, 0, 0, PAGE))
        await asyncio.to_thread(script.asked)
        script.close()
        # A datagram socket does not tell: then patience ends it.
        with pytest.raises(HostError, match=r"slot agent (is gone|has not answered)"):
            await task
        with pytest.raises(HostError, match="agent"):
            await slots.map(window, 0, 0, PAGE)

    with_slots(script.daemon, work, patience=0.2)


@pytest.mark.parametrize(
    ("answer", "number"),
    [
        (b"hello", errno.EPROTO),
        (b'{"jsonrpc":"2.0","id":1}', errno.EPROTO),
        (b'{"jsonrpc":"2.0","id":99,"result":{}}', errno.ETIMEDOUT),
        (b'{"jsonrpc":"2.0","id":[1],"result":{}}', errno.ETIMEDOUT),
        (b'{"jsonrpc":"2.0","id":1,"error":{"code":-1,"message":"no"}}', errno.EREMOTEIO),
        (
            b'{"jsonrpc":"2.0","id":1,"error":{"code":-1,"message":"no","data":{"errno":17}}}',
            errno.EEXIST,
        ),
        (
            b'{"jsonrpc":"2.0","id":1,"error":{"code":-1,"message":"no","data":{"errno":-4}}}',
            errno.EREMOTEIO,
        ),
        (
            b'{"jsonrpc":"2.0","id":1,"error":{"code":-1,"message":"no","data":{"errno":"x"}}}',
            errno.EREMOTEIO,
        ),
    ],
)
def test_an_agent_that_answers_anything(
    window: Fd, script: Script, answer: bytes, number: int
) -> None:
    async def work(slots: AgentSlots) -> None:
        script.say(answer)
        with pytest.raises(HostError) as raised:
            await slots.map(window, 0, 0, PAGE)
        assert raised.value.errno == number
        assert len(slots.table) == 0
        in_doubt = number in {errno.EPROTO, errno.ETIMEDOUT}
        asked = script.all_asked()
        assert asked == [("slot.set", 1)] + in_doubt * [("slot.delete", 1)]

    with_slots(script.daemon, work, patience=0.2)


def test_an_agent_that_reads_nothing_stops_nobody_else(window: Fd, script: Script) -> None:
    """The socket is full: nothing is sent, nothing is in doubt, and the loop goes on."""

    async def work(slots: AgentSlots) -> None:
        script.daemon.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        with suppress(BlockingIOError):
            while True:
                script.daemon.send(b"{}")
        ticks = 0

        async def tick() -> None:
            nonlocal ticks
            while True:
                await asyncio.sleep(0.01)
                ticks += 1

        ticking = asyncio.create_task(tick())
        with pytest.raises(HostError, match="has not answered") as raised:
            await slots.map(window, 0, 0, PAGE)
        assert not isinstance(raised.value, InDoubtError)
        ticking.cancel()
        assert ticks > 3

    with_slots(script.daemon, work, patience=0.2)
