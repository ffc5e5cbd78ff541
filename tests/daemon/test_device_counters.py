"""What a device has done, as counted: commands, fences, maps, and bytes by how they went."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.gpu import driver
from tests.hostile.siege import NO_ENTRIES, command
from tests.support.daemon_thread import DaemonThread
from tests.support.front_end import FrontEnd
from tests.support.until import until
from tests.vhost.test_session import MAPPED, OK, make_blob, run, show
from vgpud.daemon.config import Config
from vgpud.gpu.counters import Counters
from vgpud.gpu.wire import commands as c
from vgpud.gpu.wire import dma
from vgpud.gpu.wire.command_codec import encode
from vgpud.gpu.wire.header import Rect
from vgpud.gpu.wire.mem_entries import mem_entries
from vgpud.gpu.wire.protocol import ResponseType

SIZE = 64 << 10


@pytest.fixture(params=["honored", "ignored"])
def guest_pat(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def daemon(short_directory: Path, guest_pat: str) -> Iterator[DaemonThread]:
    config = (
        f'[daemon]\nruntime_dir = "{short_directory}"\n'
        '[[device]]\nname = "gpu0"\nwindow = "16MiB"\nmemory_limit = "64MiB"\n'
        f'guest_pat = "{guest_pat}"\n[[slot_policy]]\nfallback = "snoop"\n'
    )
    with DaemonThread(Config.from_toml(config)) as daemon:
        yield daemon


@pytest.fixture
def counters(daemon: DaemonThread) -> Counters:
    return daemon.daemon.devices["gpu0"].counters


def submit(fe: FrontEnd, *packets: dma.Packet) -> int:
    """Have packets run in context 1, fenced."""
    stream = encode(command(c.Submit3D, dma.encode([*packets]), ctx_id=1, flags=1, fence_id=5))
    answer = fe.command(stream)
    return int.from_bytes(answer[:4], "little")


def test_bytes_by_how_they_went(fe: FrontEnd, counters: Counters, guest_pat: str) -> None:
    make_blob(fe, 1, SIZE)
    make_blob(fe, 2, SIZE)
    fill = driver.fill(1, 0, SIZE, 7)
    copy = driver.copy(1, 2, 0, 0, 1000)
    blit = driver.blit(1, 2, 4, 64, 64, 0, 4096, 10, 5)
    crc = driver.crc32(1, 2, 0, 500, 8192)
    assert submit(fe, dma.Nop(), fill, copy, blit, crc) == OK
    read, written = 1000 + 200 + 500, SIZE + 1000 + 200 + 4
    # Where the guest's PAT is ignored the device snoops, as the policy says.
    expected = (read, written, 0) if guest_pat == "honored" else (0, 0, read + written)
    assert (counters.bytes_read, counters.bytes_written, counters.bytes_snooped) == expected


def test_packets_behind_a_bad_one_move_nothing(fe: FrontEnd, counters: Counters) -> None:
    make_blob(fe, 1, SIZE)
    bad = driver.fill(1, SIZE, 4, 7)
    assert submit(fe, driver.fill(1, 0, 100, 7), bad, driver.fill(1, 0, 800, 7)) != OK
    assert counters.bytes_written + counters.bytes_snooped == 100
    assert (counters.refused, counters.fences) == (1, 1)


def test_commands_fences_and_maps(fe: FrontEnd, counters: Counters) -> None:
    make_blob(fe, 1, SIZE)
    assert run(fe, c.ResourceMapBlob, 1, 0) == MAPPED
    assert run(fe, c.ResourceUnmapBlob, 1) == OK
    assert run(fe, c.ResourceMapBlob, 1, 0, flags=1, fence_id=3) == MAPPED
    assert run(fe, c.ResourceUnref, 1) == OK
    assert run(fe, c.ResourceUnref, 1) == ResponseType.ERR_INVALID_RESOURCE_ID
    assert run(fe, c.ResourceCreateBlob, 1, 9, 1, 0, SIZE, NO_ENTRIES, ctx_id=1) != OK
    assert (counters.maps, counters.unmaps, counters.fences, counters.refused) == (2, 2, 1, 2)
    assert counters.commands == {
        c.CtxCreate: 1,
        c.ResourceCreateBlob: 2,
        c.CtxAttachResource: 1,
        c.ResourceMapBlob: 2,
        c.ResourceUnmapBlob: 1,
        c.ResourceUnref: 2,
    }


def test_transfers_that_are_done_natively_count_too(fe: FrontEnd, counters: Counters) -> None:
    memory = fe.ram.alloc(64 * 64 * 4, 4096)
    assert run(fe, c.ResourceCreate2D, 3, 1, 64, 64) == OK
    assert run(fe, c.ResourceAttachBacking, 3, mem_entries((memory, 64 * 64 * 4))) == OK
    for count in range(1, 21):
        assert run(fe, c.TransferToHost2D, Rect(0, 0, 8, 8), 0, 3, flags=1, fence_id=count) == OK
    assert run(fe, c.ResourceUnref, 3) == OK
    assert counters.commands[c.TransferToHost2D] == counters.fences == 20


def test_what_a_display_got(fe: FrontEnd, counters: Counters) -> None:
    with fe.gpu_set_socket() as display:
        show(fe, side=64)
        run(fe, c.ResourceFlush, Rect(0, 0, 32, 8), 9)
        display.settimeout(0.3)
        try:
            while display.recv(1 << 16):
                pass
        except TimeoutError:
            pass
        until(lambda: counters.display_updates > 0)
        assert counters.display_bytes >= 64 * 64 * 4
        assert counters.display_bytes <= counters.display_updates * 64 * 64 * 4
