"""Rings that no driver would make: that ring stops, and the rest goes on."""

from __future__ import annotations

import os
import struct
import time
from collections.abc import Callable
from typing import Final

import numpy as np
import pytest

from tests.gpu import driver
from tests.hostile.siege import MIB, RogueRing, Siege, command, entries, rogue
from tests.support.ring_driver import DESC_F_INDIRECT, DESC_F_NEXT, DESC_F_WRITE
from tests.support.until import until
from vgpud.client import Client
from vgpud.gpu.wire import commands as c
from vgpud.gpu.wire.command_codec import encode
from vgpud.gpu.wire.header import Header, decode_header
from vgpud.gpu.wire.protocol import CommandType, Flag, ResponseType

FAR = 40 * MIB
"""Guest memory that no ring and no buffer of the tests is in."""

Attack = Callable[[RogueRing], object]

_DESC = struct.Struct("<QIHH")


def _table(ring: RogueRing, *descriptors: tuple[int, int, int, int]) -> None:
    ring.offer(ring.table_of(b"".join(_DESC.pack(*one) for one in descriptors)))


def _direct(ring: RogueRing, *descriptors: tuple[int, int, int, int]) -> None:
    for at, one in enumerate(descriptors):
        ring.ram.write(ring.driver.desc + 16 * at, _DESC.pack(*one))
    ring.offer(0)


def _again(ring: RogueRing) -> None:
    ring.context()
    ring.host_blob(1, 64 * MIB)
    [head] = ring.offer(ring.submit([driver.fill(1, 0, 64 * MIB, 7)] * 100))
    ring.offer(head)


BAD_RINGS: dict[str, Attack] = {
    "head outside": lambda ring: ring.offer(64),
    "avail too far ahead": lambda ring: ring.offer(0, 65),
    "avail backwards": lambda ring: ring.offer(0, 65535),
    "head in flight": _again,
    "loop": lambda ring: _direct(ring, (FAR, 8, DESC_F_NEXT, 1), (FAR, 8, DESC_F_NEXT, 0)),
    "loop in a table": lambda ring: _table(ring, (FAR, 8, DESC_F_NEXT, 0)),
    "next outside": lambda ring: _direct(ring, (FAR, 8, DESC_F_NEXT, 64)),
    "next outside a table": lambda ring: _table(ring, (FAR, 8, DESC_F_NEXT, 1)),
    "table in a table": lambda ring: _table(ring, (FAR, 16, DESC_F_INDIRECT, 0)),
    "table of 17 bytes": lambda ring: _direct(ring, (FAR, 17, DESC_F_INDIRECT, 0)),
    "empty table": lambda ring: _direct(ring, (FAR, 0, DESC_F_INDIRECT, 0)),
    "huge table": lambda ring: _direct(ring, (FAR, 0xFFFFFFF0, DESC_F_INDIRECT, 0)),
    "table outside": lambda ring: _direct(ring, ((1 << 64) - 16, 16, DESC_F_INDIRECT, 0)),
    "read after write": lambda ring: _table(ring, (FAR, 8, 3, 1), (FAR, 8, 0, 0)),
    "request outside": lambda ring: _table(ring, (1 << 40, 24, 0, 0)),
    "request wraps": lambda ring: _table(ring, ((1 << 64) - 8, 24, 0, 0)),
    "request leaves memory": lambda ring: _table(ring, (96 * MIB - 8, 24, 0, 0)),
    "answer outside": lambda ring: _table(ring, (FAR, 24, 1, 1), (1 << 40, 24, 2, 0)),
    "answer leaves memory": lambda ring: _table(ring, (FAR, 24, 1, 1), (96 * MIB - 8, 24, 2, 0)),
}


@pytest.mark.parametrize("name", BAD_RINGS)
def test_a_bad_ring_stops_that_ring_only(siege: Siege, name: str) -> None:
    with rogue(siege) as ring:
        fe = ring.fe
        BAD_RINGS[name](ring)
        until(lambda: ring.broken)
        os.eventfd_read(fe.drivers[0].err)
        fe.command(encode(command(c.MoveCursor, 0, 1, 1)), queue=1)
        with Client(siege.socket().parent / "control.sock") as client:
            problems = client.call("device.get", {"device": "a"})["problems"]
        assert any("the control queue is stopped until the guest" in one for one in problems)
        assert len(siege.warnings) <= 2  # the ring's, and one for a command that it was answered
        fe.reset()
        assert fe.command(encode(command(c.GetDisplayInfo)), response_size=408)


