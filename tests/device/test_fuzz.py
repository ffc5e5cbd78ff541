"""Whatever a guest sends: nothing but `GuestError`, nothing leaks, the limit holds."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.device import driver as d
from tests.device.machine import HIGH, KIB, LOW, MIB, NEXT, PAGE, REGION, Machine, Screen, run
from tests.wire.gpu_commands import COMMANDS
from vgpud.device.resources import HostBlob, Image
from vgpud.device.work import Work
from vgpud.errors import GuestError
from vgpud.policy.slot_policy import Layout
from vgpud.wire.gpu import commands, dma, responses
from vgpud.wire.gpu.commands import Command, command_type, mem_entries
from vgpud.wire.gpu.header import Box, Header, Rect
from vgpud.wire.gpu.protocol import ContextId, Format

U32, U64 = (1 << 32) - 1, (1 << 64) - 1
LIMIT = 2 * MIB


@dataclass(frozen=True)
class Field:
    """Values that make sense, mostly, and values that do not."""

    good: st.SearchStrategy[Any]
    bad: st.SearchStrategy[Any]


bad_words = st.sampled_from([0, 71, PAGE, 1 << 31, U32 - 1, U32])
bad_quads = bad_words | st.sampled_from([64 * KIB, 1 << 63, U64 - PAGE + 1, U64])
any_words = Field(bad_words, bad_words)
any_quads = Field(bad_quads, bad_quads)


def word(*values: int) -> Field:
    return Field(st.sampled_from(values), bad_words)


names = st.integers(1, 4)
ids = Field(names, st.sampled_from([0, 5, U32]))
outputs = word(0, 1)
formats = word(*Format)
sides = word(30, 31, 63, 64)
offsets = Field(st.integers(0, 200), bad_quads)
starts, lengths = st.integers(0, 9), st.integers(1, 21)
rects = Field(
    st.builds(Rect, starts, starts, lengths, lengths),
    st.builds(Rect, bad_words, starts, bad_words, lengths)
    | st.builds(Rect, starts, bad_words, lengths, bad_words),
)
flat, deep = st.just(0), st.just(1)
boxes = Field(
    st.builds(Box, starts, starts, flat, lengths, lengths, deep),
    st.builds(Box, starts, bad_words, flat, lengths, bad_words, deep)
    | st.builds(Box, bad_words, starts, bad_words, bad_words, lengths, bad_words),
)
strides = word(0, 256, 300)
pages = st.sampled_from([LOW, LOW + 9, NEXT - 100, HIGH])
no_pages = st.sampled_from([0, LOW - 1, U64, NEXT + REGION - 50])
amounts = st.sampled_from([0, 1, 50, 101, PAGE, 5 * PAGE, 5 * PAGE])


def entry_lists(addresses: st.SearchStrategy[int]) -> st.SearchStrategy[Any]:
    some = st.lists(st.tuples(addresses, amounts), max_size=5)
    return some.map(lambda pieces: mem_entries(*pieces))


entries = Field(entry_lists(pages), entry_lists(no_pages))
no_entries = st.just(mem_entries())
sizes = Field(
    st.integers(1, 4).map(lambda count: count * PAGE),
    st.sampled_from([0, PAGE + 4, 300 * PAGE, U64 - PAGE + 1]),
)
windows = Field(st.integers(0, 30).map(lambda page: page * PAGE), bad_quads)

near = offsets.good
packets = st.one_of(
    st.just(dma.Nop()),
    st.builds(dma.Fill, names, near, near, bad_words),
    st.builds(dma.Copy, names, names, near, near, near),
    st.builds(
        dma.Blit, names, names, deep, strides.good, strides.good, near, near, lengths, starts
    ),
    st.builds(dma.Crc32, names, names, near, near, near),
)
bad_packets = st.one_of(
    st.builds(dma.Fill, names, bad_quads, bad_quads, bad_words),
    st.builds(dma.Copy, names, names, bad_quads, bad_quads, near),
    st.builds(
        dma.Blit, names, names, bad_words, bad_words, bad_words, near, near, lengths, lengths
    ),
    st.builds(dma.Blit, names, names, deep, flat, flat, near, near, bad_words, bad_words),
    st.builds(dma.Crc32, names, ids.bad, near, bad_quads, near),
)
streams = Field(
    st.lists(packets, max_size=4).map(dma.encode),
    st.builds(lambda *parts: dma.encode(parts[:2]) + parts[2], packets, bad_packets, st.binary()),
)
planes = st.tuples(st.integers(256, 300), flat, flat, flat)
firsts = st.tuples(st.integers(0, 99), flat, flat, flat)
bad_planes = st.tuples(bad_words, bad_words, bad_words, bad_words)
cursors = (outputs, any_words, any_words, ids, any_words, any_words)

BODIES: dict[type[Command], tuple[Field, ...]] = {
    commands.GetDisplayInfo: (),
    commands.GetEdid: (outputs,),
    commands.ResourceCreate2D: (ids, formats, sides, sides),
    commands.ResourceUnref: (ids,),
    commands.SetScanout: (rects, outputs, ids),
    commands.ResourceFlush: (rects, ids),
    commands.TransferToHost2D: (rects, offsets, ids),
    commands.ResourceAttachBacking: (ids, entries),
    commands.ResourceDetachBacking: (ids,),
    commands.GetCapsetInfo: (word(0),),
    commands.GetCapset: (word(30), word(0, 1)),
    commands.ResourceAssignUuid: (ids,),
    commands.ResourceCreateBlob: (
        *(ids, word(1, 2, 2, 2, 3), word(1, 1, 1, 2, 7), any_quads, sizes),
        Field(no_entries | entries.good, entries.bad),
    ),
    commands.SetScanoutBlob: (
        *(rects, outputs, ids, sides, sides, formats),
        *(Field(planes, bad_planes), Field(firsts, bad_planes)),
    ),
    commands.CtxCreate: (word(30, 0), Field(st.binary(max_size=64), st.just(b""))),
    commands.CtxDestroy: (),
    commands.CtxAttachResource: (ids,),
    commands.CtxDetachResource: (ids,),
    commands.ResourceCreate3D: (
        *(ids, word(2, 5), formats, any_words, sides, sides),
        *(word(1), word(1), word(0), word(0, 1), any_words),
    ),
    commands.TransferToHost3D: (boxes, offsets, ids, word(0), strides, any_words),
    commands.TransferFromHost3D: (boxes, offsets, ids, word(0), strides, any_words),
    commands.Submit3D: (streams,),
    commands.ResourceMapBlob: (ids, windows),
    commands.ResourceUnmapBlob: (ids,),
    commands.UpdateCursor: cursors,
    commands.MoveCursor: cursors,
}
RARE = (commands.GetDisplayInfo, commands.GetCapset, commands.CtxDestroy, commands.ResourceUnref)
KINDS = [kind for kind in BODIES for _ in range(1 if kind in RARE else 3)]


@st.composite
def anything(draw: st.DrawFn) -> Command:
    """A command that makes sense but for, at times, one of its fields; as decoded."""
    kind = draw(st.sampled_from(KINDS))
    header = Header(
        command_type(kind),
        draw(st.integers(0, 3)),
        draw(bad_quads),
        ContextId(draw(st.sampled_from([1, 1, 1, 1, 2, 0]))),
        draw(st.integers(0, 255)),
    )
    values = [draw(field.good) for field in BODIES[kind]]
    spoilt = draw(st.integers(0, 4 * len(values)))
    if spoilt < len(values):
        values[spoilt] = draw(BODIES[kind][spoilt].bad)
    make: Callable[..., Command] = kind
    return commands.decode(commands.encode(make(header, *values)))


def test_every_command_is_fuzzed() -> None:
    assert set(BODIES) == {type(sample) for sample, _, _ in COMMANDS}


def settle(
    machine: Machine, command: Command, held: list[Callable[[], None]], hold: bool
) -> responses.Response | None:
    """Executes a command to its end; None for work that is left waiting."""
    outcome: object = machine.gpu.execute(command)
    while isinstance(outcome, Coroutine):
        try:
            outcome.send(None)
        except StopIteration as end:
            outcome = end.value
            break
        held.pop(0)()
    if isinstance(outcome, Work):
        if hold:
            held.append(machine.works.hold(outcome))
            return None
        run(outcome)
        return responses.OkNoData()
    return outcome  # type: ignore[return-value]


def check_memory(machine: Machine) -> None:
    """What is taken is within the limit, and no less than what is really there."""
    held = machine.empty
    for resource in machine.gpu.resources:
        if isinstance(resource, Image):
            held += resource.size
        elif isinstance(resource, HostBlob):
            place = machine.gpu.layout.map.place(resource.id)  # type: ignore[attr-defined]
            held += 0 if place and machine.spec.layout is Layout.WINDOW else resource.size
    assert held <= machine.used <= LIMIT


@pytest.mark.parametrize("layout", Layout)
@given(st.lists(st.tuples(anything(), st.booleans()), max_size=40), st.booleans())
@settings(max_examples=80, deadline=None)
def test_no_sequence_of_commands_does_harm(
    layout: Layout, sequence: list[tuple[Command, bool]], shown: bool
) -> None:
    with Machine(layout, window=128 * KIB, limit=LIMIT) as machine:
        screen = Screen()
        if shown:
            machine.gpu.attach_display(screen)
        held: list[Callable[[], None]] = []
        # Something to work on, as random ids and sizes rarely make much.
        machine.all(d.ctx_create(1), d.create_2d(1, 64, 64), d.attach_backing(1, (LOW, REGION)))
        machine.all(d.create_blob(2, 2 * PAGE), d.ctx_attach(2), d.map_blob(2, PAGE))
        machine.all(d.guest_blob(3, (HIGH, PAGE), (NEXT - 7, PAGE)), d.ctx_attach(3))
        for command, hold in sequence:
            used = machine.used
            try:
                response = settle(machine, command, held, hold)
            except GuestError:
                if not isinstance(command, commands.ResourceMapBlob):  # that may displace others
                    assert machine.used == used
            else:
                if response is not None:
                    responses.encode(response, command.header)
            check_memory(machine)
            for scanout in range(3):
                machine.gpu.screenshot(scanout)
        for done in held:
            with suppress(GuestError):
                done()
        for resource in [resource.id for resource in machine.gpu.resources]:
            machine.do(d.unref(resource))
        for ctx in (1, 2):
            with suppress(GuestError):
                machine.do(d.ctx_destroy(ctx))
        assert machine.used == machine.empty


@pytest.mark.parametrize("layout", Layout)
@given(st.lists(anything(), max_size=40))
@settings(max_examples=40, deadline=None)
def test_a_reset_gives_everything_back(layout: Layout, sequence: list[Command]) -> None:
    with Machine(layout, window=128 * KIB, limit=LIMIT) as machine:
        held: list[Callable[[], None]] = []
        machine.all(d.ctx_create(1), d.create_blob(2, 2 * PAGE), d.ctx_attach(2))
        for command in sequence:
            with suppress(GuestError):
                settle(machine, command, held, hold=False)
        machine.reset()
        assert machine.used == machine.empty
        assert len(machine.gpu.resources) == 0
