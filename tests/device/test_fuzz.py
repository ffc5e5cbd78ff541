"""Whatever a guest sends: nothing but `GuestError`, nothing leaks, the limit holds."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from contextlib import suppress

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

ids = st.integers(0, 5)
formats = st.sampled_from([*Format, 0, 5])
small = st.integers(0, 70)
words = small | st.sampled_from([PAGE, U32 - 1, U32, 1 << 31])
quads = words | st.sampled_from([2 * PAGE, 64 * KIB, U64, U64 - PAGE + 1, 1 << 63])
rects = st.builds(Rect, small, small, small, small) | st.builds(Rect, words, words, words, words)
boxes = st.builds(Box, small, small, st.just(0), small, small, st.just(1)) | st.builds(
    Box, words, words, words, words, words, words
)
addresses = st.sampled_from([LOW, LOW + 9, NEXT - 100, HIGH, 0, U64, NEXT + REGION - 50])
entries = st.lists(
    st.tuples(addresses, st.sampled_from([0, 1, 50, 101, PAGE, 5 * PAGE])), max_size=5
)
backings = entries | st.just([(LOW, REGION)])
sizes = st.sampled_from([0, PAGE, 2 * PAGE, 16 * PAGE, PAGE + 4, 300 * PAGE, U64 - PAGE + 1])
places = st.integers(0, 40).map(lambda page: page * PAGE) | quads

packets = st.one_of(
    st.just(dma.Nop()),
    st.builds(dma.Fill, ids, quads, quads, words),
    st.builds(dma.Copy, ids, ids, quads, quads, quads),
    st.builds(dma.Blit, ids, ids, words, words, words, quads, quads, words, words),
    st.builds(dma.Crc32, ids, ids, quads, quads, quads),
)
streams = st.builds(
    lambda some, tail: dma.encode(some) + tail,
    st.lists(packets, max_size=4),
    st.just(b"") | st.binary(max_size=9),
)
fours = st.tuples(words, words, words, words)

BODIES: dict[type[Command], tuple[st.SearchStrategy[object], ...]] = {
    commands.GetDisplayInfo: (),
    commands.GetEdid: (ids | words,),
    commands.ResourceCreate2D: (ids, formats, words, words),
    commands.ResourceUnref: (ids,),
    commands.SetScanout: (rects, ids, ids),
    commands.ResourceFlush: (rects, ids),
    commands.TransferToHost2D: (rects, quads, ids),
    commands.ResourceAttachBacking: (ids, backings.map(lambda some: mem_entries(*some))),
    commands.ResourceDetachBacking: (ids,),
    commands.GetCapsetInfo: (words,),
    commands.GetCapset: (st.just(30) | words, ids),
    commands.ResourceAssignUuid: (ids,),
    commands.ResourceCreateBlob: (
        ids,
        st.integers(0, 4),
        st.integers(0, 8),
        quads,
        sizes,
        backings.map(lambda some: mem_entries(*some)) | st.just(mem_entries()),
    ),
    commands.SetScanoutBlob: (rects, ids, ids, words, words, formats, fours, fours),
    commands.CtxCreate: (st.sampled_from([0, 30, 4]), st.binary(max_size=64)),
    commands.CtxDestroy: (),
    commands.CtxAttachResource: (ids,),
    commands.CtxDetachResource: (ids,),
    commands.ResourceCreate3D: (
        ids,
        st.sampled_from([2, 5, 3]),
        formats,
        words,
        small,
        small,
        st.sampled_from([1, 2]),
        st.sampled_from([1, 2]),
        st.sampled_from([0, 1]),
        st.sampled_from([0, 1, 4]),
        words,
    ),
    commands.TransferToHost3D: (boxes, quads, ids, st.just(0) | words, words, words),
    commands.TransferFromHost3D: (boxes, quads, ids, st.just(0) | words, words, words),
    commands.Submit3D: (streams,),
    commands.ResourceMapBlob: (ids, places),
    commands.ResourceUnmapBlob: (ids,),
    commands.UpdateCursor: (ids | words, words, words, ids, words, words),
    commands.MoveCursor: (ids | words, words, words, ids, words, words),
}


def wired(kind: type[Command]) -> st.SearchStrategy[Command]:
    header = st.builds(
        Header,
        st.just(int(command_type(kind))),
        st.integers(0, 3),
        quads,
        st.integers(0, 2).map(ContextId),
        st.integers(0, 255),
    )
    return st.builds(kind, header, *BODIES[kind]).map(lambda c: commands.decode(commands.encode(c)))


anything = st.one_of(*(wired(kind) for kind in BODIES))


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
@given(st.lists(st.tuples(anything, st.booleans()), max_size=40), st.booleans())
@settings(max_examples=150, deadline=None)
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
@given(st.lists(anything, max_size=40))
@settings(max_examples=60, deadline=None)
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
