"""Memory tables, translation of addresses, and the dirty log."""

from __future__ import annotations

import mmap
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from tests.native.arena import random_bytes
from vgpud.errors import GuestAddressError, PeerError
from vgpud.memory.dirty_log import LOG_PAGE, MAX_LOG, DirtyLog
from vgpud.memory.extents import NON_COHERENT
from vgpud.unix.fd import Fd
from vgpud.vhost.memory_table import MAX_CROSSING, MemoryTable

PAGE = mmap.PAGESIZE
TOP = 1 << 64
MEM_ENTRY = np.dtype([("addr", "<u8"), ("length", "<u4"), ("padding", "<u4")])


@dataclass(frozen=True)
class Region:
    guest_phys_addr: int
    memory_size: int
    userspace_addr: int
    mmap_offset: int


def ram(pages: int, seed: int = 1) -> Fd:
    fd = Fd(os.memfd_create("ram", os.MFD_CLOEXEC))
    os.write(fd.fileno(), random_bytes(pages * PAGE, seed).tobytes())
    return fd


def contents(fd: Fd) -> NDArray[np.uint8]:
    return np.frombuffer(os.pread(fd.fileno(), 1 << 24, 0), np.uint8)


def entries(*pieces: tuple[int, int]) -> NDArray[np.void]:
    return np.array([(addr, length, 0) for addr, length in pieces], MEM_ENTRY)


# Three regions of one file: two neighbours in the guest that are none in the file, and one high up.
LOW = Region(0, 4 * PAGE, 0x7000_0000_0000, 8 * PAGE)
NEXT = Region(4 * PAGE, 4 * PAGE, 0x7100_0000_0000, 0)
HIGH = Region(TOP - 4 * PAGE, 4 * PAGE, 0x7200_0000_0000, 4 * PAGE)


def table(fd: Fd, regions: Sequence[Region] = (HIGH, NEXT, LOW)) -> MemoryTable:
    return MemoryTable().with_regions([(region, fd.dup()) for region in regions])


def guest_bytes(fd: Fd) -> NDArray[np.uint8]:
    """What the guest sees from address 0 on, before the hole."""
    file = contents(fd)
    return np.concatenate([file[8 * PAGE : 12 * PAGE], file[: 4 * PAGE]])


def test_views_are_the_memory() -> None:
    with ram(12) as fd:
        memory = table(fd)
        memory.user_view(LOW.userspace_addr + PAGE + 3, 4)[:] = [1, 2, 3, 4]
        assert contents(fd)[9 * PAGE + 3 :][:4].tolist() == [1, 2, 3, 4]
        last = memory.user_view(HIGH.userspace_addr + HIGH.memory_size - 1, 1)
        assert last[0] == contents(fd)[8 * PAGE - 1]
        assert memory.user_view(NEXT.userspace_addr, 0).size == 0
        memory.user_view(HIGH.userspace_addr + 7, 2)[:] = 9
        assert contents(fd)[4 * PAGE + 7 :][:2].tolist() == [9, 9]


OUTSIDE = [
    (8 * PAGE, 1),
    (8 * PAGE - 1, 2),
    (TOP - 4 * PAGE - 1, 1),
    (TOP - 4 * PAGE - 1, 2),
    (TOP - 1, 2),
    (TOP, 1),
    (-1, 1),
    (0, -1),
    (0, TOP),
    (1 << 40, 0),
]


@pytest.mark.parametrize(("address", "length"), OUTSIDE)
def test_addresses_outside(address: int, length: int) -> None:
    with ram(12) as fd:
        memory = table(fd)
        with pytest.raises(GuestAddressError):
            memory.read(address, length)
        if 0 < length < PAGE:
            with pytest.raises(GuestAddressError):
                memory.write(address, bytes(length))
            with pytest.raises(GuestAddressError):
                memory.user_view(LOW.userspace_addr + address, length)
        assert np.array_equal(contents(fd), random_bytes(12 * PAGE))


def test_a_view_is_in_one_region_but_reads_and_writes_go_on_into_the_next() -> None:
    with ram(12) as fd:
        memory = table(fd)
        with pytest.raises(GuestAddressError, match=r"2 bytes at front-end address 0x700000003fff"):
            memory.user_view(LOW.userspace_addr + 4 * PAGE - 1, 2)
        expected = guest_bytes(fd).copy()
        assert memory.read(4 * PAGE - 5, 10) == expected[4 * PAGE - 5 :][:10].tobytes()
        memory.write(4 * PAGE - 2, b"abcd")
        expected[4 * PAGE - 2 :][:4] = list(b"abcd")
        assert np.array_equal(guest_bytes(fd), expected)


