"""A malicious guest, on one device of a daemon that has others."""

from __future__ import annotations

import struct
import time
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from tests.gpu import driver
from tests.hostile.siege import (
    MADE,
    MIB,
    PATIENCE,
    Bystander,
    RogueRing,
    Siege,
    command,
    entries,
    rogue,
    rogue_front_end,
)
from tests.support.ring_driver import DESC_F_WRITE
from tests.support.until import until
from vgpud.gpu.wire import commands as c
from vgpud.gpu.wire.command_codec import Command, encode
from vgpud.gpu.wire.header import Box, Rect
from vgpud.gpu.wire.protocol import CommandType, ResponseType
from vgpud.vhost.split_ring import MAX_INDIRECT

PHASES = (Phase.explicit, Phase.reuse, Phase.generate)
"""No shrinking: a daemon that hangs costs seconds an example."""

LONGEST_WAIT = 0.5
"""Seconds that a device may be kept from a command by what another's guest does. It takes a few
milliseconds where each has a core; machines that run tests are busy."""

OVERHEAD = 64 * MIB
"""Memory that a guest may cost beside its limit: requests in flight, scratch, Python's own."""

FAR = 40 * MIB
"""Guest memory that no ring and no buffer of the tests is in."""


# -- Time ------------------------------------------------------------------------------------------

SPANS = 500_000
SCATTERED = FAR + np.arange(SPANS) * 32

Attack = Callable[[RogueRing], None]


def garbage(ring: RogueRing) -> None:
    """The largest requests that there are."""
    gpa, answer = ring.ram.alloc(8 * MIB), ring.ram.alloc(64)
    ring.offer(ring.table([(gpa, 8 * MIB, 0), (answer, 24, DESC_F_WRITE)]), 60)


def long_chains(ring: RogueRing) -> None:
    """As many descriptors as a chain can have."""
    gpa = ring.ram.alloc(64)
    descriptors = [(gpa, 1, 0)] * (MAX_INDIRECT - 1) + [(gpa, 24, DESC_F_WRITE)]
    ring.offer(ring.table(descriptors), 6)


def long_lists(ring: RogueRing) -> None:
    """The longest lists of backing pages."""
    assert ring.run(c.ResourceCreate2D, 1, 1, 64, 64) == MADE
    attach = ring.command(c.ResourceAttachBacking, 1, entries(SCATTERED, 16))
    detach = ring.command(c.ResourceDetachBacking, 1)
    for _ in range(4):
        ring.offer(attach, kick=False)
        ring.offer(detach)


def long_bad_lists(ring: RogueRing) -> None:
    """The same, with a last entry that is not guest memory."""
    assert ring.run(c.ResourceCreate2D, 1, 1, 64, 64) == MADE
    addresses = SCATTERED.copy()
    addresses[-1] = 1 << 60
    ring.offer(ring.command(c.ResourceAttachBacking, 1, entries(addresses, 16)), 2)


def many_packets(ring: RogueRing) -> None:
    """As many packets as a submit can have, that do next to nothing."""
    ring.context()
    ring.host_blob(1, 4096)
    ring.offer(ring.submit([driver.fill(1, 0, 16, 7)] * 4096), 6)


def thin_blits(ring: RogueRing) -> None:
    """Little data in many rows: small enough to be done at once."""
    ring.context()
    ring.host_blob(1, 16 * MIB)
    ring.offer(ring.submit([driver.blit(1, 1, 1, 128, 128, 0, 8 * MIB, 1, 65_000)]), 60)


def thin_transfers(ring: RogueRing) -> None:
    """A transfer of a million rows of a pixel."""
    assert ring.run(c.ResourceCreate2D, 1, 1, 2, MIB) == MADE
    assert ring.run(c.ResourceAttachBacking, 1, entries(FAR, 8 * MIB)) == MADE
    ring.offer(ring.command(c.TransferToHost2D, Rect(0, 0, 1, MIB), 0, 1), 20)


