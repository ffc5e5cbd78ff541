"""What blobs are made of: the configuration's choice, and blobs whose memory is slow to make, can't
be had, or is lost."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.gpu import driver
from tests.gpu.machine import (
    LIMIT,
    WINDOW,
    Bar,
    FakeExecutor,
    Machine,
    Patience,
    cancel,
    finish,
    refused,
    stop_at,
)
from tests.memory.gpu_trees import record
from vgpud.coherency.facts import facts_of
from vgpud.coherency.kvm_mode import KvmMode
from vgpud.coherency.planner import plan
from vgpud.coherency.slot_policy import DEFAULT_RULE, Buffers, GuestPat, Layout, SlotOwner
from vgpud.errors import HostError
from vgpud.gpu.blobs.buffers import gpu_of, resolve
from vgpud.gpu.blobs.per_blob_layout import MAKE_IN_THREAD, PerBlobLayout
from vgpud.gpu.blobs.vm_facts import VmFacts
from vgpud.gpu.environment import Environment
from vgpud.gpu.quota import Quota
from vgpud.gpu.spec import DeviceSpec, PreferredMode
from vgpud.gpu.wire.protocol import ResourceId, ResponseType
from vgpud.memory import memfd
from vgpud.memory.backing import HostBacking
from vgpud.memory.buffers import Buffer, MemfdSource
from vgpud.memory.extents import Extents
from vgpud.memory.gem import GemSource
from vgpud.memory.render_nodes import RenderNodes
from vgpud.memory.udmabuf import UdmabufSource
from vgpud.native.spans import SpanList

PAGE = 4096
BLOB = ResourceId(7)
SLOW = MAKE_IN_THREAD
RENDER = "/dev/dri/renderD128"

SPEC = DeviceSpec(
    name="gpu0",
    window=WINDOW,
    memory_limit=LIMIT,
    outputs=(PreferredMode(640, 480),),
    guest_pat=GuestPat.AUTO,
    rules=(),
    layout=Layout.PER_BLOB,
)
NO_UDMABUF = not Path("/dev/udmabuf").exists()


@pytest.fixture
def vgem(tmp_path: Path) -> RenderNodes:
    """A host whose GPU's driver would do, though its node is a plain file."""
    record(tmp_path, "faux/vgem", "faux_driver", "card0", "renderD128")
    return RenderNodes(tmp_path)


@pytest.mark.parametrize("owner", SlotOwner)
@pytest.mark.parametrize("buffers", Buffers)
def test_a_window_is_a_memory_file(buffers: Buffers, owner: SlotOwner) -> None:
    chosen = resolve(replace(SPEC, layout=Layout.WINDOW, buffers=buffers, slots=owner))
    assert (chosen.kind, chosen.source.backing) == (Buffers.MEMFD, HostBacking.RAM_WB)
    if buffers in {Buffers.UDMABUF, Buffers.GEM}:
        [problem] = chosen.problems()
        assert problem == f'not {buffers}: other buffers than memory files need layout = "per-blob"'
    else:
        assert chosen.problems() == ()


def test_what_is_named_is_taken_there_or_not(tmp_path: Path) -> None:
    nodes = RenderNodes(tmp_path)
    chosen = resolve(replace(SPEC, buffers=Buffers.MEMFD, render_node=RENDER), nodes)
    assert isinstance(chosen.source, MemfdSource)
    assert chosen.problems() == ()
    chosen = resolve(replace(SPEC, buffers=Buffers.UDMABUF), nodes)
    assert isinstance(chosen.source, UdmabufSource)
    assert chosen.source.backing is HostBacking.RAM_WB
    assert bool(chosen.problems()) is NO_UDMABUF
    chosen = resolve(replace(SPEC, buffers=Buffers.GEM), nodes)
    assert isinstance(chosen.source, GemSource)
    assert chosen.source.backing is HostBacking.RAM_WC
    [problem] = chosen.problems()
    assert "this host has no GPU" in problem


def test_auto_without_a_render_node() -> None:
    assert resolve(SPEC).kind is Buffers.MEMFD
    for owner in (SlotOwner.AGENT, SlotOwner.LOCAL):
        chosen = resolve(replace(SPEC, slots=owner))
        assert chosen.kind is (Buffers.MEMFD if NO_UDMABUF else Buffers.UDMABUF)
        assert chosen.problems() == ()


def test_auto_with_a_render_node_that_will_not_do(vgem: RenderNodes) -> None:
    for node, why in ((RENDER, "DRM_IOCTL"), ("/dev/dri/renderD9", "no GPU has /dev/dri/renderD9")):
        chosen = resolve(replace(SPEC, render_node=node), vgem)
        assert chosen.kind is Buffers.MEMFD
        [problem] = chosen.problems()
        assert problem.startswith(f"not in buffers of {node}: ")
        assert why in problem
    [problem] = resolve(replace(SPEC, render_node=RENDER, layout=Layout.WINDOW), vgem).problems()
    assert problem.endswith('need layout = "per-blob"')


