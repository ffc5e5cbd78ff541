"""Clients that do not read, connected and not, in one small send buffer with those that do."""

from __future__ import annotations

import asyncio
import os
import socket
import time
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import pytest

from tests.control.control_stand import client
from tests.support.until import until_async
from vgpud.control import outbox as outbox_module
from vgpud.control.call import Caller
from vgpud.control.outbox import MAX_WAITING, PATIENCE, Outbox
from vgpud.control.sockets import ControlSocket
from vgpud.unix.fd import Fd
from vgpud.unix.socket_file import open_socket

SMALL = 106496
"""Bytes, of which the kernel makes twice as many: its default, without any privilege."""
EVENT = b"e" * 700


class Bed:
    """An outbox on a small send buffer, and clients that read or do not."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.sock = ControlSocket.bound(directory / "control")[0]
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SMALL)
        self.lost: list[tuple[Caller, bool]] = []
        self.outbox = Outbox(self.sock, lambda address, gone: self.lost.append((address, gone)))
        self.socks: list[socket.socket] = []
        self.received: dict[Caller, list[bytes]] = {}

    def client(self, name: str, *, connected: bool = True) -> Caller:
        """One that does not read."""
        address = str(self.directory / name)
        sock = client(address, self.directory / "control" if connected else None)
        sock.setblocking(False)
        self.socks.append(sock)
        file = open_socket(address, os.geteuid())
        return Caller(address, os.getpid(), os.geteuid(), os.getegid(), file=file)

    def reader(self, name: str) -> Caller:
        """One that reads whatever comes."""
        address = self.client(name)
        sock, received = self.socks[-1], self.received.setdefault(address, [])
        loop = asyncio.get_running_loop()
        loop.add_reader(sock, lambda: received.append(sock.recv(1 << 20)))
        return address

    async def until_received(self, address: Caller, count: int) -> float:
        """Seconds until it has so many datagrams."""
        start = time.monotonic()
        await until_async(lambda: len(self.received[address]) >= count, pause=0.0005)
        return time.monotonic() - start

    def close(self) -> None:
        for sock in self.socks:
            if sock.fileno() != -1:
                asyncio.get_running_loop().remove_reader(sock)
            sock.close()
        self.outbox.close()
        self.sock.close()


def open_fds() -> int:
    return len([*Path("/proc/self/fd").iterdir()])


def on_bed(directory: Path, scene: Any) -> None:
    """Plays a scene while the outbox runs."""

    async def play() -> None:
        bed = Bed(directory)
        task = asyncio.ensure_future(bed.outbox.run())
        try:
            coroutine: Coroutine[Any, Any, None] = scene(bed)
            await coroutine
            assert not task.done()
        finally:
            task.cancel()
            bed.close()

    asyncio.run(play())


@pytest.mark.parametrize(("count", "connected"), [(1, True), (20, True), (20, False)])
def test_who_does_not_read_costs_nobody_else_anything(
    tmp_path: Path, count: int, connected: bool
) -> None:
    async def scene(bed: Bed) -> None:
        deaf = [bed.client(f"deaf{number}", connected=connected) for number in range(count)]
        subscriber, caller = bed.reader("subscriber"), bed.reader("caller")
        sent = 0
        delays = []
        end = time.monotonic() + PATIENCE + 1
        while time.monotonic() < end:
            sent += 1
            for address in deaf:
                if (address, False) not in bed.lost:
                    bed.outbox.send(address, EVENT)
            bed.outbox.send(subscriber, b"%d" % sent + EVENT)
            bed.outbox.send(caller, b"reply")
            delays.append(await bed.until_received(caller, sent))
            await asyncio.sleep(0.004)
        await bed.until_received(subscriber, sent)
        assert {address for address, _ in bed.lost} == {*deaf}
        expected = [b"%d" % number + EVENT for number in range(1, sent + 1)]
        assert bed.received[subscriber] == expected
        # Hardly ever is anything to be noticed; where it is, it is about a trial of each.
        assert sorted(delays)[len(delays) * 9 // 10] < 0.05
        assert max(delays) < PATIENCE / 2

    on_bed(tmp_path, scene)


def test_who_reads_again_is_sent_to_again(tmp_path: Path) -> None:
    async def scene(bed: Bed) -> None:
        address = bed.client("sleeper")
        async with asyncio.timeout(10):
            while not bed.lost:
                bed.outbox.send(address, EVENT)
                await asyncio.sleep(0.01)
        await asyncio.sleep(PATIENCE + 0.1)
        held = bed.sock.unread()
        assert 0 < held < SMALL
        bed.outbox.send(address, b"lost")
        await asyncio.sleep(0.05)
        assert bed.sock.unread() == held
        while True:
            try:
                assert bed.socks[0].recv(1 << 20) == EVENT
            except BlockingIOError:
                break
        bed.outbox.send(address, b"awake")
        await asyncio.sleep(0.05)
        assert bed.socks[0].recv(1 << 20) in {b"lost", b"awake"}

    on_bed(tmp_path, scene)


def test_what_waits_is_bounded_and_its_descriptors_are_closed(tmp_path: Path) -> None:
    async def scene(bed: Bed) -> None:
        address = bed.client("deaf", connected=False)
        before = open_fds()
        for number in range(3 * MAX_WAITING):
            fd = Fd(os.memfd_create("it", os.MFD_CLOEXEC))
            bed.outbox.send(address, b"%d" % number, fd)
        held = open_fds() - before
        assert 0 < held <= MAX_WAITING
        await until_async(lambda: open_fds() <= before)
        assert set(bed.lost) == {(address, False)}

    on_bed(tmp_path, scene)


def test_what_all_of_them_wait_for_is_bounded(tmp_path: Path) -> None:
    async def scene(bed: Bed) -> None:
        for number in range(100):
            address = bed.client(f"deaf{number}")
            for _ in range(20):
                bed.outbox.send(address, bytes(60_000))
        assert bed.outbox._waiting_bytes <= outbox_module.MAX_WAITING_BYTES_ALL
        assert len(bed.lost) > 100

    on_bed(tmp_path, scene)


def test_what_waits_goes_out_in_order(tmp_path: Path) -> None:
    async def scene(bed: Bed) -> None:
        address = bed.client("slow", connected=False)
        for number in range(100):
            bed.outbox.send(address, b"%d" % number)
        got: list[bytes] = []
        async with asyncio.timeout(10):
            while len(got) < 100:
                try:
                    got.append(bed.socks[0].recv(1 << 20))
                except BlockingIOError:
                    await asyncio.sleep(0.001)
        assert got == [b"%d" % number for number in range(100)]
        assert not bed.lost

    on_bed(tmp_path, scene)


def test_a_name_that_is_gone_is_told_as_such(tmp_path: Path) -> None:
    async def scene(bed: Bed) -> None:
        left, removed = bed.client("left"), bed.client("removed")
        for sock in bed.socks:
            sock.close()
        os.unlink(removed.address)  # noqa: PTH108 - nothing to wait for
        for address in (left, removed):
            bed.outbox.send(address, b"hello", Fd(os.memfd_create("it", os.MFD_CLOEXEC)))
        assert bed.lost == [(left, True), (removed, True)]
        assert bed.sock.is_gone(left)
        assert bed.sock.is_gone(removed)

    on_bed(tmp_path, scene)


def test_who_goes_while_something_waits_for_it(tmp_path: Path) -> None:
    async def scene(bed: Bed) -> None:
        address = bed.client("deaf", connected=False)
        for _ in range(50):
            bed.outbox.send(address, EVENT)
        bed.socks[0].close()
        await until_async(lambda: not bed.outbox._waiting_bytes, patience=1)
        assert set(bed.lost) == {(address, True)}
        assert bed.sock.unread() == 0

    on_bed(tmp_path, scene)


def test_strangers_are_only_told_while_there_is_plenty_of_room(tmp_path: Path) -> None:
    async def scene(bed: Bed) -> None:
        strangers = [bed.client(f"stranger{number}") for number in range(50)]
        for _ in range(50):
            for address in strangers:
                bed.outbox.send_spare(address, b"no")
        assert 0 < bed.sock.unread() < SMALL // 4
        caller = bed.reader("caller")
        for number in range(200):
            bed.outbox.send(caller, EVENT)
            assert await bed.until_received(caller, number + 1) < 0.5
        assert not bed.lost

    on_bed(tmp_path, scene)


def test_no_estimate_is_kept_of_clients_that_come_and_go(tmp_path: Path) -> None:
    async def scene(bed: Bed) -> None:
        bed.outbox.send(bed.client("paused"), EVENT)  # from now on, there is always something
        for number in range(outbox_module._MAX_CLIENTS + 200):
            address = b"\0vgpud-%d-%d" % (os.getpid(), number)
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
                sock.bind(address)
                bed.outbox.send(Caller(address, 1, 0, 0), EVENT)
        assert len(bed.outbox._clients) <= outbox_module._MAX_CLIENTS

    on_bed(tmp_path, scene)