def test_nothing_is_shared_before_the_first_table() -> None:
    memory = MemoryTable()
    for access in (memory.read, memory.user_view):
        with pytest.raises(GuestAddressError):
            access(0, 1)
    with pytest.raises(GuestAddressError):
        memory.resolve(entries((0, 1)))
    assert memory.resolve(entries()).size == 0
    memory.tracking.mark_dirty(0, 1)


@given(st.lists(st.tuples(st.integers(0, 8 * PAGE), st.integers(0, 3 * PAGE)), max_size=8))
def test_resolved_pages_are_what_the_guest_sees(pieces: list[tuple[int, int]]) -> None:
    with ram(12) as fd:
        memory, seen = table(fd), guest_bytes(fd)
        inside = [address + length <= 8 * PAGE for address, length in pieces]
        if not all(ok or not length for ok, (_, length) in zip(inside, pieces, strict=True)):
            bad = next(n for n, ok in enumerate(inside) if not ok and pieces[n][1])
            with pytest.raises(GuestAddressError, match=f"entry {bad} of {len(pieces)}: "):
                memory.resolve(entries(*pieces))
            return
        extents = memory.resolve(entries(*pieces))
        parts = [seen[address : address + length] for address, length in pieces]
        expected = np.concatenate([np.empty(0, np.uint8), *parts])
        assert extents.size == expected.size
        assert np.array_equal(extents.read(0, extents.size), expected)


OUTSIDE_ENTRIES = [
    (TOP - 1, 2),
    (TOP - 1, 0xFFFFFFFF),
    (8 * PAGE, 1),
    (TOP - 4 * PAGE - 1, 2),
    (PAGE, 0xFFFFFFFF),
]


@pytest.mark.parametrize("piece", OUTSIDE_ENTRIES)
def test_entries_outside_are_named(piece: tuple[int, int]) -> None:
    with ram(12) as fd, pytest.raises(GuestAddressError, match=r"entry 2 of 3: .* 0x"):
        table(fd).resolve(entries((0, 5), (7, 0), piece))


def test_pages_that_follow_each_other_become_one_span() -> None:
    with ram(12) as fd:
        memory = table(fd)
        run = [(page * PAGE, PAGE) for page in range(4)]
        assert len(memory.resolve(entries(*run)).ranges(0, 4 * PAGE).addresses) == 1
        assert len(memory.resolve(entries(*reversed(run))).ranges(0, 4 * PAGE).addresses) == 4


def test_entries_cross_from_region_to_region_a_limited_number_of_times() -> None:
    with ram(12) as fd:
        memory = table(fd)
        crossing = (3 * PAGE, 2 * PAGE)
        assert memory.resolve(entries(*[crossing] * MAX_CROSSING)).fragments == 2 * MAX_CROSSING
        with pytest.raises(GuestAddressError, match="crossings"):
            memory.resolve(entries(*[crossing] * (MAX_CROSSING + 1)))


def test_extents_keep_memory_mapped_that_the_table_has_left() -> None:
    with ram(12) as fd:
        memory = table(fd)
        extents = memory.resolve(entries((0, 10)))
        memory = memory.with_regions([])
        assert np.array_equal(extents.read(0, 10), random_bytes(12 * PAGE)[8 * PAGE :][:10])
        with pytest.raises(GuestAddressError):
            memory.read(0, 1)


def test_unchanged_regions_keep_their_mapping() -> None:
    with ram(12) as fd, ram(12, 2) as other:
        memory = table(fd)
        low = memory.user_view(LOW.userspace_addr, 1).ctypes.data
        following = memory.user_view(NEXT.userspace_addr, 1).ctypes.data
        moved = Region(NEXT.guest_phys_addr + PAGE, NEXT.memory_size, 0, NEXT.mmap_offset)
        memory = memory.with_regions([(LOW, fd.dup()), (moved, fd.dup())])
        assert memory.user_view(LOW.userspace_addr, 1).ctypes.data == low
        assert memory.user_view(moved.userspace_addr, 1).ctypes.data == following
        memory = memory.with_regions([(LOW, other.dup())])
        assert memory.read(0, 4 * PAGE) == contents(other)[8 * PAGE : 12 * PAGE].tobytes()


