"""A device as a value: what is saved is restored, and a table covers every field."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from dataclasses import FrozenInstanceError, fields, is_dataclass
from random import Random

import pytest

from tests.gpu import driver as d
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
    screenshot,
)
from tests.gpu.test_fuzz import Harness
from vgpud.coherency.slot_policy import Layout
from vgpud.errors import VgpudError
from vgpud.gpu import state
from vgpud.gpu.blobs.vmm_blobs import FIRST_ID
from vgpud.gpu.compose import compose
from vgpud.gpu.environment import Environment
from vgpud.gpu.spec import DeviceSpec
from vgpud.gpu.wire.header import Rect
from vgpud.gpu.wire.protocol import ContextId, ResourceId, ScanoutId
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
        assert other.gpu.config() == machine.gpu.config()
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


def test_quiesced_nothing_runs_on_any_thread() -> None:
    """A long copy that has begun is waited for; work that is left is held."""

    async def test() -> None:
        device = compose(machine_spec(), Environment())
        executor = device._executor
        begun, running = asyncio.Event(), []
        loop = asyncio.get_running_loop()

        def copy() -> None:
            running.append(True)
            loop.call_soon_threadsafe(begun.set)
            time.sleep(0.05)
            running.clear()

        copying = asyncio.create_task(executor.run_in_thread(copy))
        await begun.wait()
        await device.quiesce()
        assert not running
        await copying
        device.close()

    asyncio.run(test())


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
        "plan": "rebuilt: planned again, by what the VM and the buffer are then",
        "charge": REBUILT,
    },
    "Backing": {
        "size": "rebuilt from the list",
        "_entries": SAVED,
        "_memory": "the device's own",
        "_table": "rebuilt: resolved in the memory table in force",
        "_extents": "rebuilt: resolved in the memory table in force",
        "_charge": REBUILT,
    },
    "Context": {
        **dict.fromkeys(("id", "capset_id", "name", "attached"), SAVED),
        "renderer": "rebuilt: the one that has the capset",
        "charge": REBUILT,
    },
    "Scanout": {"view": SAVED, "resource": "rebuilt: found by its id"},
    "Cursor": dict.fromkeys(("x", "y", "hot_x", "hot_y", "image"), SAVED),
    "Scanouts": {
        "_outputs": SAVED,
        "_active": SAVED,
        "_name": "the device's own",
        "_resources": "the device's own",
        "_display": "not needed: the front-end gives it again",
    },
    "Cursors": {
        "_cursors": SAVED,
        "_resources": "the device's own",
        "_check": "the device's own",
        "_display": "not needed: the front-end gives it again",
    },
    "Contexts": {
        "_by_id": SAVED,
        "_makers": "rebuilt when a renderer makes the memory of blobs again",
        "_renderers": "of the configuration",
        "_capsets": "of the renderers",
        "_resources": "the device's own",
        "_quota": "the device's own",
    },
    "VmmBlobs": {
        "_by_id": SAVED,
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
        "_events": SAVED,
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
        "_queues": "saved: as rings",
        "_timelines": "not needed: `save` waits until every command has been answered",
        "_executor": "not needed: `save` waits until nothing runs or waits to run",
        "_operations": "not needed: an operation that is under way fails for its caller",
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
        "life": "rebuilt: STOPPED until the descriptors are there",
        "_pump": "not needed: a ring is saved when it has been stopped",
        "_memory": "not needed: the front-end sends its memory table again",
        **dict.fromkeys(("device", "name", "_tasks", "_complaints"), "the queue's own"),
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
