"""The eventfds of a front-end, which may be blocking, full, or something else."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator

import pytest

from vgpud.errors import PeerError
from vgpud.unix.fd import Fd
from vgpud.vhost import ring_eventfd

FULL = (1 << 64) - 2

pytestmark = pytest.mark.timeout(20)


@pytest.fixture
def fd() -> Iterator[Fd]:
    """A blocking eventfd."""
    with Fd(os.eventfd(0, os.EFD_CLOEXEC)) as fd:
        yield fd


def test_a_count_of_zero_does_not_block(fd: Fd) -> None:
    assert ring_eventfd.drain(fd) == 0
    ring_eventfd.signal(fd)
    ring_eventfd.signal(fd)
    assert ring_eventfd.drain(fd) == 2
    assert ring_eventfd.drain(fd) == 0


def test_a_full_count_does_not_block(fd: Fd) -> None:
    os.eventfd_write(fd.fileno(), FULL)
    ring_eventfd.signal(fd)
    assert ring_eventfd.drain(fd) >= FULL  # the kernel adds one more; nobody else could


def test_a_count_that_is_filled_again_and_again_does_not_block(fd: Fd) -> None:
    stop = threading.Event()

    def fill() -> None:
        while not stop.is_set():
            os.set_blocking(fd.fileno(), False)
            try:
                os.eventfd_write(fd.fileno(), FULL)
            except BlockingIOError:
                os.eventfd_read(fd.fileno())
            os.set_blocking(fd.fileno(), True)

    filler = threading.Thread(target=fill)
    filler.start()
    try:
        for _ in range(20_000):
            ring_eventfd.signal(fd)
    finally:
        stop.set()
        filler.join()


def test_more_signals_than_the_kernel_keeps_results_of(fd: Fd) -> None:
    for _ in range(10_000):
        ring_eventfd.signal(fd)
    assert ring_eventfd.drain(fd) == 10_000


def test_each_signal_wakes_who_waits(fd: Fd) -> None:
    counts: list[int] = []
    reader = threading.Thread(target=lambda: counts.append(os.eventfd_read(fd.fileno())))
    reader.start()
    ring_eventfd.signal(fd)
    reader.join()
    assert counts == [1]


@pytest.mark.parametrize("path", ["/dev/null", "/dev/full", "/"])
def test_files_that_are_no_eventfds(path: str) -> None:
    with Fd(os.open(path, os.O_RDONLY)) as event:
        with pytest.raises(PeerError):
            ring_eventfd.signal(event)
        if path != "/dev/full":
            with pytest.raises(PeerError):
                ring_eventfd.drain(event)


def test_pipes() -> None:
    reader, writer = (Fd(end) for end in os.pipe())
    with reader, writer:
        with pytest.raises(PeerError, match="Invalid argument"):
            ring_eventfd.signal(writer)
        assert ring_eventfd.drain(reader) == 0
        os.write(writer.fileno(), b"odd")
        with pytest.raises(PeerError, match="3 bytes instead of 8"):
            ring_eventfd.drain(reader)
        writer.close()
        with pytest.raises(PeerError, match="0 bytes instead of 8"):
            ring_eventfd.drain(reader)


def test_without_asynchronous_io() -> None:
    # It is set up once in a process, and needs some memory: a process of its own has none left.
    code = f"""
import os, resource, sys
from vgpud.unix.fd import Fd
from vgpud.vhost import ring_eventfd
fd = Fd(os.eventfd(0))
size = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (size, size))
ring_eventfd.signal(fd)
ring_eventfd.signal(fd)
assert ring_eventfd.drain(fd) == 2
os.eventfd_write(fd.fileno(), {FULL})
ring_eventfd.signal(fd)
assert ring_eventfd.drain(fd) == {FULL}
"""
    subprocess.run([sys.executable, "-c", code], check=True)
