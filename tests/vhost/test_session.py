"""Sessions of well-behaved front-ends: starts, stops, resets, reconnects, displays, dirty pages."""

from __future__ import annotations

import asyncio
import logging
import select
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.gpu import driver as gpu_driver
from tests.gpu.display.front_end_messages import DisplayRequestReader
from tests.hostile.siege import NO_ENTRIES, command, entries
from tests.support.daemon_thread import DaemonThread
from tests.support.front_end import LOG_PAGE, FrontEnd
from tests.support.ring_driver import RingTimeoutError
from tests.support.until import until
from tests.vhost.toy_rng import ToyRng
from vgpud.client import Client
from vgpud.daemon.config import Config
from vgpud.gpu.display import messages as d
from vgpud.gpu.wire import commands as c
from vgpud.gpu.wire import dma
from vgpud.gpu.wire.command_codec import encode
from vgpud.gpu.wire.header import Box, Rect, decode_header
from vgpud.gpu.wire.protocol import CapsetId, ResponseType, ScanoutId
from vgpud.memory.addresses import Gpa, Uva
from vgpud.unix.stream_socket import StreamSocket
from vgpud.vhost.session import TURN, Session
from vgpud.vhost.wire import messages as m
from vgpud.vhost.wire.protocol import F_LOG_ALL, ProtocolFeature
from vgpud.vhost.wire.replies import U64Reply, VringState
from vgpud.vhost.wire.requests import REQUESTS, Request, encode_request

OK = ResponseType.OK_NODATA
MAPPED = ResponseType.OK_MAP_INFO
SIZE = 64 * 1024
BACKING = 20 << 20
"""Guest memory that no ring and no buffer is in, in the second region."""


@pytest.fixture
def daemon(short_directory: Path, caplog: pytest.LogCaptureFixture) -> Iterator[DaemonThread]:
    """A daemon with devices gpu0 and gpu1; nothing of ours may go wrong in it."""
    config = "".join(
        f'[[device]]\nname = "{name}"\nwindow = "16MiB"\nmemory_limit = "128MiB"\n'
        'guest_pat = "honored"\n'
        for name in ("gpu0", "gpu1")
    )
    with (
        caplog.at_level(logging.INFO),
        DaemonThread(
            Config.from_toml(f'[daemon]\nruntime_dir = "{short_directory}"\n{config}')
        ) as daemon,
    ):
        yield daemon
    assert [record for record in caplog.records if record.levelno >= logging.ERROR] == []


@pytest.fixture
def path(daemon: DaemonThread, short_directory: Path) -> Path:
    """The socket of gpu0."""
    return short_directory / "gpu0.sock"


def run(fe: FrontEnd, kind: type[Any], *fields: Any, **header: int) -> int:
    """Have a command done, return the type of its response."""
    answer = fe.command(encode(command(kind, *fields, **header)), response_size=512)
    return int.from_bytes(answer[:4], "little")


def make_blob(fe: FrontEnd, blob: int, size: int = SIZE) -> None:
    """Make a host blob in context 1, which may be there already."""
    run(fe, c.CtxCreate, CapsetId.DMA, b"", ctx_id=1)
    assert run(fe, c.ResourceCreateBlob, blob, 2, 1, 0, size, NO_ENTRIES, ctx_id=1) == OK
    assert run(fe, c.CtxAttachResource, blob, ctx_id=1) == OK


def show(fe: FrontEnd, resource: int = 9, side: int = 64) -> None:
    """Make an image of the color blue and show it."""
    assert run(fe, c.ResourceCreate2D, resource, 2, side, side) == OK
    fe.ram.write(BACKING, b"\xff\x00\x00\x00" * side * side)
    assert run(fe, c.ResourceAttachBacking, resource, entries(BACKING, side * side * 4)) == OK
    assert run(fe, c.TransferToHost2D, Rect(0, 0, side, side), 0, resource) == OK
    assert run(fe, c.SetScanout, Rect(0, 0, side, side), 0, resource) == OK
    assert run(fe, c.ResourceFlush, Rect(0, 0, side, side), resource) == OK


