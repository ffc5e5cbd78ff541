"""Reading what scanouts show: no command reads much at once, and no long list is resolved for it
while the event loop waits."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest

from tests.gpu import driver as d
from tests.gpu.machine import LOW, REGION, FakeExecutor, Machine, finish, screenshot
from vgpud.gpu.display.channel import DisplayChannel
from vgpud.gpu.display.shadow import Shadow
from vgpud.gpu.guest_memory import LONG_LIST
from vgpud.gpu.wire import dma
from vgpud.gpu.wire.command_codec import Command
from vgpud.gpu.wire.header import Rect
from vgpud.gpu.wire.mem_entries import MemEntries
from vgpud.memory.extents import Extents
from vgpud.unix.stream_socket import StreamSocket
from vgpud.vhost.memory_table import MemoryTable

SIDE = 64
WHOLE = Rect(0, 0, SIDE, SIDE)
MANY = LONG_LIST + 100
PIECES = tuple((LOW + 16 * (7 * number % 8000), 4) for number in range(MANY))


def show_long_list(machine: Machine) -> None:
    machine.do(d.guest_blob(1, *PIECES))
    machine.do(d.set_scanout_blob(0, 1, WHOLE, (SIDE, SIDE), stride=4 * SIDE))


@contextmanager
def displayed(machine: Machine) -> Iterator[DisplayChannel]:
    """A display that sends nothing yet."""
    gpu = machine.gpu
    ours, theirs = socket.socketpair()
    channel = DisplayChannel("gpu0", StreamSocket(ours), gpu.scanouts.pictures, gpu.quota)
    gpu.attach_display(channel)
    yield channel
    gpu.attach_display(None)
    channel.close()
    theirs.close()


def test_a_long_list_is_resolved_before_it_is_read() -> None:
    with Machine() as machine:
        show_long_list(machine)
        pictures = machine.gpu.scanouts.pictures
        expected = pictures.xrgb(0, WHOLE)
        assert expected is not None
        machine.ram.share()  # another table
        shadow = Shadow(SIDE, SIDE)
        assert pictures.cost(0, WHOLE) is None
        assert pictures.xrgb(0, WHOLE) is None
        assert pictures.update(0, WHOLE, shadow) is None
        before = machine.used
        finish(pictures.prepare(0))
        assert machine.used == before
        assert (pictures.cost(0, WHOLE) or 0) > 200 * SIDE * SIDE
        assert np.array_equal(pictures.xrgb(0, WHOLE), expected)  # type: ignore[arg-type]
        assert pictures.update(0, WHOLE, shadow) is not None
        machine.ram.share()
        assert screenshot(machine.gpu, 0) is not None


def test_a_list_that_there_is_no_memory_to_resolve_is_not_read() -> None:
    with Machine() as machine:
        show_long_list(machine)
        machine.ram.share()
        machine.gpu.quota.limit = machine.gpu.quota.used + 4096
        pictures = machine.gpu.scanouts.pictures
        finish(pictures.prepare(0))
        assert pictures.xrgb(0, WHOLE) is None
        assert "output 0 can't be read" in str(machine.gpu.quota.problem)


class Changing(FakeExecutor):
    """Has the front-end send another table while a list is being resolved, some times."""

    machine: Machine
    times = 3

    async def run_in_thread(self, steps: Iterator[None]) -> None:
        await super().run_in_thread(steps)
        if self.times:
            self.times -= 1
            self.machine.ram.share()


def test_a_table_that_changes_meanwhile_is_followed(monkeypatch: pytest.MonkeyPatch) -> None:
    with Machine(executor=Changing) as machine:
        assert isinstance(machine.executor, Changing)
        machine.executor.machine = machine
        machine.executor.times = 0
        show_long_list(machine)
        machine.ram.share()
        machine.executor.times = 3
        lengths: list[int] = []
        resolve = MemoryTable.resolve

        def noted(self: MemoryTable, entries: MemEntries) -> Extents:
            lengths.append(len(entries))
            return resolve(self, entries)

        monkeypatch.setattr(MemoryTable, "resolve", noted)
        finish(machine.gpu.scanouts.pictures.prepare(0))
        assert machine.executor.times == 0
        assert max(lengths) <= LONG_LIST
        assert machine.gpu.scanouts.pictures.xrgb(0, WHOLE) is not None


@pytest.mark.parametrize("blob", [False, True])
def test_one_command_takes_few_pictures_at_once(blob: bool) -> None:
    async def test() -> None:
        with Machine(limit=1 << 28) as machine, displayed(machine) as channel:
            side = 512
            whole = Rect(0, 0, side, side)
            if blob:
                machine.do(d.guest_blob(1, *[(LOW, REGION)] * 4))
                for output in range(16):
                    machine.do(d.set_scanout_blob(output, 1, whole, (side, side), stride=4 * side))
                command: Command = d.flush(1, whole)
            else:
                machine.all(d.create_2d(1, side, side), d.attach_backing(1, (LOW, REGION)))
                machine.all(*[d.set_scanout(output, 1, whole) for output in range(16)])
                machine.do(d.flush(1, whole))
                command = d.transfer(1, Rect(0, 0, 8, 8))
            waiting = machine.start(command)
            left = [frames.unsettled for frames in channel._frames.values()]
            assert 12 <= sum(left) < 16
            await waiting
            assert not channel.unsettled

    asyncio.run(test())


def test_a_stale_list_is_resolved_before_its_frame_is_taken() -> None:
    async def test() -> None:
        with Machine() as machine:
            machine.do(d.ctx_create())
            show_long_list(machine)
            machine.do(d.ctx_attach(1))
            with displayed(machine) as channel:
                machine.ram.share()
                waiting = machine.start(d.submit(dma.Nop()))
                assert channel.unsettled
                await waiting
                assert not channel.unsettled

    asyncio.run(test())


def test_a_picture_of_single_bytes_is_taken_in_steps() -> None:
    async def test() -> None:
        with Machine(limit=1 << 28) as machine, displayed(machine) as channel:
            reads: list[Rect] = []
            side = 128
            pieces = [(LOW + 3 * number % REGION, 1) for number in range(4 * side * side)]
            machine.do(d.guest_blob(1, *pieces, *[(LOW, REGION)] * 1000))  # cheap in the mean
            picture = Rect(0, 0, side, side)
            machine.do(d.set_scanout_blob(0, 1, picture, (side, side), stride=4 * side))
            update = machine.gpu.scanouts.pictures.update

            def noted(scanout_id: int, rect: Rect, shadow: Shadow) -> object:
                reads.append(rect)
                return update(scanout_id, rect, shadow)

            machine.gpu.scanouts.pictures.update = noted  # type: ignore[method-assign,assignment]
            await machine.start(d.flush(1, picture))
            assert not channel.unsettled
            assert len(reads) > 30

    asyncio.run(test())
