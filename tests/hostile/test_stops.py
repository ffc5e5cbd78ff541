"""Each way of stopping a ring or a device while threads copy for its guest: when it is
acknowledged, nothing writes to the guest's memory."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable

import pytest

from tests.gpu import driver
from tests.hostile.siege import MADE, MIB, RogueRing, Siege, command, entries, rogue_front_end
from tests.support.front_end import FrontEnd
from tests.support.ring_driver import DESC_F_WRITE
from tests.support.until import until
from vgpud.gpu.wire import commands as c
from vgpud.gpu.wire import dma
from vgpud.gpu.wire.command_codec import encode
from vgpud.gpu.wire.header import Box
from vgpud.gpu.wire.protocol import BlobMem
from vgpud.vhost.wire import messages as m

TARGET, SIZE = 24 * MIB, 64 * MIB
NOWHERE = 1 << 40
AT_ONCE = 0.5
"""Seconds for an acknowledgement, which takes a few milliseconds on an idle machine."""


def make_blob(ring: RogueRing) -> None:
    """Make blob 2, in guest memory from TARGET on and in host memory."""
    blob = c.ResourceCreateBlob, 2, BlobMem.HOST3D_GUEST, 0, 0, SIZE, entries(TARGET, SIZE)
    assert ring.run(*blob, ctx_id=1) == MADE


def begin_transfer(ring: RogueRing) -> None:
    """Begin a transfer to guest memory that takes seconds: 64 Mi rows of a byte."""
    offer_transfer(ring)
    until(lambda: ring.ram.read(TARGET, 4096) == bytes(4096), 5)


def begin_fills(ring: RogueRing) -> None:
    """Begin fills of guest memory, which run on a thread without a handler that waits."""
    ring.guest_blob(3, entries(TARGET, SIZE))
    ring.offer(ring.submit([driver.fill(3, 0, SIZE, 0)] * 400))
    until(lambda: ring.ram.read(TARGET, 4096) == bytes(4096), 5)


def begin_transfer_and_break(ring: RogueRing) -> None:
    """Have the answer to a submission break the ring while a transfer runs."""
    stream = dma.encode([driver.copy(1, 1, 0, 64, 8 * MIB)] * 40)
    request = encode(command(c.Submit3D, stream, ctx_id=1))
    gpa = ring.ram.alloc(len(request))
    ring.ram.write(gpa, request)
    ring.offer(ring.table([(gpa, len(request), 0), (NOWHERE, 24, DESC_F_WRITE)]), kick=False)
    offer_transfer(ring)
    until(lambda: ring.broken, 5)


def offer_transfer(ring: RogueRing) -> None:
    box = Box(0, 0, 0, 1, SIZE, 1)
    ring.offer(ring.command(c.TransferFromHost3D, box, 0, 2, 0, 1, 0))


def stop(fe: FrontEnd) -> None:
    fe.ask(m.GetVringBase(0))


def disable(fe: FrontEnd) -> None:
    fe.tell(m.SetVringEnable(0, False))
    fe.ask(m.GetFeatures())


def reset(fe: FrontEnd) -> None:
    fe.tell(m.ResetDevice())
    fe.ask(m.GetFeatures())


def start_again(fe: FrontEnd) -> None:
    """A new driver on the same ring, without a stop."""
    fe.tell(m.SetVringEnable(0, False))
    fe.tell(m.SetVringBase(0, 0))
    fe.tell(m.SetVringEnable(0, True))
    fe.ask(m.GetFeatures())


@pytest.mark.parametrize("end", [stop, disable, reset, start_again], ids=lambda end: end.__name__)
@pytest.mark.parametrize(
    "begin", [begin_transfer, begin_fills, begin_transfer_and_break], ids=lambda one: one.__name__
)
def test_nothing_is_written_once_a_stop_is_acknowledged(
    siege: Siege, begin: Callable[[RogueRing], None], end: Callable[[FrontEnd], None]
) -> None:
    with rogue_front_end(siege.socket("a")) as fe:
        ring = RogueRing(fe)
        ring.context()
        ring.host_blob(1, 16 * MIB)
        make_blob(ring)
        fe.ram.write(TARGET, b"\xaa" * SIZE)
        begin(ring)
        before = time.monotonic()
        end(fe)
        assert time.monotonic() - before < AT_ONCE
        if end is not start_again:  # that does the same commands again
            fe.ram.write(TARGET, b"\xaa" * SIZE)
            time.sleep(0.3)
            assert fe.ram.read(TARGET, SIZE) == b"\xaa" * SIZE


@pytest.mark.parametrize("begin", [begin_transfer, begin_fills], ids=lambda one: one.__name__)
def test_nothing_is_written_once_the_next_session_is_served(
    siege: Siege, begin: Callable[[RogueRing], None]
) -> None:
    fe = rogue_front_end(siege.socket("a"))
    ring = RogueRing(fe)
    ring.context()
    make_blob(ring)
    fe.ram.write(TARGET, b"\xaa" * SIZE)
    begin(ring)
    fe.disconnect()
    before = time.monotonic()
    with contextlib.closing(rogue_front_end(siege.socket("a"))):
        assert time.monotonic() - before < AT_ONCE
        fe.ram.write(TARGET, b"\xaa" * SIZE)
        time.sleep(0.3)
        assert fe.ram.read(TARGET, SIZE) == b"\xaa" * SIZE
    fe.close()