def go_on(fe: FrontEnd, bases: list[int]) -> None:
    """Start again after `FrontEnd.stop` as a VM does that was paused."""
    fe.tell(m.SetFeatures(fe.features))
    fe.set_mem_table()
    for driver, base in zip(fe.drivers, bases, strict=True):
        fe.tell(m.SetVringNum(driver.index, driver.size))
        fe.tell(m.SetVringBase(driver.index, base))
        fe.set_vring_addr(driver)
        fe.tell(m.SetVringKick(driver.index, True), [driver.kick])
        fe.tell(m.SetVringCall(driver.index, True), [driver.call])
    for driver in fe.drivers:
        fe.tell(m.SetVringEnable(driver.index, True))


def test_every_request_has_a_handler() -> None:
    async def handled() -> set[type[Request]]:
        ours, theirs = socket.socketpair()
        with ours, theirs:
            return set(Session(StreamSocket(ours), ToyRng())._handlers)

    assert asyncio.run(handled()) == set(REQUESTS.values())


def test_after_an_error_no_kick_is_served(short_directory: Path) -> None:
    """However long the session's tasks take to end."""

    async def whole() -> None:
        ending = asyncio.Event()

        async def reluctant() -> None:
            try:
                await asyncio.sleep(60)
            finally:
                ending.set()
                await asyncio.sleep(0.2)

        class SlowToEnd(ToyRng):
            def open(self, tasks: asyncio.TaskGroup) -> None:
                tasks.create_task(reluctant())

        ours, theirs = socket.socketpair()
        serving = asyncio.create_task(Session(StreamSocket(ours), SlowToEnd()).run())
        connected = FrontEnd(theirs)
        with await asyncio.to_thread(lambda: connected.handshake(queues=1)) as fe:
            [driver] = fe.drivers
            await asyncio.to_thread(driver.command, b"in time", 8)
            fe.sock.sendall(b"\xff" * 12)
            await ending.wait()
            driver.submit(b"too late", 8)
            with pytest.raises(ExceptionGroup):
                await serving
            assert driver.collect() == 0

    asyncio.run(whole())