def scattered_transfers(ring: RogueRing) -> None:
    """Transfers into half a million pieces of guest memory."""
    assert ring.run(c.ResourceCreate2D, 1, 1, 1024, 1024) == MADE
    assert ring.run(c.ResourceAttachBacking, 1, entries(SCATTERED, 9)) == MADE
    box = Box(0, 0, 0, 1024, 1024, 1)
    ring.offer(ring.command(c.TransferFromHost3D, box, 0, 1, 0, 0, 0), 4)


def scattered_fills(ring: RogueRing) -> None:
    """Fills of many pieces, each short enough to be done at once."""
    ring.context()
    ring.guest_blob(1, entries(SCATTERED, 1))
    ring.offer(ring.submit([driver.fill(1, 0, 65_000, 7)]), 16)


def large_copies(ring: RogueRing) -> None:
    """Both of the device's threads busy with 256 MiB that overlap."""
    ring.context()
    ring.host_blob(1, Siege.WINDOW)
    for index in (0, 1):
        packets = [driver.copy(1, 1, 0, 64, Siege.WINDOW - 64)] * 2
        ring.offer(ring.submit(packets, flags=3, ring_idx=index))


def flood(ring: RogueRing, kind: type[Command], *fields: object) -> None:
    """One cheap command, over and over, so that the ring is never empty."""
    slot = ring.command(kind, *fields)
    end = time.monotonic() + 0.4
    while time.monotonic() < end:
        ring.offer(slot, ring.driver.size - ring.unanswered)


def flood_of_waits(ring: RogueRing) -> None:
    """Commands that the device has to wait for, and never does in the end."""
    flood(ring, c.ResourceUnmapBlob, 1)


def flood_of_questions(ring: RogueRing) -> None:
    """Commands that are answered at once."""
    flood(ring, c.GetEdid, 0)


@pytest.mark.parametrize(
    "attack",
    [
        garbage,
        long_chains,
        long_lists,
        long_bad_lists,
        many_packets,
        thin_blits,
        thin_transfers,
        scattered_transfers,
        scattered_fills,
        large_copies,
        flood_of_waits,
        flood_of_questions,
    ],
    ids=lambda attack: attack.__name__,
)
def test_other_devices_are_not_kept_waiting(siege: Siege, attack: Attack) -> None:
    size = 1024 if attack.__name__.startswith("flood") else 64
    with rogue(siege, size=size) as ring, Bystander(siege.socket("b")) as bystander:
        attack(ring)
        until(lambda: not ring.unanswered or ring.broken, PATIENCE)
        assert not ring.broken, siege.warnings
    assert bystander.worst < LONGEST_WAIT


def test_long_work_does_not_hold_the_device(siege: Siege) -> None:
    """A guest's longest step must not keep its VMM from stopping or resetting it."""
    with rogue(siege) as ring:
        ring.context()
        ring.host_blob(1, 128 * MIB)
        # 32 Mi rows of one byte: the bytes are few, the cache lines that are flushed are not
        ring.offer(ring.submit([driver.blit(1, 1, 1, 2, 2, 0, 64 * MIB, 1, 32 * MIB)]))
        time.sleep(0.05)
        begin = time.monotonic()
        [base, _] = ring.fe.stop()
        assert base == 4
        assert time.monotonic() - begin < LONGEST_WAIT


# -- Memory ----------------------------------------------------------------------------------------


LEFT = 384 * MIB
"""Of the limit, for a guest that has spent the rest on an image that takes no memory yet."""