def test_the_files_stay_open_until_the_table_is_released() -> None:
    with ram(12) as fd:
        memory = table(fd)
        files = list(memory.files())
        assert [(one.guest_phys_addr, one.size, one.offset) for one in files] == [
            (region.guest_phys_addr, region.memory_size, region.mmap_offset)
            for region in sorted((LOW, NEXT, HIGH), key=lambda region: region.guest_phys_addr)
        ]
        status = os.fstat(fd.fileno())
        for one in files:
            assert os.path.samestat(os.fstat(one.fd.fileno()), status)
        kept, gone = (one.fd.fileno() for one in files[:2])
        following = memory.with_regions([(LOW, fd.dup())])
        assert next(following.files()).fd.fileno() == kept  # an unchanged region keeps its file
        memory.release(following)
        os.fstat(kept)
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(gone)
        following.release()
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(kept)


BAD_TABLES = [
    ([Region(0, 0, 0, 0)], "empty"),
    ([Region(TOP - 1, 2, 0, 0)], "wraps: guest address"),
    ([Region(0, 2, TOP - 1, 0)], "wraps: front-end address"),
    ([Region(0, 2, 0, TOP - 1)], "wraps: file offset"),
    ([Region(0, 13 * PAGE, 0, 0)], "49152 bytes only"),
    ([Region(0, 1, 0, 12 * PAGE)], "49152 bytes only"),
    ([Region(0, 2 * PAGE, 0, 0), Region(2 * PAGE - 1, PAGE, 0, 0)], "overlap"),
    ([Region(PAGE, PAGE, 0, 0), Region(0, 3 * PAGE, 0, 0)], "overlap"),
    ([Region(PAGE, PAGE, 0, 0), Region(PAGE, PAGE, 0, 0)], "overlap"),
]


@pytest.mark.parametrize(("regions", "reason"), BAD_TABLES)
def test_a_bad_table_changes_nothing_and_its_fds_are_closed(
    regions: list[Region], reason: str
) -> None:
    with ram(12) as fd:
        memory = table(fd, [LOW])
        sent = [(region, fd.dup()) for region in regions]
        with pytest.raises(PeerError, match=reason):
            memory.with_regions(sent)
        assert all(one.closed for _, one in sent)
        assert len(memory.read(0, 4 * PAGE)) == 4 * PAGE


def test_a_table_that_is_refused_leaves_nothing_open() -> None:
    """Whoever keeps the error, keeps the frames that it went through."""
    with ram(12) as fd:
        memory = table(fd, [LOW])
        before = len(list(Path("/proc/self/fd").iterdir()))
        sent = [(one, fd.dup()) for one in (LOW, NEXT, Region(5 * PAGE, PAGE, 0, 0))]
        with pytest.raises(PeerError, match="overlap") as caught:
            memory.with_regions(sent)
        assert len(list(Path("/proc/self/fd").iterdir())) == before
        assert caught.value.__traceback__
        assert len(memory.read(0, PAGE)) == PAGE
        assert len([os.fstat(one.fd.fileno()) for one in memory.files()]) == 1


@pytest.mark.parametrize("path", ["/dev/null", "/"])
def test_a_table_with_files_that_are_no_memory(path: str) -> None:
    with pytest.raises(PeerError, match="memory region 0x0"):
        MemoryTable().with_regions([(Region(0, PAGE, 0, 0), Fd(os.open(path, os.O_RDONLY)))])


def test_memory_that_is_truncated_is_told_of_and_replaced_by_what_is_sent_next() -> None:
    with ram(12) as fd:
        memory = table(fd)
        before = memory.faulted
        os.truncate(fd.fileno(), 8 * PAGE)
        assert memory.read(PAGE, 8) == bytes(8)
        assert (before, memory.faulted) == (False, True)
        os.truncate(fd.fileno(), 12 * PAGE)
        os.pwrite(fd.fileno(), b"back", 9 * PAGE)
        memory = memory.with_regions([(LOW, fd.dup())])
        assert not memory.faulted
        assert memory.read(PAGE, 4) == b"back"


def dirty_pages(fd: Fd, offset: int = 0) -> list[int]:
    bits = np.unpackbits(contents(fd)[offset:], bitorder="little")
    pages: list[int] = np.flatnonzero(bits).tolist()
    return pages


