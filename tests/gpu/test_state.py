"""A device as a value: what is saved is restored, and a table covers every field."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from dataclasses import FrozenInstanceError, fields, is_dataclass, replace
from random import Random

import pytest

from tests.gpu import driver as d
from tests.gpu.executor_stand import run_steps
from tests.gpu.machine import (
    HIGH,
    KIB,
    LOW,
    MIB,
    NEXT,
    PAGE,
    REGION,
    Machine,
    Screen,
    finish,
    refused,
    screenshot,
)
from tests.gpu.test_fuzz import Harness
from vgpud.coherency.kvm_mode import KvmMode
from vgpud.coherency.slot_policy import Fallback, GuestPat, Layout, Rule
from vgpud.errors import Interrupted, Unsupported, VgpudError
from vgpud.gpu import state
from vgpud.gpu.blobs.vmm_blobs import FIRST_ID, BlobIds
from vgpud.gpu.blobs.window_layout import WindowLayout
from vgpud.gpu.compose import compose
from vgpud.gpu.environment import Environment
from vgpud.gpu.spec import DeviceSpec, RendererName
from vgpud.gpu.wire.header import Rect
from vgpud.gpu.wire.protocol import ContextId, ResourceId, ResponseType, ScanoutId
from vgpud.uapi.memslot import SlotFlag
from vgpud.vhost.ring_setup import RingState
from vgpud.vhost.split_ring import Chain
from vgpud.vhost.virtqueue import Virtqueue

LAYOUTS = pytest.mark.parametrize("layout", Layout)
OUTPUTS = [(64, 64), (128, 64)]


def machine_of(layout: Layout, limit: int = 8 * MIB) -> Machine:
    return Machine(layout, window=256 * KIB, limit=limit, outputs=OUTPUTS)


def restored(machine: Machine, saved: state.GpuState, limit: int = 8 * MIB) -> Machine:
    """Another device with the same guest memory, made from a value."""
    other = machine_of(machine.spec.layout, limit)
    other.ram.memory.table = machine.ram.memory.table
    finish(other.gpu.restore(saved))
    return other


@pytest.fixture
def machine(layout: Layout) -> Iterator[Machine]:
    """A device of which everything that a driver can make has been made."""
    with machine_of(layout) as machine:
        whole = Rect(0, 0, 64, 64)
        machine.all(
            d.ctx_create(1),
            d.ctx_create(7),
            d.create_2d(1, 64, 64),
            d.attach_backing(1, (LOW, 9000), (NEXT + 5, REGION - 5)),
            d.transfer(1, whole),
            d.assign_uuid(1),
            d.guest_blob(2, (HIGH, PAGE), (NEXT - 7, PAGE)),
            d.detach_backing(2),
            d.guest_blob(3, (HIGH + PAGE, 8 * PAGE)),
            d.create_blob(4, 2 * PAGE),  # never mapped
            d.create_blob(5, 4 * PAGE),
            d.map_blob(5, 16 * PAGE),
            d.create_blob(6, PAGE),
            d.map_blob(6, 0),
            d.unmap_blob(6),  # parked, in the window layout
            *(d.ctx_attach(resource) for resource in (6, 4, 5, 1)),
            d.submit(d.fill(4, 0, 2 * PAGE, 0x01020304), d.fill(5, 3, PAGE, 9), d.fill(6, 0, 8, 5)),
            d.set_scanout(0, 1, Rect(8, 0, 32, 40)),
            d.update_cursor(1, 1, 3, 4),
            d.update_cursor(0, 0, 1, 1),
        )
        machine.gpu.resize(1, 640, 480)
        finish(machine.gpu.vmm_blobs.create(3 * PAGE))
        yield machine


@LAYOUTS
def test_what_is_restored_is_what_was_saved(machine: Machine, layout: Layout) -> None:
    saved = machine.gpu.save()
    with restored(machine, saved) as other:
        assert other.gpu.save() == saved
        assert other.used == machine.used
        assert other.gpu.config_space.read() == machine.gpu.config_space.read()
        for resource in range(1, 7):
            if resource != 2:  # which has no backing
                assert other.bytes_of(resource) == machine.bytes_of(resource)
        assert other.bar.read(16 * PAGE, 4 * PAGE) == machine.bar.read(16 * PAGE, 4 * PAGE)
        before, after = screenshot(machine.gpu, 0), screenshot(other.gpu, 0)
        assert before is not None
        assert after is not None
        assert before.any()
        assert (before == after).all()
        # The driver goes on with what it has made.
        for again in (machine, other):
            again.all(
                d.submit(d.copy(4, 5, 0, 0, PAGE)), d.map_blob(4, 64 * PAGE - 2 * PAGE), d.unref(6)
            )
        assert other.gpu.save() == machine.gpu.save()
        # The VMM's next blob has an id that was never used.
        assert finish(other.gpu.vmm_blobs.create(PAGE)).id == FIRST_ID + 1


@LAYOUTS
def test_a_display_shows_what_was_restored(machine: Machine, layout: Layout) -> None:
    saved = machine.gpu.save()
    shown = []
    with restored(machine, saved) as other:
        for gpu in (machine.gpu, other.gpu):
            screen = Screen()
            gpu.attach_display(screen)
            shown.append((screen.told, [image.tobytes() for image in screen.images]))
            gpu.attach_display(None)
    assert shown[0] == shown[1]
    assert shown[0][1]  # the cursor's image


@LAYOUTS
def test_what_can_not_be_had_again_leaves_a_device_to_be_reset(
    machine: Machine, layout: Layout
) -> None:
    saved = machine.gpu.save()
    with machine_of(layout, limit=machine.used - PAGE) as other:
        other.ram.memory.table = machine.ram.memory.table
        with pytest.raises(VgpudError):
            finish(other.gpu.restore(saved))
        other.reset()
        assert other.used == other.empty


@LAYOUTS
def test_whatever_a_driver_made_comes_back(layout: Layout) -> None:
    for seed in range(6):
        with machine_of(layout, limit=2 * MIB) as machine:
            harness = Harness(machine, Random(seed))
            for _ in range(120):
                harness.step()
            while harness.held:
                harness.finish_one()
            saved = machine.gpu.save()
            with restored(machine, saved, limit=2 * MIB) as other:
                assert other.gpu.save() == saved, f"seed {seed}"
                assert other.used == machine.used, f"seed {seed}"


@pytest.mark.parametrize("owner", ["guest", "vmm"])
def test_blobs_in_the_window_need_no_more_memory_to_be_restored(owner: str) -> None:
    with machine_of(Layout.WINDOW, limit=MIB) as machine:
        machine.all(d.create_2d(1, 16, 16), d.ctx_create(1))
        if owner == "vmm":
            blob = finish(machine.gpu.vmm_blobs.create(128 * KIB))
            finish(machine.gpu.vmm_blobs.map(blob, 0))
        else:
            machine.all(d.create_blob(2, 128 * KIB), d.map_blob(2, 0))
        machine.do(d.attach_backing(1, *[(LOW, 16)] * 10500))
        assert machine.used > MIB - 128 * KIB
        saved = machine.gpu.save()
        with restored(machine, saved, limit=MIB) as other:
            assert other.gpu.save() == saved
            assert other.used == machine.used
            with refused(ResponseType.ERR_OUT_OF_MEMORY):  # the limit holds again
                other.do(d.create_2d(3, 1024, 1024))


def test_an_id_of_a_restored_blob_is_not_used_again_in_a_later_session() -> None:
    ids = BlobIds()
    with machine_of(Layout.WINDOW) as machine:
        made = [finish(machine.gpu.vmm_blobs.create(PAGE)).id for _ in range(3)]
        saved = machine.gpu.save()
    for state_of_blob in saved.vmm_blobs:
        ids.restore(state_of_blob.id)
    assert made == [FIRST_ID, FIRST_ID + 1, FIRST_ID + 2]
    assert ids.take() == FIRST_ID + 3


def test_a_blob_that_a_vmm_maps_outside_the_window_is_saved_unmapped() -> None:
    with machine_of(Layout.PER_BLOB) as machine:
        blob = finish(machine.gpu.vmm_blobs.create(PAGE))
        blob.contents().write(0, b"data")
        finish(machine.gpu.vmm_blobs.map_ram(blob, RamSlots(), 1 << 32))
        [saved] = machine.gpu.save().vmm_blobs
        assert (saved.id, saved.contents[:4], saved.placement) == (blob.id, b"data", None)
        with restored(machine, machine.gpu.save()) as other:
            assert not next(iter(other.gpu.vmm_blobs)).mapped


class RamSlots:
    """Slots outside the window, of which none is refused."""

    async def map(self, *_: object, **__: object) -> None:
        pass

    async def unmap(self, *_: object, **__: object) -> None:
        pass


def test_a_mapped_blob_does_not_come_back_with_another_memory_type() -> None:
    """The guest asks for the type once, when it maps the blob."""

    def machine(kvm: KvmMode) -> Machine:
        rule = Rule(layout=Layout.PER_BLOB, fallback=Fallback.FLUSH)
        return Machine(Layout.PER_BLOB, guest_pat=GuestPat.AUTO, kvm=kvm, rule=rule)

    with machine(KvmMode.FLAG) as before, machine(KvmMode.FORCED_WB) as after:
        before.all(d.ctx_create(1), d.create_blob(2, PAGE), d.map_blob(2, 0))
        with pytest.raises(Unsupported, match=r"blob 2 is mapped wc, and here it would be wb"):
            finish(after.gpu.restore(before.gpu.save()))
        after.reset()
        before.do(d.unmap_blob(2))  # and asks again when it maps it again
        finish(after.gpu.restore(before.gpu.save()))


@LAYOUTS
def test_a_backing_that_is_gone_fails_where_it_is_used(layout: Layout) -> None:
    with machine_of(layout) as machine:
        machine.all(d.create_2d(1, 16, 16), d.attach_backing(1, (HIGH, 4096)))
        machine.ram.share((LOW, NEXT))
        with restored(machine, machine.gpu.save()) as other:
            for same in (machine, other):
                with refused(ResponseType.ERR_INVALID_PARAMETER):
                    same.do(d.transfer(1, Rect(0, 0, 16, 16)))


def test_a_restore_that_is_cancelled_keeps_no_charge() -> None:
    with machine_of(Layout.WINDOW) as machine:
        finish(machine.gpu.vmm_blobs.map(finish(machine.gpu.vmm_blobs.create(PAGE)), 0))
        saved = machine.gpu.save()
    with machine_of(Layout.WINDOW) as other:
        other.patience.pausing = True
        restoring = other.gpu.restore(saved)
        restoring.send(None)
        with pytest.raises(asyncio.CancelledError):
            restoring.throw(asyncio.CancelledError())
        other.reset()
        assert other.used == other.empty


def test_values_are_frozen() -> None:
    with pytest.raises(FrozenInstanceError):
        state.PlacementState(0, mapped=True).offset = 4096  # type: ignore[misc]
    made = [
        kind
        for kind in vars(state).values()
        if getattr(kind, "__module__", "") == "vgpud.gpu.state"
    ]
    # All but ScanoutState, a `gpu.wire.value`: that is frozen for the type checker alone.
    values = [kind for kind in made if isinstance(kind, type) and kind is not state.ScanoutState]
    assert len(values) == 8
    assert all(vars(kind)["__dataclass_params__"].frozen for kind in values)


def test_a_ring_comes_back_with_the_answers_that_wait() -> None:
    async def test() -> None:
        async with asyncio.TaskGroup() as tasks:
            saved = RingState(
                8, None, 77, False, 1 << 29, ((Chain(3, (), ((4096, 24),)), b"late"),)
            )
            queue = Virtqueue("gpu0", "control", tasks)
            queue.restore(saved)
            assert queue.save() == saved
            assert await queue.stop() == 77

    asyncio.run(test())


@pytest.mark.parametrize("renderers", [(RendererName.DMA,), ()])
def test_quiesced_nothing_runs_on_any_thread(renderers: tuple[RendererName, ...]) -> None:
    """A long copy that has begun is waited for; work that is left is held."""

    async def test() -> None:
        device = compose(replace(machine_spec(), renderers=renderers), Environment())
        executor = device._executor
        begun, running = asyncio.Event(), []
        loop = asyncio.get_running_loop()

        def copy() -> None:
            running.append(True)
            loop.call_soon_threadsafe(begun.set)
            time.sleep(0.05)
            running.clear()

        copying = asyncio.create_task(executor.run_in_thread(run_steps(copy)))
        await begun.wait()
        await device.quiesce()
        assert not running
        await copying
        device.close()

    asyncio.run(test())


def test_what_a_vmm_has_under_way_is_undone_before_a_device_is_saved() -> None:
    async def test() -> None:
        spec = replace(machine_spec(), window=8 * MIB, memory_limit=32 * MIB)
        device = compose(spec, Environment())
        device.gpu.layout = WindowLayout(
            *(spec.name, spec.window, device.gpu.quota, Unhurried(), device._executor),
            lambda: SlotFlag(0),
        )
        device.gpu.vmm_blobs._layout = device.gpu.layout
        async with asyncio.timeout(10), asyncio.TaskGroup() as tasks:
            device.open(tasks)
            blobs = device.gpu.vmm_blobs
            blob = await device.perform(blobs.create(MIB))
            mapping = asyncio.create_task(device.perform(blobs.map(blob, 0)))
            await asyncio.sleep(0.01)
            saved = await device.save()
            with pytest.raises(Interrupted, match="saved"):
                await mapping
            with pytest.raises(Interrupted, match="saved"):
                await device.perform(blobs.create(MIB))
            [state] = saved.gpu.vmm_blobs
            assert state.placement is None
            assert not blob.mapped
            await device.reset()
            await device.perform(blobs.create(MIB))  # may be done again
            await device.end()
        device.close()

    asyncio.run(test())


class Unhurried:
    """The memory slots of a VMM that takes its time."""

    async def map(self, *_: object, **__: object) -> None:
        await asyncio.sleep(60)

    async def unmap(self, *_: object, **__: object) -> None:
        raise AssertionError("nothing was mapped")


def machine_spec() -> DeviceSpec:
    with machine_of(Layout.WINDOW) as machine:
        return machine.spec


# What a save does with every field that a driver depends on: "saved" in the value, "rebuilt" from
# it, or why it is not needed. A new field has to be entered here.
SAVED, REBUILT = "saved", "rebuilt"
FIELDS = {
    "Image": {
        **dict.fromkeys(("id", "width", "height", "format", "pixels", "backing", "uuid"), SAVED),
        "charge": REBUILT,
    },
    "GuestBlob": {**dict.fromkeys(("id", "size", "backing", "uuid"), SAVED), "charge": REBUILT},
    "HostBlob": {
        **dict.fromkeys(("id", "blob_mem", "size", "mappable", "backing", "uuid"), SAVED),
        "memory": "saved: its bytes and its placement; the buffer is made again",
        "plan": "saved: its memory type; planned again, and refused if a mapped blob has another",
        "charge": REBUILT,
    },
    "Backing": {
        "_size": "rebuilt from the list",
        "entries": SAVED,
        "_memory": "the device's own",
        "_resolved": "rebuilt: in the memory table in force",
        "_charge": REBUILT,
    },
    "Context": {
        **dict.fromkeys(("id", "capset_id", "name", "attached"), SAVED),
        "renderer": "rebuilt: the one that has the capset",
        "charge": REBUILT,
    },
    "Scanout": {"view": SAVED, "resource": "rebuilt: found by its id"},
    "Cursor": dict.fromkeys(("x", "y", "hot_x", "hot_y", "image", "enabled"), SAVED),
    "Scanouts": {
        "_outputs": SAVED,
        "_active": SAVED,
        "_name": "the device's own",
        "_resources": "the device's own",
        "_display": "not needed: the front-end gives it again",
        "_is_attached": "the contexts'",
        "captures": "not needed: the control API's",
        "pictures": "rebuilt: views of what is active",
    },
    "Cursors": {
        "_cursors": SAVED,
        "_resources": "the device's own",
        "_check": "the device's own",
        "_executor": "the device's own",
        "_display": "not needed: the front-end gives it again",
    },
    "Contexts": {
        "_by_id": SAVED,
        "_attached_to": "rebuilt: an index of what is attached",
        "_makers": "not saved: `save` raises while a blob is in a renderer's memory",
        "_renderers": "of the configuration",
        "_capsets": "of the renderers",
        "_resources": "the device's own",
        "_quota": "the device's own",
    },
    "VmmBlobs": {
        "_by_id": SAVED,
        "_numbers": "rebuilt: the ids in order",
        "_ids": "rebuilt: goes on behind the saved ids",
        **dict.fromkeys(
            ("_device", "_layout", "_plans", "_quota", "_window_lock", "_counters", "_publish"),
            "the device's own",
        ),
    },
    "Gpu": {
        "resources": SAVED,
        "contexts": SAVED,
        "scanouts": SAVED,
        "cursors": SAVED,
        "vmm_blobs": SAVED,
        "config_space": "saved: the pending events",
        "spec": "of the configuration",
        "quota": REBUILT,
        "buffers": "of the host and the configuration",
        "layout": "rebuilt: placements come with their blobs",
        "plans": "rebuilt: made again for each blob",
        "counters": "not needed: they count for the operator, and outlive sessions",
        "transfers": "not needed: the fast path learns its images again",
        "_vm": "rebuilt: found out about the VM that is there then",
        "_display": "not needed: the front-end gives it again",
        **dict.fromkeys(
            (
                "_publish",
                "_renderers",
                "_executor",
                "_preparation",
                "_window_lock",
                "_images",
                "_blobs",
                "_execute",
            ),
            "the device's own",
        ),
    },
    "GpuDevice": {
        "gpu": SAVED,
        "_driven": SAVED,
        "state_lost": "not needed: it is reported to the operator, and no command depends on it",
        "_queues": "saved: as rings",
        "_timelines": "not needed: `save` waits until every command has been answered",
        "_executor": "not needed: `save` waits until nothing runs or waits to run",
        "_operations": "not needed: `save` stops them, and each fails for its caller",
        "_memory": "not needed: the front-end sends its memory table again",
        "_channel": "not needed: the front-end gives it again",
        "_display": "not needed: the front-end gives it again",
        "_front_end_slots": "rebuilt: blobs are mapped again",
        "slots": "rebuilt: blobs are mapped again",
        **dict.fromkeys(
            ("name", "features", "shared_memory", "_resizing", "_failure"), "the device's own"
        ),
    },
    "Virtqueue": {
        "setup": "saved: but for the descriptors, which the front-end gives again",
        "features": SAVED,
        "_finished": SAVED,
        "_former": "not needed: a broken ring's handler ends before its next start",
        "life": "rebuilt: STOPPED until the descriptors are there",
        "_in_flight": "rebuilt: of the heads of the responses that are held",
        "_fault": "not needed: a broken ring is found to be so again",
        "_pump": "not needed: a ring is saved when it has been stopped",
        "_writing": "not needed: a ring is saved when it has been stopped",
        "_memory": "not needed: the front-end sends its memory table again",
        **dict.fromkeys(("device", "name", "_tasks"), "the queue's own"),
    },
    "RingSetup": {
        **dict.fromkeys(("num", "address", "base", "fresh"), SAVED),
        "enabled": "not needed: the front-end enables the ring again",
        "polled": "not needed: the front-end says how the driver notifies again",
        **dict.fromkeys(
            ("kick", "call", "err"), "not needed: the front-end gives its descriptors again"
        ),
    },
}


def fields_of(thing: object) -> set[str]:
    if is_dataclass(thing):
        return {field.name for field in fields(thing)}
    return set(vars(thing))


@LAYOUTS
def test_every_field_is_saved_or_rebuilt_or_not_needed(machine: Machine, layout: Layout) -> None:
    async def device_and_queue() -> list[object]:
        device = compose(machine.spec, Environment())
        async with asyncio.TaskGroup() as tasks:
            queue = Virtqueue("gpu0", "control", tasks)
        device.close()
        return [device, queue, queue.setup]

    gpu = machine.gpu
    image, guest, host = (gpu.resources.get(ResourceId(number)) for number in (1, 3, 5))
    things = [
        *(image, guest, host, image.backing, gpu, gpu.scanouts, gpu.cursors, gpu.contexts),
        *(gpu.vmm_blobs, gpu.contexts.get(ContextId(1)), gpu.cursors._cursors[1]),
        *(gpu.scanouts._active[ScanoutId(0)], *asyncio.run(device_and_queue())),
    ]
    seen = {type(thing).__name__: fields_of(thing) for thing in things}
    assert seen == {name: set(table) for name, table in FIELDS.items()}