def test_which_gpu_a_device_is_about(vgem: RenderNodes) -> None:
    [gpu] = vgem.gpus
    assert gpu_of(SPEC, vgem) is None
    assert gpu_of(replace(SPEC, render_node=RENDER), vgem) is gpu
    assert gpu_of(replace(SPEC, render_node="/dev/dri/renderD9"), vgem) is None
    assert gpu_of(replace(SPEC, render_node=RENDER, layout=Layout.WINDOW), vgem) is None
    assert gpu_of(replace(SPEC, render_node=RENDER, buffers=Buffers.MEMFD), vgem) is None
    assert gpu_of(replace(SPEC, buffers=Buffers.GEM), vgem) is gpu


def test_the_planner_is_told_what_memory_it_is() -> None:
    vm = VmFacts(GuestPat.AUTO, (), Layout.PER_BLOB, lambda: KvmMode.SVM, Environment().examine)
    for backing in HostBacking:  # one device may have buffers of several kinds
        facts = vm.facts(backing)
        assert facts == facts_of(GuestPat.AUTO, seen=KvmMode.SVM, backing=backing)
        assert plan(facts, DEFAULT_RULE).pinned is (backing is HostBacking.RAM_WB)


class Source:
    """A `BufferSource` of memory files, as slow as a driver and as lost as a GPU that is gone."""

    slow = True
    backing = HostBacking.RAM_WC

    def __init__(self) -> None:
        self.lost: str | None = None
        self.refusing = False
        self.buffers: list[Buffer] = []

    def allocate(self, name: str, size: int) -> Buffer:
        if self.refusing:
            raise HostError("allocate", OSError(19, ""), "the GPU is gone")
        self.buffers.append(Buffer(memfd.create(name, size), size, lost=lambda: self.lost))
        return self.buffers[-1]

    def problem(self) -> str | None:
        return self.lost


class Stand:
    """A layout on such a source."""

    def __init__(self) -> None:
        self.patience = Patience()
        self.bar = Bar(self.patience, WINDOW)
        self.source = Source()
        self.quota = Quota(LIMIT)
        self.layout = PerBlobLayout(
            "gpu0", WINDOW, self.quota, self.bar, FakeExecutor(self.patience), self.source
        )
        facts = facts_of(GuestPat.AUTO, seen=KvmMode.SVM, backing=HostBacking.RAM_WC)
        self.plan = plan(facts, DEFAULT_RULE)

    def close(self) -> None:
        self.layout.close()
        self.bar.clear()
        assert self.quota.used == 0
        assert all(buffer.fd.closed for buffer in self.source.buffers)


@pytest.fixture
def stand() -> Iterator[Stand]:
    made = Stand()
    yield made
    made.close()


def test_a_small_buffer_is_made_at_once(stand: Stand) -> None:
    assert stand.layout.allocate(BLOB, PAGE, stand.plan).made


def test_a_large_one_from_a_slow_source_is_made_aside(stand: Stand) -> None:
    memory = stand.layout.allocate(BLOB, SLOW, stand.plan)
    assert stand.quota.used == SLOW
    before = memory.made
    assert stand.source.buffers == []
    finish(memory.make())
    assert (before, memory.made) == (False, True)
    finish(memory.make())  # once is enough
    assert len(stand.source.buffers) == 1
    finish(memory.map(0))
    memory.contents().write(0, b"seen")
    assert stand.bar.read(0, 4) == b"seen"


def test_whoever_cannot_wait_has_it_made_now(stand: Stand) -> None:
    memory = stand.layout.allocate(BLOB, SLOW, stand.plan)
    assert not memory.contents().read(0, SLOW).any()
    assert memory.made


def test_two_that_make_it_at_the_same_time_make_one(stand: Stand) -> None:
    memory = stand.layout.allocate(BLOB, SLOW, stand.plan)
    stand.patience.pausing = True
    making = memory.make()
    assert stop_at(making)
    memory.contents().write(0, b"here")
    stand.patience.pausing = False
    finish(making)
    assert len(stand.source.buffers) == 2
    assert memory.contents().read(0, 4).tobytes() == b"here"
    assert [buffer.fd.closed for buffer in stand.source.buffers] == [False, True]


