"""Shared mappings: their life, their bounds, and the names of the memory behind them."""

from __future__ import annotations

import errno
import gc
import mmap
import os
import threading
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from vgpud.errors import HostError
from vgpud.memory import mapping, memfd
from vgpud.native.arrays import address_of
from vgpud.unix.fd import Fd

PAGE = mmap.PAGESIZE


def _mapped(name: str) -> int:
    maps = Path("/proc/self/maps").read_text(encoding="utf-8")
    return sum(f"memfd:{name}" in line for line in maps.splitlines())


@pytest.mark.parametrize("offset", [0, 1, PAGE - 1, PAGE, PAGE + 7])
def test_a_mapping_is_the_file_from_any_offset(offset: int) -> None:
    with memfd.create("any", 4 * PAGE) as fd:
        array = mapping.map_shared(fd, 2 * PAGE, offset)
        assert array.shape == (2 * PAGE,)
        array[5] = 77
        assert os.pread(fd.fileno(), 1, offset + 5) == b"M"
        os.pwrite(fd.fileno(), b"z", offset + 2 * PAGE - 1)
        assert array[-1] == ord("z")


def test_the_last_view_unmaps() -> None:
    with memfd.create("last-view", PAGE) as fd:
        view = mapping.map_shared(fd, PAGE)[10:20].reshape(2, 5)
    assert _mapped("last-view") == 1
    view[:] = 3
    assert int(view.sum()) == 30
    del view
    assert _mapped("last-view") == 0


def test_views_in_a_cycle_are_unmapped_by_the_collector_at_any_time() -> None:
    with memfd.create("cycle", PAGE) as fd:
        for _ in range(50):
            cycle: list[object] = [mapping.map_shared(fd, PAGE)]
            cycle.append(cycle)
            del cycle
            mapping.canonical_address(0)
    gc.collect()
    assert _mapped("cycle") == 0


def test_collection_while_the_table_is_locked_does_not_hang() -> None:
    with memfd.create("locked", PAGE) as fd:
        array = mapping.map_shared(fd, PAGE)
        with mapping._mappings._lock:
            del array
            assert _mapped("locked") == 1
        mapping.canonical_address(0)
        assert _mapped("locked") == 0


def test_read_only() -> None:
    with memfd.create("read-only", PAGE) as fd:
        array = mapping.map_shared(fd, PAGE, writable=False)
        assert not array.flags.writeable
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 1
        with Fd(os.open(f"/proc/self/fd/{fd.fileno()}", os.O_RDONLY)) as weak:
            assert not mapping.map_shared(weak, PAGE, writable=False).any()
            with pytest.raises(HostError) as caught:
                mapping.map_shared(weak, PAGE)
            assert caught.value.errno == errno.EACCES


@pytest.mark.parametrize(
    ("offset", "length", "code"),
    [
        (0, 2 * PAGE + 1, errno.ENXIO),
        (2 * PAGE, 1, errno.ENXIO),
        (PAGE, PAGE + 1, errno.ENXIO),
        (0, 0, errno.EINVAL),
        (-1, 5, errno.EINVAL),
        (0, -1, errno.EINVAL),
        ((1 << 64) - 1, 1, errno.EFBIG),
        (0, 1 << 64, errno.EFBIG),
    ],
)
def test_a_mapping_must_be_in_the_file(offset: int, length: int, code: int) -> None:
    with memfd.create("bounds", 2 * PAGE) as fd, pytest.raises(HostError) as caught:
        mapping.map_shared(fd, length, offset)
    assert caught.value.errno == code


@pytest.mark.parametrize("path", ["/", "/dev/null"])
def test_files_that_have_no_memory(path: str) -> None:
    with Fd(os.open(path, os.O_RDONLY)) as fd, pytest.raises(HostError):
        mapping.map_shared(fd, PAGE, writable=False)


def test_huge_pages() -> None:
    try:
        number = os.memfd_create("huge", os.MFD_CLOEXEC | os.MFD_HUGETLB | os.MFD_HUGE_2MB)
    except OSError as error:
        pytest.skip(f"no huge pages in this kernel: {error}")
    huge = 2 << 20
    with Fd(number) as fd:
        os.ftruncate(number, 2 * huge)
        whole = mapping.map_file(fd, 2 * huge)
        array = mapping.map_shared(fd, PAGE, huge + 3 * PAGE)
        # Beyond the end there is none to be had, even where the system has some to spare.
        os.ftruncate(number, 0)
        assert not array.any()
        assert whole.array[huge + 5] == 0
        assert whole.faulted
        del array, whole
        assert _mapped("huge") == 0


def test_a_canonical_address_says_what_is_the_same_memory() -> None:
    with memfd.create("a", 8 * PAGE) as a, memfd.create("b", 8 * PAGE) as b:
        whole, part = mapping.map_shared(a, 8 * PAGE), mapping.map_shared(a, PAGE, 3 * PAGE + 5)
        other, private = mapping.map_shared(b, 8 * PAGE), np.zeros(PAGE, np.uint8)
        address = address_of
        assert (
            mapping.canonical_address(address(part))
            == mapping.canonical_address(address(whole)) + 3 * PAGE + 5
        )
        assert mapping.canonical_address(address(private)) == address(private)
        addresses = [address(array) + 9 for array in (whole, part, other, private)]
        found = mapping.canonical_addresses(np.array(addresses, np.uint64))
        assert found.dtype == np.int64
        assert found.tolist() == [mapping.canonical_address(one) for one in addresses]
        ranges = sorted((int(name), int(name) + 8 * PAGE) for name in found[[0, 2, 3]])
        assert all(end < start for (_, end), (start, _) in pairwise(ranges))


def test_names_while_mappings_come_and_go() -> None:
    with memfd.create("busy", 64 * PAGE) as fd:
        failures: list[str] = []

        def work(first: int) -> None:
            for page in range(first, 64, 4):
                array = mapping.map_shared(fd, PAGE, page * PAGE)
                offset = mapping.canonical_address(address_of(array)) % (1 << 48)
                if offset != page * PAGE:
                    failures.append(f"page {page} has offset {offset}")

        threads = [threading.Thread(target=work, args=(first,)) for first in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not failures
    assert _mapped("busy") == 0
