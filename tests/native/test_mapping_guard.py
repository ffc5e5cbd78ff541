"""Mappings whose file shrinks under them, and SIGBUS that is not ours."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import mmap
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from time import perf_counter

import numpy as np
import pytest
from numpy.typing import NDArray

from vgpud.memory.mapping import Mapping, map_file
from vgpud.native.arrays import address_of
from vgpud.native.mapping import FAULT_EVENT, GuardedMapping, punch_hole
from vgpud.native.spans import FLUSH_BEFORE_READ, SPAN, SpanList
from vgpud.unix.fd import Fd

PAGE = mmap.PAGESIZE


def _file(size: int) -> Fd:
    fd = Fd(os.memfd_create("shrinks", os.MFD_CLOEXEC))
    os.truncate(fd.fileno(), size)
    return fd


def _mapped(fd: Fd, pages: int) -> tuple[Mapping, NDArray[np.uint8]]:
    mapping = map_file(fd, pages * PAGE)
    mapping.array[:] = 1
    return mapping, mapping.array


def test_a_mapping_that_has_lost_pages_reads_as_zeros_and_is_told_of() -> None:
    with _file(8 * PAGE) as fd, _file(2 * PAGE) as other_fd:
        (mapping, array), (other, other_array) = _mapped(fd, 8), _mapped(other_fd, 2)
        os.truncate(fd.fileno(), 3 * PAGE)
        assert array[: 3 * PAGE].all()
        before = mapping.faulted
        assert array[5 * PAGE + 7] == 0
        assert (before, mapping.faulted) == (False, True)
        assert array[: 3 * PAGE].all()
        assert not array[5 * PAGE :].any()
        array[5 * PAGE :] = 5
        assert not array[3 * PAGE : 5 * PAGE].any(), "pages before the first that was found lost"
        assert (array[5 * PAGE :] == 5).all()
        os.truncate(fd.fileno(), 0)
        assert not array[: 5 * PAGE].any()
        assert (array[5 * PAGE :] == 5).all()
        assert other_array.all()
        assert not other.faulted


def test_native_loops_survive_too() -> None:
    with _file(64 * PAGE) as fd:
        mapping, array = _mapped(fd, 64)
        spans = np.array([(address_of(array), array.size)], SPAN)
        os.truncate(fd.fileno(), 0)
        out = np.ones((1, array.size), np.uint8)
        SpanList(spans).gather(0, array.size, out, FLUSH_BEFORE_READ)
        assert not out.any()
        assert mapping.faulted


def test_many_threads_may_fault_at_once() -> None:
    with _file(256 * PAGE) as fd:
        mapping, array = _mapped(fd, 256)
        os.truncate(fd.fileno(), 0)
        sums: list[int] = []
        threads = [
            threading.Thread(target=lambda part=part: sums.append(int(part.sum())))
            for part in np.split(array, 8)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sums == [0] * 8
        assert mapping.faulted


def test_an_entry_that_is_used_again_starts_clean() -> None:
    with _file(PAGE) as fd:
        mapping, array = _mapped(fd, 1)
        os.truncate(fd.fileno(), 0)
        assert array[0] == 0
        assert mapping.faulted
        del mapping, array
        os.truncate(fd.fileno(), PAGE)
        for _ in range(70):  # more than a block of entries, one after the other
            mapping, array = _mapped(fd, 1)
            assert array.all()
            assert not mapping.faulted


def test_more_mappings_than_one_block_of_entries() -> None:
    with _file(200 * PAGE) as fd:
        mappings = [map_file(fd, PAGE, index * PAGE) for index in range(200)]
        os.truncate(fd.fileno(), 100 * PAGE)
        assert not any(int(mapping.array[0]) for mapping in mappings)
        assert [mapping.faulted for mapping in mappings] == [False] * 100 + [True] * 100


def test_unmapping_twice_and_errors() -> None:
    with _file(PAGE) as fd:
        mapping = GuardedMapping(fd.fileno(), 0, PAGE, PAGE, writable=True)
        mapping.unmap()
        mapping.unmap()
        assert not mapping.faulted
        with pytest.raises(OSError) as caught:
            GuardedMapping(fd.fileno(), 1, PAGE, PAGE, writable=True)
        assert caught.value.errno == errno.EINVAL
        with pytest.raises(OSError):
            punch_hole(fd.fileno(), 1 << 63, 1)
    with pytest.raises(OSError) as caught:
        GuardedMapping(-1, 0, PAGE, PAGE, writable=True)
    assert caught.value.errno == errno.EBADF


# Mappings whose file shrinks in a process that can't have any more mappings; or no more private
# ones, as with vm.overcommit_memory=2.
AT_A_LIMIT = """
import ctypes, mmap, os, resource, sys
from vgpud.memory.mapping import map_file
from vgpud.unix.fd import Fd
PAGE, COUNT = mmap.PAGESIZE, 200
fd = Fd(os.memfd_create("x", 0))
os.truncate(fd.fileno(), 8 * PAGE * COUNT)
mappings = [map_file(fd, 8 * PAGE, 8 * PAGE * at) for at in range(COUNT)]
arrays = [mapping.array for mapping in mappings]
if sys.argv[1] == "mappings":
    libc = ctypes.CDLL(None)
    libc.mmap.restype, libc.mmap.argtypes = ctypes.c_ssize_t, [ctypes.c_size_t] * 6
    private = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
    fill = lambda access: libc.mmap(0, PAGE, access, private, -1 & (1 << 64) - 1, 0) != -1
    while fill(mmap.PROT_READ) and fill(mmap.PROT_WRITE):
        pass
