"""Rings that no driver would make: that ring stops, and the rest goes on."""

from __future__ import annotations

import os
import struct
from collections.abc import Callable

import pytest

from tests.hostile.siege import MIB, RogueRing, Siege, command, rogue
from tests.support.ring_driver import DESC_F_INDIRECT, DESC_F_NEXT, RingBrokenError
from vgpud.gpu.wire import commands as c
from vgpud.gpu.wire.command_codec import encode

FAR = 40 * MIB
"""Guest memory that no ring and no buffer of the tests is in."""

Attack = Callable[[RogueRing], None]

_DESC = struct.Struct("<QIHH")


def _table(ring: RogueRing, *descriptors: tuple[int, int, int, int]) -> None:
    ring.offer(ring.table_of(b"".join(_DESC.pack(*one) for one in descriptors)))


def _direct(ring: RogueRing, *descriptors: tuple[int, int, int, int]) -> None:
    for at, one in enumerate(descriptors):
        ring.ram.write(ring.driver.desc + 16 * at, _DESC.pack(*one))
    ring.offer(0)


BAD_RINGS: dict[str, Attack] = {
    "head outside": lambda ring: ring.offer(64),
    "avail too far ahead": lambda ring: ring.offer(0, 65),
    "avail backwards": lambda ring: ring.offer(0, 65535),
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
    "request too long": lambda ring: _table(ring, (FAR, 8 * MIB, 1, 1), (FAR, 1, 0, 0)),
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
        with pytest.raises(RingBrokenError):
            fe.drivers[0].wait(9999)
        os.eventfd_read(fe.drivers[0].err)
        fe.command(encode(command(c.MoveCursor, 0, 1, 1)), queue=1)
        assert len(siege.warnings) <= 2  # the ring's, and one for a command that it was answered
        fe.reset()
        assert fe.command(encode(command(c.GetDisplayInfo)), response_size=408)
