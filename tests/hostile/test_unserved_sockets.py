"""Sockets that a front-end hands over and then does not serve, or serves badly."""

from __future__ import annotations

import resource
import socket
import time

import pytest

from tests.hostile.siege import MIB, Siege, assert_hung_up, command, front_end
from tests.support.front_end import FrontEnd
from tests.support.until import until
from vgpud.gpu.wire import commands as c
from vgpud.gpu.wire.command_codec import encode
from vgpud.gpu.wire.header import Rect
from vgpud.gpu.wire.protocol import ResponseType
from vgpud.vhost.wire import messages as m
from vgpud.vhost.wire.protocol import HEADER

LONGEST_WAIT = 0.5


# -- Sockets that nobody serves --------------------------------------------------------------------


def test_mapping_when_the_channel_was_closed(siege: Siege) -> None:
    """The guest is told at once, not when patience is at its end."""
    with front_end(siege) as ring:
        ring.context()
        ring.host_blob(1, 4096)
        assert ring.fe.backend._sock is not None
        ring.fe.backend._sock.shutdown(socket.SHUT_RDWR)
        time.sleep(0.05)
        assert ring.run(c.ResourceMapBlob, 1, 0, timeout=3) == ResponseType.ERR_UNSPEC


@pytest.mark.parametrize("nonsense", [b"\xff" * 12, bytes(20), b"x" * 5000])
def test_a_channel_that_answers_nonsense(siege: Siege, nonsense: bytes) -> None:
    with front_end(siege) as ring:
        assert ring.fe.backend._sock is not None
        ring.fe.backend._sock.sendall(nonsense)
        assert_hung_up(ring.fe)
        until(lambda: len(siege.warnings) > 0, 2)
    assert len(siege.warnings) == 1


@pytest.mark.parametrize("how", ["hang up", "stop", "reset"])
def test_a_channel_that_never_answers(siege: Siege, how: str) -> None:
    """A map hangs; the main channel does not."""
    with front_end(siege) as ring:
        ring.context()
        ring.host_blob(1, 4096)
        ring.fe.backend.answering.clear()
        ring.offer(ring.command(c.ResourceMapBlob, 1, 0))
        until(lambda: bool(ring.fe.backend.messages), 2)
        begin = time.monotonic()
        if how == "stop":
            assert ring.fe.stop()[0] == 3  # to be done again
        elif how == "reset":
            ring.fe.tell(m.ResetDevice())
        assert ring.fe.ask(m.GetFeatures())
        assert time.monotonic() - begin < LONGEST_WAIT


@pytest.mark.parametrize("how", ["silent", "nonsense", "unasked", "gone"])
def test_a_display_that_is_no_use(siege: Siege, how: str) -> None:
    """The guest goes on without, and the main channel never waits for it."""
    with front_end(siege) as ring, ring.fe.gpu_set_socket() as display:
        if how == "nonsense":
            display.sendall(b"\xff" * 64)
        elif how == "unasked":
            display.sendall(HEADER.pack(4, 4, 8) + bytes(8))
        elif how == "gone":
            display.close()
        assert ring.run(c.ResourceCreate2D, 1, 1, 2048, 2048) == ResponseType.OK_NODATA
        rect = Rect(0, 0, 2048, 2048)
        assert ring.run(c.SetScanout, rect, 0, 1) == ResponseType.OK_NODATA
        begin = time.monotonic()
        for _ in range(20):
            assert ring.run(c.ResourceFlush, rect, 1) == ResponseType.OK_NODATA
        assert ring.fe.stop()[0] == 22
        assert time.monotonic() - begin < LONGEST_WAIT
        assert siege.peak < 128 * MIB


# -- Layout per-blob -------------------------------------------------------------------------------


def test_an_unmap_that_is_refused(siege_per_blob: Siege) -> None:
    with front_end(siege_per_blob) as ring:
        ring.context()
        ring.host_blob(1, 4096)
        assert ring.run(c.ResourceMapBlob, 1, 0) == ResponseType.OK_MAP_INFO
        assert ring.fe.bar is not None
        ring.fe.bar.close()  # so that the front-end knows of nothing to unmap
        assert ring.run(c.ResourceUnref, 1) == ResponseType.ERR_UNSPEC
        assert ring.run(c.ResourceMapBlob, 1, 0, timeout=3) in range(0x1106, 0x1206)
        assert ring.run(c.ResourceUnref, 1, timeout=3) in range(0x1100, 0x1206)
        ring.host_blob(2, 4096)
        assert ring.run(c.ResourceMapBlob, 2, 4096, timeout=3) == ResponseType.OK_MAP_INFO


def test_a_guest_can_not_take_all_descriptors(siege_per_blob: Siege) -> None:
    """A file a blob: many blobs must not keep another device's front-end from being served."""
    siege = siege_per_blob
    pid = siege.daemon.pid
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (256, 256))
    with front_end(siege) as ring:
        ring.context()
        slots = [
            ring.command(c.ResourceCreateBlob, blob, 2, 1, 0, 4096, ring.no_pages, ctx_id=1)
            for blob in range(1, 61)
        ]
        for start in range(0, 300, 60):
            for at, slot in enumerate(slots):
                ring.renumber(slot, 1 + start + at)
                ring.offer(slot)
            ring.wait_idle()
        codes = {ring.response(slot) for slot in slots}
        assert codes <= {ResponseType.OK_NODATA, ResponseType.ERR_OUT_OF_MEMORY}
        with FrontEnd.connect(siege.socket("b")).handshake() as fe:
            assert fe.command(encode(command(c.GetDisplayInfo)), response_size=408)