def logged(fd: Fd, log: Fd, regions: Sequence[Region] = (NEXT, LOW)) -> MemoryTable:
    memory = table(fd, regions)
    os.truncate(log.fileno(), 8)
    memory.track(DirtyLog(log.dup(), 8))
    return memory


def test_writes_are_noted_in_the_log_and_reads_are_not() -> None:
    with ram(12) as fd, Fd(os.memfd_create("log")) as log:
        memory = logged(fd, log)
        memory.read(0, 8 * PAGE)
        pages = entries((7 * PAGE, PAGE), (0, 2 * PAGE), (5 * PAGE, 10))
        extents = memory.resolve(pages)
        extents.read(0, extents.size)
        assert dirty_pages(log) == []
        memory.write(2 * LOG_PAGE + 5, b"x")
        assert dirty_pages(log) == [2]
        memory.write(4 * PAGE - 1, b"xy")
        assert dirty_pages(log) == [2, 3, 4]
        memory.tracking.mark_dirty(6 * LOG_PAGE, 0)
        assert dirty_pages(log) == [2, 3, 4]
        extents.write(PAGE - 1, b"x")
        assert dirty_pages(log) == [2, 3, 4, 7]
        memory.resolve(pages, access=NON_COHERENT).fill(2 * PAGE, PAGE + 10, 0)
        assert dirty_pages(log) == [1, 2, 3, 4, 5, 7]
        memory.track(None)
        memory.write(6 * PAGE, b"x")
        assert dirty_pages(log) == [1, 2, 3, 4, 5, 7]


def test_a_copy_and_a_rectangle_are_noted() -> None:
    with ram(12) as fd, Fd(os.memfd_create("log")) as log:
        memory = logged(fd, log)
        extents = memory.resolve(entries((5 * PAGE, 3 * PAGE), (0, PAGE)))
        extents.write_rect(PAGE + 8, PAGE, np.ones((2, 16), np.uint8))
        assert dirty_pages(log) == [6, 7]
        source = memory.resolve(entries((PAGE, PAGE)))
        extents.copy_rect(3 * PAGE, 8, source, 0, 8, row_bytes=8, rows=4)
        assert dirty_pages(log) == [0, 6, 7]


def test_a_log_must_cover_the_table_and_the_table_fit_the_log() -> None:
    with ram(12) as fd, Fd(os.memfd_create("log")) as log:
        memory = table(fd)
        os.truncate(log.fileno(), PAGE)
        with pytest.raises(PeerError, match=r"dirty log ends at guest address 0x8000000, before"):
            memory.track(DirtyLog(log.dup(), PAGE))
        assert memory.tracking.log is None
        memory = logged(fd, log)
        with pytest.raises(PeerError, match="dirty log ends"):
            memory.with_regions([(HIGH, fd.dup())])


def test_a_log_anywhere_in_its_file_and_never_beyond_it() -> None:
    with Fd(os.memfd_create("log")) as log:
        os.truncate(log.fileno(), 2 * PAGE)
        dirty = DirtyLog(log.dup(), 3, PAGE + 100)
        assert dirty.limit == 24 * LOG_PAGE
        for address, length in ((23 * LOG_PAGE, TOP), (24 * LOG_PAGE, 1), (TOP - 1, 1), (TOP, 9)):
            dirty.set(address, length)
        dirty.set(LOG_PAGE - 1, 2)
        assert dirty_pages(log, PAGE + 100) == [0, 1, 23]
        assert not contents(log)[: PAGE + 100].any()


def test_a_log_that_can_not_be_mapped_or_shrinks() -> None:
    with Fd(os.memfd_create("log")) as log:
        os.truncate(log.fileno(), PAGE)
        short = log.dup()
        with pytest.raises(PeerError, match="dirty log can't be mapped"):
            DirtyLog(short, PAGE + 1)
        assert short.closed
        with ram(12) as fd:
            memory = table(fd, [LOW])
            memory.track(DirtyLog(log.dup(), PAGE))
            os.truncate(log.fileno(), 0)
            memory.write(0, b"x")
            assert memory.faulted


def test_a_log_is_no_larger_than_for_all_addresses_that_a_guest_has() -> None:
    with Fd(os.memfd_create("log", os.MFD_CLOEXEC)) as log:
        os.truncate(log.fileno(), 2 * MAX_LOG)
        assert DirtyLog(log.dup(), MAX_LOG).limit == 1 << 52
        with pytest.raises(PeerError, match="a dirty log of"):
            DirtyLog(log.dup(), MAX_LOG + 1)