else:
    fill = lambda access: False
    resource.setrlimit(resource.RLIMIT_DATA, (PAGE, resource.RLIM_INFINITY))
os.truncate(fd.fileno(), 0)
for array, mapping in zip(arrays, mappings):
    array[5 * PAGE] = 7
    assert (array[0], array[5 * PAGE], mapping.faulted) == (0, 7, True)
    while fill(mmap.PROT_READ) and fill(mmap.PROT_WRITE):
        pass
print("survived")
"""


@pytest.mark.parametrize("limit", ["mappings", "private memory"])
def test_a_process_at_a_limit_survives(limit: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", AT_A_LIMIT, limit], capture_output=True, text=True, check=False,
        timeout=60,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (0, "survived\n"), done.stderr


def test_what_takes_the_place_of_a_mapping_is_its_own() -> None:
    """Addresses are used again, and what was written to lost pages must not be."""
    code = """
import mmap, os, resource
from vgpud.memory.mapping import map_file
from vgpud.unix.fd import Fd
for _ in range(3):
    with Fd(os.memfd_create("x", 0)) as fd:
        os.truncate(fd.fileno(), mmap.PAGESIZE)
        array = map_file(fd, mmap.PAGESIZE).array
        os.truncate(fd.fileno(), 0)
        resource.setrlimit(resource.RLIMIT_DATA, (mmap.PAGESIZE, resource.RLIM_INFINITY))
        assert not array.any()
        resource.setrlimit(resource.RLIMIT_DATA, (resource.RLIM_INFINITY,) * 2)
        array[:] = 1
        assert "vgpud-lost-pages" in open("/proc/self/maps").read()
        del array
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=20)


def test_the_event_is_signalled_by_each_fault() -> None:
    with contextlib.suppress(BlockingIOError):
        os.eventfd_read(FAULT_EVENT)
    with _file(PAGE) as fd:
        mappings = [map_file(fd, PAGE) for _ in range(3)]
        os.truncate(fd.fileno(), 0)
        assert not any(mapping.array.any() for mapping in mappings)
        assert not any(mapping.array.any() for mapping in mappings)
    assert os.eventfd_read(FAULT_EVENT) == 3


# A mapping of ours that is whole, and an access of someone else's to a page that is gone.
NOT_OURS = """
import faulthandler, mmap, os, sys
from vgpud.unix.fd import Fd
from vgpud.memory.mapping import map_shared
fd = Fd(os.memfd_create("x", 0))
os.truncate(fd.fileno(), 8192)
when = sys.argv[1]
faulthandler.disable()
if when == "before":
    faulthandler.enable()
array = map_shared(fd, 8192)
if when in ("after", "between"):
    faulthandler.enable()
if when == "between":
    second = map_shared(fd, 8192)
theirs = mmap.mmap(fd.fileno(), 8192)
os.truncate(fd.fileno(), 0)
if when == "raised":
    os.kill(os.getpid(), 7)
elif when == "between":
    assert second[0] == 0, "the guard has to work again"
theirs[0]
print("survived")
"""


@pytest.mark.parametrize("when", ["never", "before", "after", "between", "raised"])
def test_a_fault_that_is_not_ours_ends_the_process_as_ever(when: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", NOT_OURS, when], capture_output=True, text=True, check=False,
        timeout=20,
    )  # fmt: skip
    assert done.returncode == -signal.SIGBUS, done.stderr
    assert not done.stdout
    assert ("Fatal Python error" in done.stderr) == (when in {"before", "after", "between"})


LARGE = 512 << 20


def _longest_mmap_during(work: Callable[[], object]) -> tuple[float, float]:
    """The longest time that another thread waits for an mmap, and that of the work, in seconds."""
    started, done, longest = threading.Event(), threading.Event(), 0.0

    def others() -> None:
        nonlocal longest
        while not done.is_set():
            begin = perf_counter()
            mmap.mmap(-1, 1 << 20).close()
            longest = max(longest, perf_counter() - begin)
            started.set()

    thread = threading.Thread(target=others)
    thread.start()
    started.wait()
    begin = perf_counter()
    work()
    taken = perf_counter() - begin
    done.set()
    thread.join()
    return longest, taken


def test_a_large_mapping_is_unmapped_in_steps() -> None:
    """Which others, who map memory for themselves, don't have to wait for."""
    ratios = []
    for _ in range(5):  # a busy machine makes a thread wait for other reasons
        with Fd(os.memfd_create("large", os.MFD_CLOEXEC)) as fd:
            os.truncate(fd.fileno(), LARGE)
            mapping = GuardedMapping(fd.fileno(), 0, LARGE, PAGE, writable=True)
            ctypes.memset(mapping.address, 1, LARGE)
            longest, taken = _longest_mmap_during(mapping.unmap)
        ratios.append(longest / taken)
        if ratios[-1] < 0.4:
            return
    pytest.fail(f"others waited for {ratios} of the time")
