"""Slots of a VM in this process, as a device sees them: on /dev/kvm, and on a failing VM."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Callable, Coroutine, Iterator

import numpy as np
import pytest

from tests.support.fake_vm import FakeVm, accept, refusing
from tests.support.kvm_host import Poker, has_flag
from vgpud.coherency.facts import facts_of
from vgpud.coherency.planner import plan
from vgpud.coherency.slot_policy import DEFAULT_RULE, GuestPat
from vgpud.errors import HostError
from vgpud.gpu.blobs.window_layout import WindowLayout
from vgpud.gpu.quota import Quota
from vgpud.gpu.wire.protocol import ResourceId
from vgpud.memory import memfd
from vgpud.memory.addresses import Gpa
from vgpud.memory.mapping import map_shared
from vgpud.publish import unheard
from vgpud.slots.local import LocalSlots
from vgpud.slots.memslots import Memslots
from vgpud.slots.table import SlotTable
from vgpud.uapi.kvm import Kvm, Vm
from vgpud.uapi.memslot import SlotFlag
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


def run(work: Callable[[], Coroutine[None, None, None]]) -> None:
    asyncio.run(work())


def test_a_window_slot_follows_the_bar(poker: Poker, window: Fd) -> None:
    async def work() -> None:
        with Memslots(poker.vm) as memslots:
            slots = LocalSlots(memslots, SlotTable(range(1, 9)))
            await slots.map(window, 0, 0, SIZE)
            assert not any(view)  # the BAR is nowhere yet
            await slots.move(BAR)
            poker.poke(BAR + 0x1234, 0x42)
            assert view[0x1234] == 0x42
            await slots.move(Gpa(BAR + PAGE))  # over its old self
            poker.poke(BAR + PAGE + 0x1235, 0x43)
            assert view[0x1235] == 0x43
            await slots.move(None)
            with pytest.raises(AssertionError):
                poker.poke(BAR + PAGE, 1)
            await slots.unmap(0, SIZE)

    view = map_shared(window, SIZE)
    run(work)


def test_a_slot_a_blob(poker: Poker, window: Fd) -> None:
    async def work() -> None:
        with Memslots(poker.vm) as memslots:
            slots = LocalSlots(memslots, SlotTable(range(1, 5), base=BAR))
            for blob in range(4):
                await slots.map(window, blob * PAGE, (7 - blob) * PAGE, PAGE)
            for blob in range(4):
                poker.poke(BAR + (7 - blob) * PAGE + 5, 0x60 + blob)
            assert [view[blob * PAGE + 5] for blob in range(4)] == [0x60, 0x61, 0x62, 0x63]
            with pytest.raises(HostError, match="all 4 slots of this device are taken"):
                await slots.map(window, 8 * PAGE, 0, PAGE)
            await slots.unmap(6 * PAGE, PAGE)
            await slots.map(window, 8 * PAGE, 6 * PAGE, PAGE)
            await slots.move(MOVED)
            poker.poke(MOVED + 6 * PAGE + 5, 0x70)
            assert view[8 * PAGE + 5] == 0x70
            assert view[PAGE + 5] == 0x61
            await slots.clear()
            assert len(memslots) == 0
            with pytest.raises(AssertionError):
                poker.poke(MOVED + 6 * PAGE + 5, 1)

    view = map_shared(window, SIZE)
    run(work)


def test_a_refused_flag_leaves_nothing_behind_and_the_blob_may_be_had_without(
    kvm: Kvm, poker: Poker, window: Fd
) -> None:
    async def work() -> None:
        with Memslots(poker.vm) as memslots:
            slots = LocalSlots(memslots, SlotTable(range(1, 2), base=BAR))
            if has_flag(kvm):
                await slots.map(window, 0, 0, SIZE, flags=FLAG)
                await slots.unmap(0, SIZE)
            else:
                with pytest.raises(HostError, match="does not have KVM_MEM_NON_COHERENT") as raised:
                    await slots.map(window, 0, 0, SIZE, flags=FLAG)
                assert raised.value.errno == errno.EINVAL
            assert len(memslots) == 0
            await slots.map(window, 0, 0, SIZE)

    run(work)


def test_a_move_that_fails_half_way_is_undone(window: Fd) -> None:
    async def work() -> None:
        vm = FakeVm()
        with Memslots(vm) as memslots:
            slots = LocalSlots(memslots, SlotTable(range(9), base=BAR))
            for blob in range(4):
                await slots.map(window, blob * PAGE, blob * PAGE, PAGE)
            before = vm.addresses
            vm.check = refusing(
                errno.ENOMEM, lambda asked: asked.slot == 2 and asked.guest_phys_addr >= MOVED
            )
            with pytest.raises(HostError, match="Cannot allocate memory"):
                await slots.move(MOVED)
            assert vm.addresses == before
            assert slots.table.base == BAR
            vm.check = accept
            await slots.move(MOVED)
            assert vm.addresses == {slot: at - BAR + MOVED for slot, at in before.items()}

    run(work)


def test_a_slot_that_could_not_be_put_back_is_put_back_by_the_next_move(
    window: Fd, caplog: pytest.LogCaptureFixture
) -> None:
    async def work() -> None:
        vm = FakeVm()
        with Memslots(vm) as memslots:
            slots = LocalSlots(memslots, SlotTable(range(9), base=BAR))
            slots.report_to(unheard, "gpu0")
            await slots.map(window, 0, 0, PAGE)
            await slots.map(window, PAGE, PAGE, PAGE)
            vm.check = refusing(errno.ENOMEM, lambda asked: asked.slot == 1)
            with pytest.raises(HostError):
                await slots.move(MOVED)
            assert vm.addresses == {0: BAR}
            assert "slot not restored device=gpu0 slot=1: " in caplog.text
            vm.check = accept
            await slots.move(MOVED)
            assert vm.addresses == {0: MOVED, 1: MOVED + PAGE}
            vm.check = refusing(errno.ENOMEM, lambda asked: asked.slot == 1)
            with pytest.raises(HostError):
                await slots.move(BAR)
            await slots.unmap(PAGE, PAGE)  # which the VM does not have
            assert len(slots.table) == 1

    run(work)


def test_a_file_that_is_too_short_takes_no_slot(window: Fd) -> None:
    async def work() -> None:
        with Memslots(FakeVm()) as memslots:
            slots = LocalSlots(memslots, SlotTable(range(1), base=BAR))
            with pytest.raises(HostError, match="bytes only"):
                await slots.map(window, 0, 0, SIZE + PAGE)
            assert len(memslots) == len(slots.table) == 0
            await slots.map(window, 0, 0, SIZE)

    run(work)


class CountingVm:
    """A VM of KVM, and how often it is asked."""

    def __init__(self, vm: Vm) -> None:
        self.vm = vm
        self.calls = 0

    def set_user_memory_region(
        self, slot: int, flags: int, guest_phys_addr: int, memory_size: int, userspace_addr: int
    ) -> None:
        self.calls += 1
        self.vm.set_user_memory_region(slot, flags, guest_phys_addr, memory_size, userspace_addr)


class NoWork:
    """Background work that is always done."""

    submitted = 0

    def busy(self, resource: ResourceId) -> bool:
        return False

    async def drained(self, resource: ResourceId) -> None:
        return

    async def run_steps(self, steps: Iterator[None], cost: int) -> None:
        await self.run_in_thread(steps)

    async def run_in_thread(self, steps: Iterator[None]) -> None:
        self.free_soon(steps)

    def free_soon(self, steps: Iterator[None]) -> None:
        for _ in steps:
            pass

    async def free_pages(self, steps: Iterator[None], *, give_up: bool = False) -> None:
        self.free_soon(steps)

    async def pages_freed(self) -> None:
        return


def test_a_device_has_30000_blobs_in_one_window_slot(kvm: Kvm) -> None:
    """All live at once, each with contents of its own, and the VM is asked once."""
    blobs = 30_000
    size = 1 << (blobs * PAGE - 1).bit_length()

    async def work(vm: CountingVm) -> None:
        with Memslots(vm) as memslots:
            slots = LocalSlots(memslots, SlotTable(range(1, 2), base=Gpa(1 << 32)))
            layout = WindowLayout(
                "test", size, Quota(2 * size), slots, NoWork(), lambda: SlotFlag.NONE
            )
            cached = plan(facts_of(GuestPat.IGNORED), DEFAULT_RULE)
            memory = [
                layout.allocate(ResourceId(blob), PAGE, cached) for blob in range(1, blobs + 1)
            ]
            for index, blob in enumerate(memory):
                await blob.map(index * PAGE)
                blob.contents().write(0, index.to_bytes(4, "little"))
            assert vm.calls == 1
            heads = layout.window.view(0, blobs * PAGE).view("<u4")[:: PAGE // 4]
            assert np.array_equal(heads, np.arange(blobs))
            for blob in memory[::2]:
                await blob.unmap()
                await blob.destroy()
            assert np.array_equal(heads, np.where(np.arange(blobs) % 2, np.arange(blobs), 0))
            assert vm.calls == 1
            layout.close()

    with kvm.create_vm() as vm:
        asyncio.run(work(CountingVm(vm)))