def test_one_that_is_destroyed_while_it_is_made_leaves_nothing(stand: Stand) -> None:
    memory = stand.layout.allocate(BLOB, SLOW, stand.plan)
    stand.patience.pausing = True
    making = memory.make()
    assert stop_at(making)
    stand.layout.reset()
    assert stand.quota.used == 0
    finish(making)
    [buffer] = stand.source.buffers
    assert buffer.fd.closed
    with refused(ResponseType.ERR_UNSPEC):
        memory.contents()
    assert len(stand.source.buffers) == 1  # nobody has it made again


def test_one_that_is_given_up_while_it_is_made_leaves_nothing(stand: Stand) -> None:
    memory = stand.layout.allocate(BLOB, SLOW, stand.plan)
    stand.patience.pausing = True
    making = memory.make()
    assert stop_at(making)
    cancel(making)
    [buffer] = stand.source.buffers  # once begun it is waited for
    assert buffer.fd.closed
    assert not memory.made


@pytest.mark.parametrize("size", [PAGE, SLOW])
def test_memory_that_cannot_be_had_costs_nothing(stand: Stand, size: int) -> None:
    stand.source.refusing = True
    with refused(ResponseType.ERR_OUT_OF_MEMORY):
        finish(stand.layout.allocate(BLOB, size, stand.plan).make())
    stand.layout.reset()
    assert stand.quota.used == 0


def test_a_blob_whose_gpu_has_gone(stand: Stand) -> None:
    memory = stand.layout.allocate(BLOB, PAGE, stand.plan)
    other = stand.layout.allocate(ResourceId(8), PAGE, stand.plan)
    finish(memory.map(0))
    stand.source.lost = "its GPU is gone"
    for use in (memory.contents, memory.export, lambda: finish(other.map(PAGE))):
        with refused(ResponseType.ERR_UNSPEC):
            use()
    # It can still be taken away, and others come once the GPU has.
    finish(memory.unmap())
    finish(memory.destroy())
    finish(other.destroy())
    stand.source.lost = None
    assert not stand.layout.allocate(BLOB, PAGE, stand.plan).contents().read(0, PAGE).any()


def test_a_guest_that_cannot_have_a_gpus_memory_has_no_blob() -> None:
    with Machine(Layout.PER_BLOB, buffers=Buffers.GEM, render_node="/dev/dri/renderD0") as machine:
        machine.all(driver.ctx_create())
        used = machine.used
        for size in (PAGE, SLOW):
            with refused(ResponseType.ERR_OUT_OF_MEMORY):
                machine.do(driver.create_blob(1, size))
            assert machine.used == used
        assert len(machine.gpu.resources) == 0


class Watched:
    """A list of spans that notes what is done with it."""

    def __init__(self, spans: SpanList) -> None:
        self.spans = spans
        self.done: list[tuple[str, tuple[int, ...]]] = []

    def __getattr__(self, name: str) -> Any:
        known = getattr(self.spans, name)
        if name not in {"flush", "scatter", "fill", "copy_from"}:
            return known

        def note(*args: Any, **more: Any) -> None:
            self.done.append((name, args[:2]))
            known(*args, **more)

        return note


def test_writes_past_the_caches_meet_a_guest_in_its_cache(stand: Stand) -> None:
    facts = facts_of(GuestPat.IGNORED, backing=HostBacking.RAM_WC)
    chosen = plan(facts, DEFAULT_RULE)
    assert chosen.flush_around_write
    contents = stand.layout.allocate(BLOB, PAGE, chosen).contents()
    watched = contents._spans = Watched(contents._spans)  # type: ignore[assignment]
    contents.write(1, b"bytes")
    contents.fill(64, 10, 0x01020304)
    contents.write_rect(1000, 100, np.ones((3, 10), np.uint8))
    contents.copy_rect(
        2000, 5, Extents.from_array(np.full(5, 9, np.uint8)), 0, 5, row_bytes=5, rows=1
    )
    assert watched.done == [
        ("flush", (1, 5)),
        ("scatter", (1, 5)),
        ("flush", (1, 5)),
        ("flush", (64, 10)),
        ("fill", (64, 10)),
        ("flush", (64, 10)),
        ("flush", (1000, 210)),
        ("scatter", (1000, 100)),
        ("flush", (1000, 210)),
        ("flush", (2000, 5)),
        ("copy_from", (2000, 5)),
        ("flush", (2000, 5)),
    ]
    assert contents.read(1, 5).tobytes() == b"bytes"
    assert contents.read(64, 4).tobytes() == b"\x04\x03\x02\x01"
    assert contents.read(1000, 210).sum() == 30
    assert contents.read(2000, 5).sum() == 45


def test_other_writes_flush_nothing(stand: Stand) -> None:
    contents = stand.layout.allocate(BLOB, PAGE, stand.plan).contents()
    watched = contents._spans = Watched(contents._spans)  # type: ignore[assignment]
    contents.write(0, b"bytes")
    assert watched.done == [("scatter", (0, 5))]
