"""Blobs that the VMM makes for itself, as the device has them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.gpu import driver as d
from tests.gpu.machine import KIB, PAGE, FakeExecutor, Machine, finish, refused, stop_at
from vgpud.coherency.slot_policy import Layout
from vgpud.gpu.blobs.window_layout import MOVES_IN_THREAD
from vgpud.gpu.resources import HostBlob
from vgpud.gpu.wire.protocol import ResourceId, ResponseType


@pytest.mark.parametrize("layout", Layout)
def test_what_is_not_done_is_not_counted(layout: Layout) -> None:
    with Machine(layout) as machine:
        blobs, counters = machine.gpu.vmm_blobs, machine.gpu.counters
        blob = finish(blobs.create(PAGE))
        assert isinstance(blob, HostBlob)
        machine.bar.refusing = True
        with refused(ResponseType.ERR_UNSPEC):
            finish(blobs.map(blob, 0))
        assert counters.maps == 0
        machine.bar.refusing = False
        finish(blobs.map(blob, 0))
        assert (counters.maps, counters.unmaps) == (1, 0)
        if layout is Layout.PER_BLOB:  # a window stays mapped, whatever is in it
            machine.bar.refusing = True
            for take in (blobs.unmap, blobs.destroy):
                with refused(ResponseType.ERR_UNSPEC):
                    finish(take(blob))
            assert blob.mapped
            assert counters.unmaps == 0
            machine.bar.refusing = False
        finish(blobs.destroy(blob))
        assert (counters.maps, counters.unmaps) == (1, 1)
        assert [kind for kind, *_ in machine.events if kind.startswith("blob.")] == [
            "blob.created",
            "blob.mapped",
            "blob.destroyed",
        ]
        assert machine.used == machine.empty


@pytest.mark.parametrize("layout", Layout)
def test_a_stale_one_is_nobodys(layout: Layout) -> None:
    with Machine(layout) as machine:
        blobs = machine.gpu.vmm_blobs
        stale = finish(blobs.create(PAGE))
        machine.reset()
        assert blobs.find(stale.id) is None
        for use in (blobs.unmap(stale), blobs.map(stale, 0), blobs.destroy(stale)):
            with refused(ResponseType.ERR_INVALID_RESOURCE_ID):
                finish(use)
        assert finish(blobs.create(PAGE)).id != stale.id


class Late(FakeExecutor):
    """Tells of a copy that is done some time after."""

    async def drained(self, resource: ResourceId) -> None:
        self.waited_for.append(resource)

    async def run_steps(self, steps: Iterator[None], cost: int) -> None:
        await self.run_in_thread(steps)

    async def run_in_thread(self, steps: Iterator[None]) -> None:
        for _ in steps:
            pass
        await self._patience.wait()


@pytest.mark.parametrize("writes", [1, 2, 9])
def test_what_a_guest_writes_while_its_blob_makes_room_is_not_lost(writes: int) -> None:
    size = 256 * KIB
    with Machine(executor=Late) as machine:
        machine.all(d.ctx_create(), d.create_blob(1, size), d.ctx_attach(1))
        machine.all(d.map_blob(1, 0), d.unmap_blob(1))
        executor = machine.executor
        blobs = machine.gpu.vmm_blobs
        blob = finish(blobs.create(size))
        machine.patience.pausing = True
        mapping = blobs.map(blob, 0)
        going_on, written = stop_at(mapping), 0
        while going_on and written < writes:
            written += 1
            machine.do(d.submit(d.fill(1, 0, size, written)))
            going_on = stop_at(mapping)
        if going_on:
            finish(mapping)
        assert executor.waited_for == [1] * (min(writes, MOVES_IN_THREAD) + 1)
        assert machine.bytes_of(1) == written.to_bytes(4, "little") * (size // 4)
        assert not any(machine.bar.read(0, size))
