"""A device with a second renderer: what goes to which, fences from another thread, and its
death."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest

from tests.gpu import driver as d
from tests.gpu.machine import LOW, PAGE, REGION, Machine, refused, screenshot
from tests.gpu.second_renderer import BAD, CAPSET, DATA, SecondRenderer
from tests.support.until import until_async
from tests.vhost.queue_stand import PATIENCE, QueueStand, standing
from vgpud.coherency.kvm_mode import KvmMode
from vgpud.coherency.slot_policy import Fallback, GuestPat, Layout, MemoryType, Rule
from vgpud.errors import Unsupported
from vgpud.gpu.compose import compose
from vgpud.gpu.device import GpuDevice
from vgpud.gpu.environment import Environment
from vgpud.gpu.spec import DeviceSpec, PreferredMode
from vgpud.gpu.wire import commands, responses
from vgpud.gpu.wire.command_codec import Command, encode
from vgpud.gpu.wire.header import Box, Header, Rect
from vgpud.gpu.wire.protocol import (
    BlobMem,
    CapsetId,
    ContextId,
    Feature,
    MapInfo,
    ResourceId,
    ResponseType,
)
from vgpud.gpu.wire.responses import CapsetData, CapsetInfo, MappedBlob
from vgpud.memory.backing import HostBacking

OK = ResponseType.OK_NODATA
UNSPEC = ResponseType.ERR_UNSPEC
DMA_CTX, CTX = 1, 2
FENCE, RING_IDX = 1 << 0, 1 << 1
FILL = 0x5A5A5A5A


# What goes to which renderer


@pytest.fixture
def second() -> SecondRenderer:
    return SecondRenderer()


@pytest.fixture
def machine(second: SecondRenderer) -> Iterator[Machine]:
    with Machine(make_renderers=second.making()) as machine:
        yield machine


def test_capsets_are_those_of_all_renderers(machine: Machine) -> None:
    assert int.from_bytes(machine.gpu.config_space.read()[12:16], "little") == 2
    assert machine.do(d.capset_info(0)) == CapsetInfo(CapsetId.DMA, 1, 16)
    assert machine.do(d.capset_info(1)) == CapsetInfo(CAPSET, 3, len(DATA))
    assert machine.do(d.capset_info(2)) == CapsetInfo(0, 0, 0)
    assert machine.do(d.get_capset(CAPSET, 2)) == CapsetData(DATA)
    with refused(ResponseType.ERR_INVALID_PARAMETER):
        machine.do(d.get_capset(CAPSET, 4))


def test_a_context_is_of_the_renderer_that_has_its_capset(
    machine: Machine, second: SecondRenderer
) -> None:
    machine.all(d.ctx_create(DMA_CTX, 0), d.ctx_create(CTX, CAPSET), d.ctx_create(3, CapsetId.DMA))
    assert list(second.contexts) == [CTX]  # none of no capset: that is the first renderer's
    assert second.names == [b"test"]
    machine.all(d.create_2d(1, 4, 4), d.ctx_attach(1, DMA_CTX), d.ctx_attach(1, CTX))
    machine.do(d.ctx_attach(1, CTX))  # a second time changes nothing
    assert list(second.contexts[ContextId(CTX)]) == [1]
    machine.do(d.submit(d.fill(1, 0, 64, FILL), ctx=DMA_CTX))
    assert machine.bytes_of(1) == bytes([0x5A]) * 64
    machine.do(d.ctx_detach(1, CTX))
    assert second.contexts[ContextId(CTX)] == {}
    machine.all(d.ctx_attach(1, CTX), d.unref(1))
    assert second.contexts[ContextId(CTX)] == {}
    machine.do(d.ctx_destroy(CTX))
    assert second.contexts == {}
    machine.gpu.close()
    assert second.closed


def test_what_a_renderer_refuses_costs_nothing(machine: Machine, second: SecondRenderer) -> None:
    with refused(ResponseType.ERR_INVALID_PARAMETER):
        kind = commands.CtxCreate
        machine.do(kind(d.header(kind, CTX), CAPSET, BAD))
    assert machine.used == machine.empty
    machine.all(d.ctx_create(CTX, CAPSET), d.create_2d(1, 4, 4))
    used = machine.used
    second.quiet = True
    with refused(UNSPEC):
        machine.do(d.ctx_attach(1, CTX))
    assert machine.used == used
    with refused(ResponseType.ERR_INVALID_PARAMETER):
        machine.do(submit(BAD, 0))


# Blobs in memory of a renderer's own


RULE = Rule(memory_type=MemoryType.WC, fallback=Fallback.FLUSH, layout=Layout.PER_BLOB)


def test_a_blob_is_planned_by_the_memory_that_its_renderer_made(second: SecondRenderer) -> None:
    with Machine(
        Layout.PER_BLOB,
        guest_pat=GuestPat.IGNORED,
        kvm=KvmMode.FORCED_WB,
        rule=RULE,
        make_renderers=second.making(),
    ) as machine:
        machine.all(d.ctx_create(DMA_CTX), d.ctx_create(CTX, CAPSET))
        machine.do(d.create_blob(1, PAGE, ctx=CTX))
        second.backing = HostBacking.MMIO
        machine.do(d.create_blob(2, PAGE, ctx=CTX))
        machine.do(d.create_blob(3, PAGE, ctx=DMA_CTX))
        assert second.asked == [(CTX, 0, PAGE)] * 2  # with (context, blob_id), and never for DMA's
        # KVM makes RAM write-back whatever is said; not so the memory of a device.
        assert machine.do(d.map_blob(1, 0)) == MappedBlob(MapInfo.CACHED)
        assert machine.do(d.map_blob(2, PAGE)) == MappedBlob(MapInfo.WC)
        assert machine.do(d.map_blob(3, 2 * PAGE)) == MappedBlob(MapInfo.CACHED)
        machine.bar.write(PAGE, b"guest")
        assert second.made[1].view[:5].tobytes() == b"guest"
        with refused(UNSPEC):  # the renderer's own are transferred by it
            machine.do(d.transfer_3d(2, Box(0, 0, 0, 8, 8, 1)))
        machine.all(d.unref(1), d.unref(2), d.unref(3))
        machine.all(d.ctx_destroy(DMA_CTX), d.ctx_destroy(CTX))
        assert machine.used == machine.empty
        assert all(buffer.fd.closed for buffer in second.made)


def test_a_device_with_blobs_in_a_renderers_memory_is_not_saved(second: SecondRenderer) -> None:
    with Machine(Layout.PER_BLOB, make_renderers=second.making()) as machine:
        machine.all(d.ctx_create(CTX, CAPSET), d.create_blob(1, PAGE, ctx=CTX))
        with pytest.raises(Unsupported, match="blob 1 "):
            machine.gpu.save()
        machine.do(d.unref(1))
        assert machine.gpu.save().resources == ()


def test_a_renderer_may_leave_a_blob_to_the_devices_layout(
    machine: Machine, second: SecondRenderer
) -> None:
    second.backing = None
    machine.all(d.ctx_create(CTX, CAPSET), d.create_blob(1, PAGE, ctx=CTX), d.map_blob(1, 0))
    machine.bar.write(0, b"guest")
    assert machine.bytes_of(1)[:5] == b"guest"
    machine.all(d.unref(1), d.ctx_destroy(CTX))
    assert machine.used == machine.empty


def test_a_renderers_buffer_does_not_go_into_a_window(
    machine: Machine, second: SecondRenderer
) -> None:
    machine.do(d.ctx_create(CTX, CAPSET))
    used = machine.used
    with refused(UNSPEC):
        machine.do(d.create_blob(1, PAGE, ctx=CTX))
    assert machine.used == used
    assert all(buffer.fd.closed for buffer in second.made)


@pytest.mark.parametrize("case", ["short", "policy", "entries"])
def test_a_blob_that_comes_to_nothing_leaves_nothing(second: SecondRenderer, case: str) -> None:
    fallback = Fallback.REFUSE if case == "policy" else Fallback.FLUSH
    rule = Rule(memory_type=MemoryType.WC, fallback=fallback, layout=Layout.PER_BLOB)
    with Machine(
        Layout.PER_BLOB,
        guest_pat=GuestPat.IGNORED,
        kvm=KvmMode.FORCED_WB,
        rule=rule,
        make_renderers=second.making(),
    ) as machine:
        machine.do(d.ctx_create(CTX, CAPSET))
        used = machine.used
        second.short = case == "short"
        entries = ((LOW, PAGE),) if case == "entries" else ()
        with refused(ResponseType.ERR_INVALID_PARAMETER if entries else UNSPEC):
            machine.do(d.create_blob(1, 2 * PAGE, BlobMem.HOST3D, *entries, ctx=CTX))
        assert machine.used == used
        assert len(machine.gpu.resources) == 0
        assert all(buffer.fd.closed for buffer in second.made)


# No renderer


def test_without_a_renderer_it_is_a_display_device() -> None:
    with Machine(renderers=()) as machine:
        gpu = machine.gpu
        assert gpu.features == sum(
            1 << feature
            for feature in Feature
            if feature not in {Feature.VIRGL, Feature.CONTEXT_INIT}
        )
        assert int.from_bytes(gpu.config_space.read()[12:16], "little") == 0
        assert machine.do(d.capset_info(0)) == CapsetInfo(0, 0, 0)
        with refused(ResponseType.ERR_INVALID_PARAMETER):
            machine.do(d.get_capset(CapsetId.DMA, 1))
        for capset, code in ((0, UNSPEC), (CapsetId.DMA, ResponseType.ERR_INVALID_PARAMETER)):
            with refused(code):
                machine.do(d.ctx_create(1, capset))
        for command in (d.create_blob(1, PAGE), d.submit(), d.ctx_attach(1)):
            with refused(ResponseType.ERR_INVALID_CONTEXT_ID):
                machine.do(command)
        with refused(UNSPEC):
            machine.do(d.create_3d(1, 8, 8))
        assert machine.used == machine.empty
        # Guest blobs, their scanouts, and 2D.
        machine.all(
            d.guest_blob(1, (LOW, REGION)),
            d.set_scanout_blob(0, 1, Rect(0, 0, 64, 32), (64, 32), stride=256),
        )
        machine.all(d.create_2d(2, 8, 8), d.attach_backing(2, (LOW, PAGE)))
        machine.all(d.transfer(2, Rect(0, 0, 8, 8)), d.set_scanout(0, 2, Rect(0, 0, 8, 8)))
        assert screenshot(machine.gpu, 0) is not None
        with refused(UNSPEC):
            machine.do(d.transfer_3d(2, Box(0, 0, 0, 8, 8, 1)))
        assert len(gpu.transfers)  # which does not execute it either
        assert not gpu.transfers._images.with_3d
        machine.reset()
        assert machine.used == machine.empty


# The whole device, on a ring


SPEC = DeviceSpec(
    name="gpu0",
    window=1 << 20,
    memory_limit=1 << 26,
    outputs=(PreferredMode(640, 480),),
    guest_pat=GuestPat.AUTO,
    rules=(),
    layout=Layout.WINDOW,
)


@asynccontextmanager
async def device_on_a_ring(second: SecondRenderer) -> AsyncIterator[tuple[GpuDevice, QueueStand]]:
    async with asyncio.timeout(PATIENCE):
        device = compose(SPEC, Environment(make_renderers=second.making()))
        try:
            async with standing(size=64) as stand, asyncio.TaskGroup() as tasks:
                device.open(tasks)
                device.set_memory(stand.memory)
                await device.start_queue(0, stand.queue)
                yield device, stand
                await device.end()
                await device.stop_queue(0)
                await stand.queue.stop()
        finally:
            device.close()


def on_ring(test: Callable[[GpuDevice, QueueStand, SecondRenderer], Awaitable[None]]) -> None:
    async def whole() -> None:
        second = SecondRenderer()
        async with device_on_a_ring(second) as (device, stand):
            for command in (d.ctx_create(DMA_CTX), d.ctx_create(CTX, CAPSET)):
                assert await answer(stand, command) == OK
            await test(device, stand, second)
        assert second.closed

    asyncio.run(whole())


def submit(data: bytes, ring: int, *, ctx: int = CTX, flags: int = FENCE | RING_IDX) -> Command:
    kind = commands.Submit3D
    return kind(Header(kind.command_type, flags, 7, ContextId(ctx), ring), data)


def send(stand: QueueStand, command: Command) -> int:
    return stand.driver.submit(encode(command), 512)


def type_of(data: bytes) -> int:
    return int.from_bytes(data[:4], "little")


async def answer(stand: QueueStand, command: Command) -> int:
    return type_of(await stand.answer(send(stand, command)))


async def answers(stand: QueueStand, names: dict[int, bytes], count: int) -> list[bytes]:
    """The names of what has been answered, in the order of the used ring; no more come soon."""

    def there() -> bool:
        stand.driver.collect()
        return len(stand.driver._done) >= count

    await until_async(there)
    await asyncio.sleep(0.01)
    stand.driver.collect()
    return [names[head] for head in stand.driver._done]


def test_fences_of_a_ring_are_answered_in_order_and_rings_do_not_wait_for_each_other() -> None:
    async def main(device: GpuDevice, stand: QueueStand, second: SecondRenderer) -> None:
        assert await answer(stand, d.create_2d(99, 4, 4)) == OK
        names: dict[int, bytes] = {}
        for number in range(3):
            for ring in range(2):
                name = b"%d on %d" % (number, ring)
                names[send(stand, submit(name, ring))] = name
        fence = send(stand, ring_fence(1))  # a command of another kind on ring 1
        names[fence] = b"fence on 1"
        await until_async(lambda: len(second.pending) == 6)
        second.complete(b"2 on 0", b"1 on 1", b"1 on 0")
        assert await answers(stand, names, 0) == []
        second.complete(b"0 on 1")
        assert await answers(stand, names, 2) == [b"0 on 1", b"1 on 1"]
        second.complete(b"0 on 0")
        ring0 = [b"0 on 0", b"1 on 0", b"2 on 0"]
        assert await answers(stand, names, 5) == [b"0 on 1", b"1 on 1", *ring0]
        second.complete(b"2 on 1")
        assert (await answers(stand, names, 7))[5:] == [b"2 on 1", b"fence on 1"]
        assert {type_of(stand.driver.wait(head)) for head in names} == {OK}
        assert device.gpu.counters.fences == 7

    on_ring(main)


def ring_fence(ring: int) -> Command:
    kind = commands.CtxDetachResource
    return kind(
        Header(kind.command_type, FENCE | RING_IDX, 8, ContextId(CTX), ring),
        ResourceId(99),
    )


def test_what_can_not_be_begun_is_answered_in_its_turn() -> None:
    async def main(device: GpuDevice, stand: QueueStand, second: SecondRenderer) -> None:
        first, bad = (send(stand, submit(data, 0)) for data in (b"first", BAD))
        await until_async(lambda: len(second.pending) == 1)
        names = {first: b"first", bad: BAD}
        assert await answers(stand, names, 0) == []
        second.complete(b"first")
        assert await answers(stand, names, 2) == [b"first", BAD]
        assert type_of(stand.driver.wait(bad)) == ResponseType.ERR_INVALID_PARAMETER

    on_ring(main)


def test_when_it_dies_its_fences_end_with_an_error_and_the_rest_goes_on() -> None:
    async def main(device: GpuDevice, stand: QueueStand, second: SecondRenderer) -> None:
        assert await answer(stand, d.create_2d(1, 4, 4)) == OK
        for ctx in (DMA_CTX, CTX):
            assert await answer(stand, d.ctx_attach(1, ctx)) == OK
        heads = [send(stand, submit(b"%d" % n, n % 2)) for n in range(4)]
        await until_async(lambda: len(second.pending) == 4)
        second.die("it crashed")
        for head in heads:
            assert type_of(await stand.answer(head)) == UNSPEC
        # Its contexts are lost, and there are no new ones.
        assert await answer(stand, submit(b"more", 0)) == UNSPEC
        assert await answer(stand, d.create_blob(9, PAGE, ctx=CTX)) == UNSPEC
        assert await answer(stand, d.ctx_create(5, CAPSET)) == UNSPEC
        assert second.pending == {}
        # All else goes on, with what the lost context had too.
        fill = d.submit(d.fill(1, 0, 64, FILL), ctx=DMA_CTX)
        assert await answer(stand, fill) == OK
        [image] = device.gpu.resources
        assert image.contents().read(0, 64).tobytes() == bytes([0x5A]) * 64
        assert await answer(stand, d.create_2d(2, 8, 8)) == OK
        assert await answer(stand, d.ctx_create(6, CapsetId.DMA)) == OK
        assert await answer(stand, d.unref(1)) == OK
        assert await answer(stand, d.ctx_destroy(CTX)) == OK
        assert type_of(await stand.answer(send(stand, d.display_info()))) == (
            ResponseType.OK_DISPLAY_INFO
        )

    on_ring(main)


def test_the_dma_context_does_not_wait_for_the_other_renderer() -> None:
    async def main(device: GpuDevice, stand: QueueStand, second: SecondRenderer) -> None:
        slow = send(stand, submit(b"slow", 0))
        assert await answer(stand, d.create_2d(1, 64, 64)) == OK
        assert await answer(stand, d.ctx_attach(1, DMA_CTX)) == OK
        assert await answer(stand, d.submit(d.fill(1, 0, 64, FILL), ctx=DMA_CTX)) == OK
        second.complete(b"slow")
        assert type_of(await stand.answer(slow)) == OK

    on_ring(main)


def test_what_completes_while_the_queue_is_stopped_is_answered_when_it_goes_on() -> None:
    async def main(device: GpuDevice, stand: QueueStand, second: SecondRenderer) -> None:
        heads = [send(stand, submit(b"%d" % n, 0)) for n in range(2)]
        await until_async(lambda: len(second.pending) == 2)
        await device.stop_queue(0)
        base = await stand.queue.stop()
        assert second.quiesced()
        second.complete(b"1", b"0")  # as of a renderer whose events were under way
        await asyncio.sleep(0.01)
        assert stand.driver.collect() == 0
        stand.queue.set_base(base)
        await device.start_queue(0, stand.queue)
        assert not second.quiesced()
        for head in heads:
            assert type_of(await stand.answer(head)) == OK

    on_ring(main)


def test_after_a_reset_nothing_is_answered_that_was_asked_before() -> None:
    async def main(device: GpuDevice, stand: QueueStand, second: SecondRenderer) -> None:
        send(stand, submit(b"old", 0))
        await until_async(lambda: len(second.pending) == 1)
        await device.stop_queue(0)
        await stand.queue.stop()
        await device.reset()
        assert second.contexts == {}
        stand.driver.reset()
        stand.queue.set_base(0)
        await device.start_queue(0, stand.queue)
        second.complete(b"old")
        for command in (d.ctx_create(CTX, CAPSET), d.create_2d(1, 4, 4)):
            assert await answer(stand, command) == OK
        assert stand.driver.last_used == 2
        fresh = send(stand, submit(b"new", 0))
        await until_async(lambda: b"new" in second.pending)
        second.complete(b"new")
        assert type_of(await stand.answer(fresh)) == OK

    on_ring(main)


def test_what_completes_after_the_end_counts_nowhere() -> None:
    async def whole() -> None:
        second = SecondRenderer()
        async with device_on_a_ring(second) as (device, stand):
            assert await answer(stand, d.ctx_create(CTX, CAPSET)) == OK
            send(stand, submit(b"late", 0))
            await until_async(lambda: len(second.pending) == 1)
        counters = device.gpu.counters
        before = counters.fences, counters.refused
        second.die("the session is over")
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert (counters.fences, counters.refused) == before
        assert not stand.queue._finished

    asyncio.run(whole())


def test_responses_of_submissions_name_their_fence() -> None:
    async def main(device: GpuDevice, stand: QueueStand, second: SecondRenderer) -> None:
        head = send(stand, submit(b"it", 1))
        await until_async(lambda: len(second.pending) == 1)
        second.complete(b"it")
        data = await stand.answer(head)
        expected = responses.encode(responses.OkNoData(), submit(b"it", 1).header)
        assert data == expected

    on_ring(main)


def test_what_is_offered_to_a_driver_follows_from_the_renderers() -> None:
    async def offered(spec: DeviceSpec, environment: Environment) -> int:
        device = compose(spec, environment)
        device.close()
        return device.features

    contexts = 1 << Feature.VIRGL | 1 << Feature.CONTEXT_INIT
    none = replace(SPEC, renderers=())
    second = Environment(make_renderers=SecondRenderer().making())
    assert asyncio.run(offered(SPEC, Environment())) & contexts == contexts
    assert asyncio.run(offered(none, Environment())) & contexts == 0
    assert asyncio.run(offered(none, second)) & contexts == contexts