FENCE = 0xFEED
_BIG = 8 * MIB + 512 * 1024


_REQUEST: Final = Header(CommandType.GET_DISPLAY_INFO, flags=Flag.FENCE, fence_id=FENCE).pack()


def _pieces(gpa: int, lengths: list[int], flags: int = 0) -> list[tuple[int, int, int]]:
    at = gpa + np.concatenate(([0], np.cumsum(lengths)[:-1]))
    return [(int(one), length, flags) for one, length in zip(at, lengths, strict=True)]


Buffers = list[tuple[int, int, int]]

# What the specification allows, and what the response is then: of its type, and whether there is
# room for one. The request is at FAR, the response at 2 * FAR.
WELL_FORMED: dict[str, tuple[Buffers, Buffers, int | None]] = {
    "long request": (
        [(FAR, _BIG, 0)],
        [(2 * FAR, 24, DESC_F_WRITE)],
        ResponseType.ERR_UNSPEC,
    ),
    "request of 16 GiB": (
        [(FAR, 24, 0)] + [(FAR, (1 << 32) - 1, 0)] * 4,
        [(2 * FAR, 24, DESC_F_WRITE)],
        ResponseType.ERR_UNSPEC,
    ),
    "request byte by byte": (
        _pieces(FAR, [1] * 24),
        [(2 * FAR, 24, DESC_F_WRITE)],
        ResponseType.OK_DISPLAY_INFO,
    ),
    "response byte by byte": (
        [(FAR, 24, 0)],
        _pieces(2 * FAR, [1] * 408, DESC_F_WRITE),
        ResponseType.OK_DISPLAY_INFO,
    ),
    "4096 buffers": (
        [(FAR, 24, 0)],
        _pieces(2 * FAR, [0, 1] * 2047 + [500], DESC_F_WRITE),
        ResponseType.OK_DISPLAY_INFO,
    ),
    "empty buffers anywhere": (
        [(1 << 50, 0, 0), (FAR, 24, 0), (0, 0, 0)],
        [(1 << 50, 0, DESC_F_WRITE), (2 * FAR, 24, DESC_F_WRITE), (0, 0, DESC_F_WRITE)],
        ResponseType.OK_DISPLAY_INFO,
    ),
    "half a response": ([(FAR, 24, 0)], [(2 * FAR, 12, DESC_F_WRITE)], None),
    "no response": ([(FAR, 24, 0)], [], None),
    "no request": ([], [(2 * FAR, 24, DESC_F_WRITE)], None),
    "nothing": ([(0, 0, 0)], [], None),
    "only half a header": ([(FAR, 12, 0)], [(2 * FAR, 24, DESC_F_WRITE)], None),
}


@pytest.mark.parametrize("queue", [0, 1])
@pytest.mark.parametrize("name", WELL_FORMED)
def test_what_is_well_formed_is_answered(siege: Siege, name: str, queue: int) -> None:
    """A program in the guest can make long requests, and no ring may stop for those."""
    readable, writable, expected = WELL_FORMED[name]
    with rogue(siege) as fe_ring:
        ring = RogueRing(fe_ring.fe, queue)
        ring.ram.write(FAR, _REQUEST)
        ring.offer(ring.table([*readable, *writable]))
        ring.wait_idle()
        assert not ring.broken
        if expected is not None:
            answer = decode_header(ring.ram.read(2 * FAR, 24))
            assert answer is not None
            if queue == 0:
                assert answer.type == expected
            assert (answer.flags & Flag.FENCE, answer.fence_id) == (Flag.FENCE, FENCE)


def test_chains_in_flight_stay_within_the_limit(siege: Siege) -> None:
    """Commands that wait for a fence, each in as many pieces as a chain can have."""
    with rogue(siege, "poor", size=1024) as ring:
        ring.context()
        ring.guest_blob(1, entries([FAR] * 4, MIB))
        ring.offer(ring.submit([driver.blit(1, 1, 1, 2, 2, 0, 2 * MIB, 1, MIB)] * 200))
        ring.ram.write(FAR, _REQUEST)
        last = ring.table([(FAR, 24, 0), *_pieces(2 * FAR, [1] * 4095, DESC_F_WRITE)])
        ring.offer(last, 1000)
        end = time.monotonic() + 2.0
        while time.monotonic() < end:
            assert siege.peak < 24 * MIB
            time.sleep(0.05)
