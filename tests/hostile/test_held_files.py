"""A VMM that holds the lock of a file that the daemon has given it: by a write(2) of a page that a
filesystem never brings."""

from __future__ import annotations

import contextlib
import ctypes
import os
import threading
import time
from collections.abc import Iterator

import pytest

from tests.hostile.siege import MADE, RogueRing, Siege, rogue, rogue_front_end
from tests.support.silent_files import silent_filesystem
from vgpud.gpu.wire import commands as c

SIZE = 64 << 10
AT_ONCE = 1.0
GIVEN_UP = 8.0
"""Seconds after which the device is free again, with the two of its patience."""


@contextlib.contextmanager
def write_held(fd: int) -> Iterator[None]:
    """A write to a file that does not end before this does."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = [
        *(ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int),
        *(ctypes.c_int, ctypes.c_long),
    ]
    libc.pwrite.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_long]
    with silent_filesystem() as files:
        silent = os.open(files.path, os.O_RDWR)
        page = libc.mmap(None, 4096, 3, 2, silent, 0)  # PROT_READ | PROT_WRITE, MAP_PRIVATE
        assert page not in (None, ctypes.c_void_p(-1).value)
        files.silence()
        writer = threading.Thread(target=libc.pwrite, args=(fd, page, 64, 0))
        writer.start()
        time.sleep(0.2)
        try:
            assert writer.is_alive()
            yield
        finally:
            files.end()
            writer.join()
            with contextlib.suppress(OSError):
                os.close(silent)  # which asks the filesystem


def window_of(ring: RogueRing) -> int:
    """Map a blob; return a descriptor of the window's file."""
    ring.context()
    ring.host_blob(1, SIZE)
    ring.run(c.ResourceMapBlob, 1, 0)
    assert ring.fe.bar is not None
    [(_, _, fd)] = ring.fe.bar.mappings.values()
    return os.dup(fd)


@pytest.fixture
def window(siege: Siege) -> Iterator[tuple[RogueRing, int]]:
    """A guest of device a, and the file of its window."""
    ring = RogueRing(rogue_front_end(siege.socket("a")))
    fd = window_of(ring)
    yield ring, fd
    os.close(fd)
    with contextlib.suppress(OSError, AssertionError):
        ring.fe.close()


def test_an_unref_stops_only_its_device(siege: Siege, window: tuple[RogueRing, int]) -> None:
    ring, fd = window
    ring.host_blob(2, 4 * SIZE)
    ring.run(c.ResourceMapBlob, 2, SIZE)
    with write_held(fd):
        ring.offer(ring.command(c.ResourceUnref, 1))
        ring.offer(ring.command(c.ResourceUnref, 2))
        time.sleep(0.2)
        before = time.monotonic()
        siege.assert_serving("b")
        assert time.monotonic() - before < AT_ONCE
    ring.wait_idle()
    ring.host_blob(3, SIZE)


def test_a_device_whose_file_is_held_is_free_soon(
    siege: Siege, window: tuple[RogueRing, int]
) -> None:
    ring, fd = window
    with write_held(fd):
        ring.fe.disconnect()
        before = time.monotonic()
        siege.assert_serving("b")
        assert time.monotonic() - before < AT_ONCE
        while time.monotonic() - before < GIVEN_UP:
            with contextlib.suppress(OSError, AssertionError), rogue(siege, "a") as next_one:
                next_one.context()
                next_one.host_blob(1, SIZE)
                break
        else:
            pytest.fail("the device is not free")
        assert any("holds the file's lock" in line for line in siege.log)


def test_a_reset_of_a_device_whose_file_is_held_ends_its_session(
    siege: Siege, window: tuple[RogueRing, int]
) -> None:
    ring, fd = window
    with write_held(fd):
        ring.fe.stop()
        for driver in ring.fe.drivers:
            driver.reset()
        with contextlib.suppress(ConnectionError):
            ring.fe.start()
        siege.assert_serving("b")
        deadline = time.monotonic() + GIVEN_UP
        while not any("session ended device=a" in line for line in siege.log):
            assert time.monotonic() < deadline
            time.sleep(0.05)
    with rogue(siege, "a") as next_one:
        assert next_one.run(c.GetDisplayInfo) != MADE