def spend_the_rest(ring: RogueRing) -> None:
    """Leave LEFT."""
    size = Siege.LIMIT - Siege.WINDOW - LEFT
    assert ring.run(c.ResourceCreate2D, 1000, 1, 1024, size // 4096) == MADE


def test_images_and_blobs_stay_within_the_limit(siege: Siege) -> None:
    before = siege.status("VmRSS")
    with rogue(siege) as ring:
        ring.context()
        assert ring.run(c.ResourceCreate2D, 1, 1, 65535, 65535) == ResponseType.ERR_OUT_OF_MEMORY
        spend_the_rest(ring)
        blob = 0
        while ring.run(
            c.ResourceCreateBlob, blob + 1, 2, 1, 0, 64 * MIB, ring.no_pages, ctx_id=1
        ) == (MADE):
            blob += 1
            assert ring.run(c.CtxAttachResource, blob, ctx_id=1) == MADE
            ring.offer(ring.submit([driver.fill(blob, 0, 64 * MIB, blob)]))
            ring.wait_idle()
        assert blob == LEFT // (64 * MIB) - 1  # the overhead of all that was made costs one
        assert LEFT // 2 < siege.peak < LEFT + OVERHEAD  # it was really touched
    until(lambda: siege.status("VmRSS") < before + OVERHEAD, 5, "memory is not given back")


def test_lists_of_pages_stay_within_the_limit(siege: Siege) -> None:
    before = siege.status("VmRSS")
    with rogue(siege) as ring:
        spend_the_rest(ring)
        attach = encode(command(c.ResourceAttachBacking, 0, entries(SCATTERED, 16)))
        gpa, answer = ring.ram.alloc(len(attach)), ring.ram.alloc(64)
        ring.ram.write(gpa, attach)
        slot = ring.table([(gpa, len(attach), 0), (answer, 24, DESC_F_WRITE)])
        attached, code = 0, MADE
        while code == MADE:
            attached += 1
            assert ring.run(c.ResourceCreate2D, attached, 1, 1, 1) == MADE
            ring.ram.write(gpa + 24, attached.to_bytes(4, "little"))
            ring.offer(slot)
            ring.wait_idle()
            code = int.from_bytes(ring.ram.read(answer, 4), "little")
        assert code == ResponseType.ERR_OUT_OF_MEMORY
        assert attached > 5
        assert siege.status("VmRSS") < before + LEFT + 32 * MIB
        assert siege.peak < LEFT + OVERHEAD


def test_work_in_flight_stays_within_the_limit(siege: Siege) -> None:
    """A guest need not wait for answers, nor use a descriptor only once."""
    with rogue(siege, "poor", size=1024) as ring:
        ring.context()
        ring.guest_blob(1, entries([FAR] * 4, MIB))
        # seconds of work, so that all that follows has to wait
        ring.offer(ring.submit([driver.blit(1, 1, 1, 2, 2, 0, 2 * MIB, 1, MIB)] * 200))
        ring.offer(ring.submit([driver.blit(1, 1, 1, 2, 2, 0, 2 * MIB, 1, 4)] * 4096), 500)
        end = time.monotonic() + 1.0
        while time.monotonic() < end:
            assert siege.peak < Siege.POOR_LIMIT + OVERHEAD // 4
            time.sleep(0.05)


def test_a_scanout_larger_than_memory_is_shown_in_pieces(siege: Siege) -> None:
    """Pages may be listed over and over: what a guest shows may be more than it has."""
    with rogue(siege, "poor") as ring, ring.fe.gpu_set_socket() as display:
        pages = entries([FAR] * 256, MIB)
        assert ring.run(c.ResourceCreateBlob, 1, 1, 0, 0, 256 * MIB, pages) == MADE
        show = ring.command(
            c.SetScanoutBlob,
            Rect(0, 0, 8192, 8192),
            0,
            1,
            8192,
            8192,
            2,
            (32768, 0, 0, 0),
            (0,) * 4,
        )
        ring.offer(show)
        ring.wait_idle()
        assert ring.response(show) == MADE
        received = 0
        while received < 4 * MIB:
            received += len(display.recv(MIB))
        assert siege.peak < Siege.POOR_LIMIT + OVERHEAD


# -- Commands --------------------------------------------------------------------------------------


def test_transfers_that_wait_for_transfers(siege: Siege) -> None:
    """Large transfers are work, and the next one on the same image waits for it."""
    with rogue(siege) as ring:
        assert ring.run(c.ResourceCreate2D, 1, 1, 4096, 1024) == MADE
        assert ring.run(c.ResourceAttachBacking, 1, entries(FAR, 16 * MIB)) == MADE
        slot = ring.command(c.TransferToHost2D, Rect(0, 0, 4096, 1024), 0, 1)
        ring.offer(slot, 8)
        ring.wait_idle(5)
        assert ring.response(slot) == MADE


def test_bad_commands_do_not_fill_the_log(siege: Siege) -> None:
    with rogue(siege, size=1024) as ring:
        nonsense = [ring.request(struct.pack("<IIQIB3x", kind, 0, 0, 0, 0)) for kind in range(40)]
        nonsense += [ring.request(bytes(size)) for size in (1, 23, 24)]
        for _ in range(100):
            for slot in nonsense:
                ring.offer(slot)
            ring.wait_idle()
        assert {ring.response(slot) for slot in nonsense} == {ResponseType.ERR_UNSPEC}
    assert len(siege.warnings) < 20


def test_scribbling_in_the_window_harms_nobody_else(siege: Siege) -> None:
    """The guest reaches all of the window always; blobs not in it are not its to write."""
    with rogue(siege) as ring:
        bar, size = ring.fe.bar, 64 * 1024
        assert bar is not None
        ring.context()
        ring.host_blob(1, size)
        ring.host_blob(2, size)
        ring.offer(ring.submit([driver.fill(2, 0, size, 0x22222222)]))
        assert ring.run(c.ResourceMapBlob, 1, 0) == ResponseType.OK_MAP_INFO
        bar.write(0, b"\xee" * MIB)
        assert ring.run(c.ResourceUnmapBlob, 1) == MADE
        assert ring.run(c.ResourceUnref, 1) == MADE
        bar.write(0, b"\xdd" * MIB)
        assert ring.run(c.ResourceMapBlob, 2, 0) == ResponseType.OK_MAP_INFO
        assert bar.read(0, size) == b"\x22" * size
        assert ring.run(c.ResourceUnmapBlob, 2) == MADE
        ring.host_blob(3, size)
        assert ring.run(c.ResourceMapBlob, 3, size) == ResponseType.OK_MAP_INFO
        assert bar.read(size, size) == bytes(size)
        ring.host_blob(4, size)
        assert ring.run(c.ResourceMapBlob, 4, 0) == ResponseType.OK_MAP_INFO  # 2 leaves
        assert bar.read(0, size) == bytes(size)
        bar.write(0, b"\xcc" * size)
        ring.offer(ring.submit([driver.crc32(2, 3, 0, size, 0), driver.copy(2, 3, 0, 4096, 4096)]))
        ring.wait_idle()
        assert bar.read(size + 4096, 4096) == b"\x22" * 4096


@settings(
    max_examples=15,
    deadline=None,
    phases=PHASES,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(data=st.data())
def test_any_command_is_answered(siege: Siege, data: st.DataObject) -> None:
    numbers = st.one_of(
        st.integers(0, 4), st.sampled_from([4096, 1 << 16, 1 << 31, (1 << 32) - 1, FAR])
    )
    words = st.lists(numbers, min_size=0, max_size=24)
    kinds = st.sampled_from([int(kind) for kind in CommandType])
    requests = data.draw(
        st.lists(
            st.tuples(st.integers(0, 1), kinds, st.integers(0, 3), numbers, words),
            min_size=20,
            max_size=60,
        )
    )
    with rogue_front_end(siege.socket("poor"), size=256) as fe:
        rings = [RogueRing(fe, 0), RogueRing(fe, 1)]
        offered: list[tuple[RogueRing, int]] = []
        for queue, kind, flags, context, rest in requests:
            request = struct.pack(f"<IIQIB3x{len(rest)}I", kind, flags, 7, context, 1, *rest)
            ring = rings[queue]
            slot = ring.request(request, 2048)
            ring.offer(slot)
            offered.append((ring, slot))
        for ring in rings:
            ring.wait_idle(5)
        assert all(0x1100 <= ring.response(slot) <= 0x1205 for ring, slot in offered)
