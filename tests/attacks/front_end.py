"""Attacks by a front-end: what it shares with the daemon, and what it sends."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
from contextlib import suppress
from typing import Final

from tests.attacks.stand import Attack, Stand, until
from tests.hostile.siege import MADE, MIB, RogueRing, command, entries
from tests.support.front_end import NO_FEATURE, FrontEnd
from vgpud.gpu.wire import commands as c
from vgpud.gpu.wire.command_codec import encode
from vgpud.gpu.wire.header import Box, Rect
from vgpud.memory.addresses import Gpa, Uva
from vgpud.vhost.wire import messages as m
from vgpud.vhost.wire.requests import encode_request

FULL: Final = (1 << 64) - 2
RAM: Final = 32 * MIB
LONG: Final = 60.0


def a_full_call_counter(stand: Stand, seconds: float) -> None:
    """Fill the counter of calls, and have its writers wait."""
    with stand.front_end() as fe:
        ring = RogueRing(fe)
        slot = ring.command(c.GetDisplayInfo)
        call = fe.drivers[0].call
        os.set_blocking(call, True)
        for _ in until(seconds):
            with suppress(BlockingIOError):
                os.set_blocking(call, False)
                os.eventfd_write(call, FULL)
            os.set_blocking(call, True)
            ring.offer(slot)
            ring.wait_idle(LONG)


def a_display_that_blocks(stand: Stand, seconds: float) -> None:
    """Clear O_NONBLOCK of a display socket that is passed, and don't read it."""
    with stand.front_end() as fe:
        ours, theirs = socket.socketpair()
        with ours, theirs:
            fe.tell(m.GpuSetSocket(), [theirs.fileno()])
            stop = threading.Event()

            def clear() -> None:
                while not stop.is_set():
                    theirs.setblocking(True)

            clearing = threading.Thread(target=clear)
            clearing.start()
            try:
                ring = RogueRing(fe)
                assert ring.run(c.ResourceCreate2D, 1, 2, 1920, 1080) == MADE
                size = 4 * 1920 * 1080
                ring.run(c.ResourceAttachBacking, 1, entries(RAM, size))
                ring.run(c.SetScanout, Rect(0, 0, 1920, 1080), 0, 1)
                whole = Rect(0, 0, 1920, 1080)
                for number in until(seconds):
                    fe.ram.write(RAM, bytes([number % 256]) * size)
                    ring.run(c.TransferToHost2D, whole, 0, 1, timeout=LONG)
                    ring.run(c.ResourceFlush, whole, 1, timeout=LONG)
            finally:
                stop.set()
                clearing.join()


def sparse_memory(stand: Stand, seconds: float) -> None:
    """Share much more memory than there is address space, as sparse files; then connect anew."""
    for _ in until(seconds):
        with FrontEnd.connect(stand.siege.socket("a")) as fe:
            fe._introduce(NO_FEATURE)
            fd = os.memfd_create("sparse", os.MFD_CLOEXEC)
            try:
                size = 1 << 44
                os.ftruncate(fd, 1 << 46)
                table = tuple(
                    m.MemRegion(Gpa(size * at), size, Uva(size * at), 0) for at in range(8)
                )
                with suppress(ConnectionError, AssertionError):
                    fe.tell(m.SetMemTable(table), [fd] * 8)
            finally:
                os.close(fd)


def truncated_memory(stand: Stand, seconds: float) -> None:
    """Truncate guest memory while commands read and write it."""
    for _ in until(seconds):
        with stand.front_end() as fe:
            ring = RogueRing(fe)
            assert ring.run(c.ResourceCreate2D, 1, 2, 2048, 2048) == MADE
            ring.run(c.ResourceAttachBacking, 1, entries(RAM, 16 * MIB))
            slot = ring.command(c.TransferFromHost3D, Box(0, 0, 0, 2048, 2048, 1), 0, 1, 0, 0, 0)
            ring.offer(slot, 8)
            with suppress(OSError):
                os.ftruncate(fe.ram.regions[0].fd, RAM)


def bad_addresses(stand: Stand, seconds: float) -> None:
    """Have rings refused as quickly as possible, and look at how much is logged."""
    logged = len(stand.siege.daemon.log)
    with stand.front_end() as fe:
        bad = m.SetVringAddr(0, 0, Uva(16), Uva(16), Uva(16), Gpa(0))
        rounds = 0
        with suppress(OSError):
            for _ in until(seconds):
                rounds += 100
                for _ in range(100):
                    fe.send(bad)
        lines = stand.siege.daemon.log[logged:].count("\n")
        assert lines < 50 + 20 * seconds, f"{lines} lines for {rounds} requests"


def tables_without_end(stand: Stand, seconds: float) -> None:
    """Replace the memory table as quickly as possible, by one of as many regions as it may have."""
    with stand.front_end() as fe:
        fe.stop()
        fd = os.memfd_create("regions", os.MFD_CLOEXEC)
        try:
            os.ftruncate(fd, 8 * MIB)
            regions = tuple(
                m.MemRegion(Gpa(MIB * at), MIB, Uva(MIB * at), MIB * (at % 8)) for at in range(8)
            )
            with suppress(OSError):
                for _ in until(seconds):
                    for _ in range(100):
                        fe.tell(m.SetMemTable(regions), [fd] * len(regions))
        finally:
            os.close(fd)


def many_descriptors_of_a_vmm(stand: Stand, seconds: float) -> None:
    """Connect from a process that has 18,000 descriptors, and reset the device again and again."""
    program = (sys.executable, "-m", "tests.attacks.many_files", stand.siege.socket("a"))
    subprocess.run([*program, str(seconds)], check=True, timeout=LONG)


def messages_in_pieces(stand: Stand, seconds: float) -> None:
    """Send every message byte by byte."""
    with stand.front_end() as fe:
        data = encode_request(m.GetFeatures())
        for _ in until(seconds):
            for at in range(len(data)):
                fe.sock.send(data[at : at + 1])
            fe.sock.recv(4096)


def connections(stand: Stand, seconds: float) -> None:
    """Connect and hang up, again and again, with a command under way."""
    request = encode(command(c.GetDisplayInfo))
    for _ in until(seconds):
        with stand.front_end() as fe:
            fe.drivers[0].submit(request, 408)


FRONT_END_ATTACKS: Final = (
    Attack("blocking", "a full call counter", a_full_call_counter),
    Attack("blocking", "a display that blocks", a_display_that_blocks),
    Attack("mapping", "sparse memory", sparse_memory),
    Attack("mapping", "truncated memory", truncated_memory),
    Attack("log", "bad ring addresses", bad_addresses),
    Attack("mapping", "memory tables without end", tables_without_end),
    Attack("count", "18,000 descriptors of a VMM", many_descriptors_of_a_vmm),
    Attack("count", "messages in pieces", messages_in_pieces),
    Attack("count", "connections", connections),
)
