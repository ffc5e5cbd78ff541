"""The device as a whole: its configuration space, its reset, its end, and which command waits."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from tests.gpu import driver as d
from tests.gpu.machine import (
    HIGH,
    LIMIT,
    LOW,
    PAGE,
    WINDOW,
    Machine,
    Screen,
    finish,
    random_bytes,
    refused,
    screenshot,
    stop_at,
)
from tests.gpu.wire.command_cases import COMMANDS
from vgpud.coherency.slot_policy import Layout
from vgpud.errors import VgpudError
from vgpud.gpu.environment import Environment
from vgpud.gpu.gpu import Gpu
from vgpud.gpu.spec import DeviceSpec
from vgpud.gpu.wire import commands
from vgpud.gpu.wire.command_codec import Command
from vgpud.gpu.wire.header import Rect
from vgpud.gpu.wire.protocol import BlobMem, Feature, ResponseType


@pytest.fixture(params=list(Layout))
def machine(request: pytest.FixtureRequest) -> Iterator[Machine]:
    with Machine(request.param) as machine:
        yield machine


def populate(machine: Machine) -> None:
    """Makes one of everything."""
    whole = Rect(0, 0, 64, 64)
    machine.all(
        d.ctx_create(),
        d.create_2d(1, 64, 64),
        d.attach_backing(1, (LOW, 64 * 64 * 4)),
        d.transfer(1, whole),
        d.guest_blob(2, (HIGH, 4 * PAGE)),
        d.create_blob(3, PAGE),
        d.map_blob(3, 0),
        d.create_blob(4, PAGE, BlobMem.HOST3D_GUEST, (LOW, PAGE)),
        d.create_blob(5, PAGE),
        d.map_blob(5, PAGE),
        d.unmap_blob(5),
        d.create_blob(6, PAGE),
        d.ctx_attach(6),
        d.submit(d.fill(6, 0, PAGE, 1)),
        d.set_scanout(0, 1, whole),
        d.update_cursor(0, 1, 1, 1),
    )
    machine.bar.write(0, random_bytes(PAGE))


def mappings() -> list[str]:
    """Our own mappings of the device's memory files."""
    maps = Path("/proc/self/maps").read_text()
    return [line for line in maps.splitlines() if "memfd:gpu0-" in line]


def open_files() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


def test_the_features_are_those_of_the_design(machine: Machine) -> None:
    assert sum(1 << feature for feature in Feature) == machine.gpu.features


def test_the_configuration_space(machine: Machine) -> None:
    words = [
        int.from_bytes(machine.gpu.config_space.read()[at : at + 4], "little")
        for at in range(0, 20, 4)
    ]
    assert words == [0, 0, 1, 1, 4096]
    for offset in (0, 1, 3, 4, 7, 8, 16, 19, 20, 21, 1 << 31):
        for data in (b"", b"\xff", b"\xff" * 4, b"\xff" * 64):
            machine.gpu.config_space.write(offset, data)
    assert len(machine.gpu.config_space.read()) == 20


def test_a_reset_drops_everything(machine: Machine) -> None:
    screen = Screen()
    machine.gpu.attach_display(screen)
    for _ in range(2):
        populate(machine)
        screen.take()
        machine.reset()
        assert machine.used == machine.empty
        assert len(machine.gpu.resources) == 0
        assert screenshot(machine.gpu, 0) is None
        assert ("scanout", 0, 0, 0) in screen.take()
        for resource in range(1, 7):
            with refused(ResponseType.ERR_INVALID_RESOURCE_ID):
                machine.do(d.unref(resource))
        with refused(ResponseType.ERR_INVALID_CONTEXT_ID):
            machine.do(d.ctx_destroy())


def test_what_was_mapped_before_a_reset_is_zeros_after_it(machine: Machine) -> None:
    populate(machine)
    machine.reset()
    machine.all(d.ctx_create(), d.create_blob(1, 3 * PAGE), d.map_blob(1, 0))
    assert machine.bar.read(0, 3 * PAGE) == bytes(3 * PAGE)
    if machine.spec.layout is Layout.WINDOW:
        assert [*machine.bar.mappings] == [0]  # mapped anew, as the VMM has dropped it


def test_a_closed_device_has_given_everything_back(machine: Machine) -> None:
    populate(machine)
    fds = open_files()
    assert mappings()
    machine.gpu.close()
    machine.bar.clear()
    gc.collect()
    assert machine.used == 0
    assert not mappings()
    assert open_files() < fds


def test_a_limit_below_the_window_is_no_device() -> None:
    with Machine() as machine:
        small = DeviceSpec(
            name="small",
            window=WINDOW,
            memory_limit=WINDOW - 1,
            outputs=machine.spec.outputs,
            guest_pat=machine.spec.guest_pat,
            rules=machine.spec.rules,
            layout=Layout.WINDOW,
        )
        with refused(ResponseType.ERR_OUT_OF_MEMORY):
            Gpu(small, Environment(), machine.ram.memory, machine.bar, machine.executor)


@pytest.mark.parametrize(
    "command", [sample for sample, _, _ in COMMANDS], ids=lambda c: type(c).__name__
)
def test_every_command_has_an_executor(machine: Machine, command: Command) -> None:
    # Their ids and sizes are nonsense, so that most are refused; none is more than that.
    with suppress(VgpudError):
        machine.do(command)
    assert machine.used == machine.empty or isinstance(command, commands.CtxCreate)


WAITING = [
    d.unref(1),
    d.detach_backing(1),
    d.assign_uuid(1),
    d.ctx_detach(1),
    d.flush(1, Rect(0, 0, 1, 1)),
    d.set_scanout_blob(0, 1, Rect(0, 0, 4, 4), (4, 4), stride=16),
]


@pytest.mark.parametrize("command", WAITING, ids=lambda c: type(c).__name__)
def test_a_command_waits_for_the_work_on_its_resource(machine: Machine, command: Command) -> None:
    machine.all(d.ctx_create(), d.guest_blob(1, (LOW, PAGE)), d.ctx_attach(1))
    machine.do(d.guest_blob(2, (HIGH, PAGE)))
    first = machine.hold(d.submit(d.fill(1, 0, PAGE, 1)))
    second = machine.hold(d.submit(d.fill(1, 0, PAGE, 2)))
    waiting = machine.start(command)
    assert stop_at(waiting)
    first()
    assert stop_at(waiting)
    machine.do(d.assign_uuid(2))  # another resource need not wait
    second()
    finish(waiting)
    assert machine.ram.read((LOW, 4)).tobytes() == b"\2\0\0\0"


def test_what_fails_after_it_waited_is_an_error(machine: Machine) -> None:
    machine.all(d.ctx_create(), d.guest_blob(1, (LOW, PAGE)), d.ctx_attach(1))
    done = machine.hold(d.submit(d.fill(1, 0, PAGE, 1)))
    waiting = machine.start(d.guest_blob(1, (LOW, PAGE)))
    assert stop_at(waiting)
    done()
    with refused(ResponseType.ERR_INVALID_RESOURCE_ID):
        finish(waiting)


def test_the_limit_is_what_can_be_had() -> None:
    with Machine(Layout.PER_BLOB) as machine:
        machine.all(d.ctx_create(), d.create_blob(1, LIMIT - 16 * PAGE))
        assert machine.used <= LIMIT
        for command in (d.create_2d(2, 1024, 1024), d.create_blob(2, 16 * PAGE)):
            with refused(ResponseType.ERR_OUT_OF_MEMORY):
                machine.do(command)
        machine.all(d.unref(1), d.create_2d(2, 1024, 1024))