def test_memory_in_a_file_that_is_none_is_left_out(
    daemon: DaemonThread, path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A command that names an address there fails, and the log says once why."""
    hole = Gpa(1 << 40)
    with FrontEnd.connect(path).handshake() as fe, Path("/dev/zero").open("r+b") as zero:
        regions = [
            (m.MemRegion(Gpa(r.gpa), r.size, Uva(r.uva), r.offset), r.fd) for r in fe.ram.regions
        ]
        regions.insert(0, (m.MemRegion(hole, SIZE, Uva(1 << 44), 0), zero.fileno()))
        for _ in range(2):
            fe.tell(m.SetMemTable(tuple(r for r, _ in regions)), [fd for _, fd in regions])
        assert run(fe, c.ResourceCreate2D, 1, 2, 16, 16) == OK
        assert run(fe, c.ResourceAttachBacking, 1, entries(int(hole), 1024)) != OK
        show(fe)
        ring = 1 << 44
        fe.send(m.SetVringAddr(1, 0, Uva(ring), Uva(ring + 4096), Uva(ring + 8192), Gpa(0)))
        assert fe.ask(m.GetFeatures())
    assert caplog.text.count("memory left out device=gpu0: memory region 0x10000000000+") == 1


def test_messages_without_a_pause_let_others_have_their_turn() -> None:
    handled = 0
    longest = 0

    class Configured(ToyRng):
        def config(self) -> bytes:
            return bytes(8)

        def write_config(self, offset: int, data: bytes) -> None:
            nonlocal handled
            handled += 1
            until = time.perf_counter() + TURN / 2
            while time.perf_counter() < until:
                pass

    async def other() -> None:
        nonlocal longest
        while True:
            before = handled
            await asyncio.sleep(0)
            longest = max(longest, handled - before)

    async def whole() -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            theirs.sendall(encode_request(m.SetProtocolFeatures(ProtocolFeature.CONFIG)))
            theirs.sendall(encode_request(m.SetConfig(0, 0, b"x")) * 100)
            theirs.shutdown(socket.SHUT_WR)
            observing = asyncio.create_task(other())
            await Session(StreamSocket(ours), Configured()).run()
            observing.cancel()

    asyncio.run(whole())
    assert handled == 100
    assert 0 < longest <= 3
    assert TURN < 0.001


# -- Several devices, one after the other ----------------------------------------------------------


def test_devices_know_nothing_of_each_other(daemon: DaemonThread, short_directory: Path) -> None:
    with FrontEnd.connect(short_directory / "gpu1.sock").handshake() as other:
        with FrontEnd.connect(short_directory / "gpu0.sock").handshake() as fe:
            show(fe, 9)
            assert daemon.screenshot(device="gpu1") is None
            show(other, 9, side=32)
            assert run(fe, c.ResourceUnref, 9) == OK
            assert daemon.screenshot() is None
            fe.sock.sendall(b"\xff" * 12)
            assert fe.hung_up()
        picture = daemon.screenshot(device="gpu1")
        assert picture is not None
        assert picture.shape == (32, 32, 3)
        assert (picture == [0, 0, 255]).all()
        assert run(other, c.ResourceUnref, 9) == OK


def test_a_front_end_that_comes_back(daemon: DaemonThread, path: Path) -> None:
    """The guest's rings go on where they stood; what it had made is gone with the connection."""
    with FrontEnd.connect(path).handshake() as fe:
        show(fe)
        fe.reconnect(path)
        assert daemon.screenshot() is None
        assert run(fe, c.ResourceUnref, 9) == ResponseType.ERR_INVALID_RESOURCE_ID
        show(fe)
        assert daemon.screenshot() is not None


def test_a_driver_that_is_older_than_the_session_is_reported_until_it_is_reset(
    path: Path, short_directory: Path, caplog: pytest.LogCaptureFixture
) -> None:
    words = "state lost device=gpu0"
    flush = (c.ResourceFlush, Rect(0, 0, 8, 8), 9)

    def problems() -> list[str]:
        with Client(short_directory / "control.sock") as client:
            found: list[str] = client.call("device.get", {"device": "gpu0"})["problems"]
        return [text for text in found if "before this session" in text]

    with FrontEnd.connect(path).handshake() as fe:
        show(fe)
        fe.stop()
        fe.start()  # as QEMU's stop and cont
        assert run(fe, *flush) == OK
        assert problems() == []
        assert words not in caplog.text
        fe.reconnect(path)
        assert run(fe, *flush) == ResponseType.ERR_INVALID_RESOURCE_ID
        fe.stop()
        fe.start()
        assert caplog.text.count(words) == 1
        assert len(problems()) == 1
        fe.stop()
        for driver in fe.drivers:
            driver.reset()
        fe.start()
        show(fe)
        assert problems() == []
    assert caplog.text.count(words) == 1


def test_a_guest_reset_keeps_the_device(daemon: DaemonThread, path: Path) -> None:
    with FrontEnd.connect(path).handshake() as fe:
        for _ in range(3):
            show(fe)
            make_blob(fe, 1)
            assert run(fe, c.ResourceMapBlob, 1, 0) == MAPPED
            assert fe.bar is not None
            assert fe.bar.read(0, SIZE) == bytes(SIZE)
            fe.bar.write(0, b"\xaa" * SIZE)
            fe.stop()
            fe.bar.close()  # a VMM takes down what a device that is reset has mapped
            for driver in fe.drivers:
                driver.reset()
            fe.start()
            assert run(fe, c.ResourceUnref, 9) == ResponseType.ERR_INVALID_RESOURCE_ID
            assert run(fe, c.ResourceUnref, 1) == ResponseType.ERR_INVALID_RESOURCE_ID
            assert daemon.screenshot() is None


def test_reset_device(daemon: DaemonThread, path: Path) -> None:
    with FrontEnd.connect(path).handshake() as fe:
        show(fe)
        make_blob(fe, 1, 8 << 20)
        fills = dma.encode([gpu_driver.fill(1, 0, 8 << 20, 7)] * 20)
        fe.drivers[0].submit(encode(command(c.Submit3D, fills, ctx_id=1)), 24)
        fe.tell(m.ResetDevice())
        assert daemon.screenshot() is None
        with pytest.raises(RingTimeoutError):
            fe.drivers[1].command(encode(command(c.MoveCursor, 0, 1, 1)), 24, timeout=0.1)
        for driver in fe.drivers:
            driver.reset()
        fe.start()
        show(fe)


# -- A VM that is paused ---------------------------------------------------------------------------


def test_a_pause_keeps_resources_and_fences(daemon: DaemonThread, path: Path) -> None:
    with FrontEnd.connect(path).handshake() as fe:
        show(fe)
        make_blob(fe, 1, 8 << 20)
        assert run(fe, c.ResourceMapBlob, 1, 0) == MAPPED
        copies = dma.encode([gpu_driver.copy(1, 1, 0, 64, (8 << 20) - 64)] * 30)
        last = dma.encode([gpu_driver.fill(1, 0, 4096, 0x33333333)])
        heads = [
            fe.drivers[0].submit(
                encode(command(c.Submit3D, stream, ctx_id=1, flags=1, fence_id=77)), 24
            )
            for stream in (copies, last)
        ]
        bases = fe.stop()
        fe.drivers[0].collect()
        in_flight = (bases[0] - fe.drivers[0].last_used) & 0xFFFF
        time.sleep(0.1)
        assert fe.drivers[0].collect() == 0  # nothing is answered while the ring is stopped
        go_on(fe, bases)
        for head in heads:
            answer = decode_header(fe.drivers[0].wait(head))
            assert answer is not None
            assert (answer.type, answer.flags, answer.fence_id) == (OK, 1, 77)
        assert in_flight <= 2
        assert fe.bar is not None
        assert fe.bar.read(0, 4096) == b"\x33" * 4096
        assert daemon.screenshot() is not None
        assert run(fe, c.ResourceUnref, 9) == OK


def test_a_map_that_a_pause_interrupts_is_done_afterwards(path: Path) -> None:
    with FrontEnd.connect(path).handshake() as fe:
        make_blob(fe, 1)
        fe.backend.answering.clear()
        head = fe.drivers[0].submit(encode(command(c.ResourceMapBlob, 1, 0)), 32)
        while not fe.backend.messages:
            time.sleep(0.001)
        bases = fe.stop()
        assert bases[0] == fe.drivers[0].last_used
        fe.backend.answering.set()
        go_on(fe, bases)
        assert int.from_bytes(fe.drivers[0].wait(head)[:4], "little") == MAPPED
        assert fe.bar is not None
        fe.bar.write(0, b"\x5a" * SIZE)
        assert run(fe, c.CtxAttachResource, 1, ctx_id=1) == OK


def test_rings_that_stop_and_start_without_being_disabled(path: Path) -> None:
    """As VMMs do that know only GET_VRING_BASE, and say the address before the base."""
    with FrontEnd.connect(path).handshake() as fe:
        assert run(fe, c.ResourceCreate2D, 1, 1, 8, 8) == OK
        driver = fe.drivers[0]
        assert fe.ask(m.GetVringBase(0)) == VringState(0, 1)
        driver.reset()
        fe.tell(m.SetVringNum(0, driver.size))
        fe.set_vring_addr(driver)
        time.sleep(0.02)
        fe.tell(m.SetVringBase(0, 0))
        fe.tell(m.SetVringCall(0, True), [driver.call])
        fe.tell(m.SetVringKick(0, True), [driver.kick])
        assert run(fe, c.ResourceUnref, 1) == ResponseType.ERR_INVALID_RESOURCE_ID
        assert select.select([driver.err], [], [], 0)[0] == []


# -- What was not negotiated, or is done without ---------------------------------------------------


def test_no_acknowledgement_unless_negotiated(path: Path) -> None:
    with FrontEnd.connect(path).handshake(without=ProtocolFeature.REPLY_ACK) as fe:
        fe.send(m.SetOwner(), need_reply=True)
        assert isinstance(fe.ask(m.GetFeatures()), U64Reply)
        assert run(fe, c.ResourceCreate2D, 1, 1, 8, 8) == OK


@pytest.mark.parametrize("without", [ProtocolFeature.SHMEM, ProtocolFeature.BACKEND_REQ])
def test_without_a_window(path: Path, without: ProtocolFeature) -> None:
    """Blobs can't be mapped then; all else works."""
    with FrontEnd.connect(path).handshake(without=without) as fe:
        make_blob(fe, 1)
        assert run(fe, c.ResourceMapBlob, 1, 0) == ResponseType.ERR_UNSPEC
        run(fe, c.ResourceUnmapBlob, 1)
        fill = dma.encode([gpu_driver.fill(1, 0, SIZE, 7)])
        assert run(fe, c.Submit3D, fill, ctx_id=1) == OK
        assert run(fe, c.ResourceUnref, 1) == OK
        show(fe)


def test_rings_without_descriptors(path: Path) -> None:
    with FrontEnd.connect(path).handshake(event_idx=False) as fe:
        driver = fe.drivers[0]
        fe.tell(m.SetVringKick(0, False))
        fe.tell(m.SetVringCall(0, False))
        for _ in range(3):
            request = encode(command(c.GetDisplayInfo))
            driver.submit(request, 408, kick=False)
            until(lambda: driver.collect() > 0, 2, "the ring is not polled", pause=0.001)
        assert driver.interrupts() == 0


# -- Displays --------------------------------------------------------------------------------------


class Screen:
    """The VMM's end of a display socket, which answers nothing."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self._reader = DisplayRequestReader()

    def until_update(self) -> tuple[list[d.DisplayRequest], bytes]:
        """All that comes up to the next update, and that one's pixels."""
        seen = []
        while True:
            while (request := self._reader.next_request()) is not None:
                seen.append(request[0])
                if isinstance(request[0], d.DisplayUpdate):
                    return seen, request[1]
            data = self.sock.recv(1 << 16)
            assert data, "the display was hung up on"
            self._reader.receive_data(data)


def test_a_second_display_takes_the_place_of_the_first(path: Path) -> None:
    with FrontEnd.connect(path).handshake() as fe, fe.gpu_set_socket() as first:
        show(fe)
        assert Screen(first).until_update()
        with fe.gpu_set_socket() as second:
            while first.recv(1 << 16):
                pass
            screen = Screen(second)
            seen, pixels = screen.until_update()
            assert d.DisplayScanout(ScanoutId(0), 64, 64) in seen
            assert seen[-1] == d.DisplayUpdate(ScanoutId(0), 0, 0, 64, 64)
            assert pixels == b"\xff\x00\x00\x00" * 64 * 64
            fe.ram.write(BACKING, b"\x00\xff\x00\x00" * 64 * 64)
            assert run(fe, c.TransferToHost2D, Rect(0, 0, 64, 64), 0, 9) == OK
            assert run(fe, c.ResourceFlush, Rect(8, 8, 4, 4), 9) == OK
            seen, pixels = screen.until_update()
            assert seen[-1] == d.DisplayUpdate(ScanoutId(0), 8, 8, 4, 4)
            assert pixels == b"\x00\xff\x00\x00" * 16


# -- Dirty pages -----------------------------------------------------------------------------------


def pages(gpa: int, length: int) -> set[int]:
    """The pages that a range touches."""
    return set(range(gpa // LOG_PAGE, (gpa + length - 1) // LOG_PAGE + 1))


def logged(fe: FrontEnd, kind: type[Any], *fields: Any, **header: int) -> set[int]:
    """What a command dirties beside its used ring and its response, both of which it must."""
    fe.dirty_pages()
    driver = fe.drivers[0]
    head = driver.submit(encode(command(kind, *fields, **header)), 24)
    [(answer, _)] = driver._pending[head].writable
    assert int.from_bytes(driver.wait(head)[:4], "little") in (OK, MAPPED)
    time.sleep(0.02)  # avail_event is written last
    dirty = fe.dirty_pages()
    always = pages(answer, 24) | pages(driver.used, 6 + 8 * driver.size)
    assert always <= dirty
    return dirty - always


def test_dirty_pages_are_those_that_were_written(path: Path) -> None:
    with FrontEnd.connect(path).handshake() as fe:
        show(fe)
        make_blob(fe, 1, 16 * LOG_PAGE)
        fe.start_log()
        assert logged(fe, c.ResourceFlush, Rect(0, 0, 64, 64), 9) == set()
        blob = entries([BACKING + 8 * LOG_PAGE, BACKING + LOG_PAGE // 2], 4 * LOG_PAGE)
        assert logged(fe, c.ResourceCreateBlob, 2, 1, 0, 0, 8 * LOG_PAGE, blob) == set()
        assert logged(fe, c.CtxAttachResource, 2, ctx_id=1) == set()
        fill = dma.encode([gpu_driver.fill(2, 3 * LOG_PAGE + 5, 2 * LOG_PAGE, 7)])
        assert logged(fe, c.Submit3D, fill, ctx_id=1) == (
            pages(BACKING + 11 * LOG_PAGE + 5, LOG_PAGE - 5)
            | pages(BACKING + LOG_PAGE // 2, LOG_PAGE + 5)
        )
        crc = dma.encode([gpu_driver.crc32(2, 2, 0, 100, 4 * LOG_PAGE - 2)])  # over both
        assert logged(fe, c.Submit3D, crc, ctx_id=1) == (
            pages(BACKING + 12 * LOG_PAGE - 2, 2) | pages(BACKING + LOG_PAGE // 2, 2)
        )
        from_guest = dma.encode([gpu_driver.copy(2, 1, 0, 0, LOG_PAGE)])
        assert logged(fe, c.Submit3D, from_guest, ctx_id=1) == set()
        assert logged(fe, c.TransferToHost2D, Rect(0, 0, 64, 64), 0, 9) == set()
        box = Box(0, 17, 0, 64, 30, 1)
        transfer = (c.TransferFromHost3D, box, 17 * 256, 9, 0, 0, 0)
        assert logged(fe, *transfer) == pages(BACKING + 17 * 256, 30 * 256)
        fe.tell(m.SetFeatures(fe.features & ~F_LOG_ALL))
        fe.dirty_pages()
        assert run(fe, *transfer) == OK
        assert fe.dirty_pages() == set()


def test_pages_between_rows_are_not_dirty(path: Path) -> None:
    with FrontEnd.connect(path).handshake() as fe:
        make_blob(fe, 1, 64 * LOG_PAGE)
        fe.start_log()
        blob = entries(BACKING, 64 * LOG_PAGE)
        logged(fe, c.ResourceCreateBlob, 2, 1, 0, 0, 64 * LOG_PAGE, blob)
        logged(fe, c.CtxAttachResource, 2, ctx_id=1)
        blit = gpu_driver.blit(1, 2, 4, 256, 4 * LOG_PAGE, 0, 0, 64, 16)
        assert logged(fe, c.Submit3D, dma.encode([blit]), ctx_id=1) == {
            page for row in range(16) for page in pages(BACKING + row * 4 * LOG_PAGE, 256)
        }


def test_the_log_can_be_turned_on_in_the_middle_of_work(path: Path) -> None:
    """What is written from then on is marked, whatever started it."""
    with FrontEnd.connect(path).handshake() as fe:
        make_blob(fe, 1, 4 << 20)
        whole = entries(BACKING, 4 << 20)
        assert run(fe, c.ResourceCreateBlob, 2, 1, 0, 0, 4 << 20, whole) == OK
        assert run(fe, c.CtxAttachResource, 2, ctx_id=1) == OK
        copies = [gpu_driver.copy(1, 2, 0, 0, 4 << 20)] * 40 + [gpu_driver.fill(2, 0, 4 << 20, 7)]
        head = fe.drivers[0].submit(encode(command(c.Submit3D, dma.encode(copies), ctx_id=1)), 24)
        fe.start_log()
        fe.drivers[0].wait(head)
        assert pages(BACKING, 4 << 20) <= fe.dirty_pages()
