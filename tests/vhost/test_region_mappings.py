"""The limits of what a front-end can have mapped, and the files that it may share."""

from __future__ import annotations

import asyncio
import mmap
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.silent_files import silent_filesystem
from tests.support.until import until
from tests.vhost.test_memory_table import Region
from vgpud.errors import GuestAddressError, PeerError
from vgpud.memory import mapping
from vgpud.unix.closer import Closer
from vgpud.unix.fd import Fd
from vgpud.unix.received_fd import ReceivedFd
from vgpud.vhost.memory_table import MemoryTable
from vgpud.vhost.region_mappings import (
    MAX_FORMER_REGIONS,
    MAX_TABLE_BYTES,
    ORDINARY_BYTES,
    RESERVED_BYTES,
)

PAGE = mmap.PAGESIZE
GIB = 1 << 30


def sparse(size: int) -> Fd:
    fd = Fd(os.memfd_create("sparse", os.MFD_CLOEXEC))
    os.truncate(fd.fileno(), size)
    return fd


@pytest.fixture(autouse=True)
def addresses() -> Iterator[None]:
    """What was mapped is unmapped again, though in a thread."""
    before = mapping._mappings.unused
    yield
    until(lambda: mapping._mappings.unused >= before)


def test_a_table_may_be_of_any_size_up_to_the_limit() -> None:
    with sparse(2 * MAX_TABLE_BYTES) as fd:
        half = MAX_TABLE_BYTES // 2
        regions = [Region(0, half, 0, 0), Region(half, half, half, half)]
        table = MemoryTable().with_regions([(one, fd.dup()) for one in regions])
        assert table.read(MAX_TABLE_BYTES - 1, 1) == b"\0"
        more = Region(MAX_TABLE_BYTES, PAGE, MAX_TABLE_BYTES, 0)
        with pytest.raises(PeerError, match=f"memory table of {MAX_TABLE_BYTES + PAGE} bytes"):
            table.with_regions([(one, fd.dup()) for one in (*regions, more)])


def test_a_session_keeps_no_more_than_its_share_mapped() -> None:
    used = []
    table = MemoryTable()
    with sparse(3 * MAX_TABLE_BYTES) as fd:
        for turn in range(2):
            offset = turn * MAX_TABLE_BYTES
            table = table.with_regions([(Region(0, MAX_TABLE_BYTES, 0, offset), fd.dup())])
            used.append(table.user_view(0, 1))
        table = table.with_regions([(Region(0, PAGE, 0, 2 * MAX_TABLE_BYTES), fd.dup())])
        with pytest.raises(PeerError, match="former ones that are still in use"):
            table.with_regions([(Region(0, PAGE, 0, 2 * MAX_TABLE_BYTES), fd.dup())])
        used.clear()
        assert table.with_regions([(Region(0, PAGE, 0, 0), fd.dup())]).read(0, 1) == b"\0"


def test_however_many_take_as_much_as_they_can_the_next_finds_some() -> None:
    sessions = []
    with sparse(MAX_TABLE_BYTES) as fd:
        for _ in range(20):
            size = MAX_TABLE_BYTES
            while size:
                try:
                    one = MemoryTable().with_regions([(Region(0, size, 0, 0), fd.dup())])
                except PeerError:
                    size //= 2
                else:
                    sessions.append(one)
                    break
        assert MemoryTable().with_regions([(Region(0, GIB, 0, 0), fd.dup())]).read(0, 1) == b"\0"


def test_regions_of_former_tables_are_limited_while_they_are_in_use() -> None:
    used = []
    table = MemoryTable()
    with sparse((MAX_FORMER_REGIONS + 3) * PAGE) as fd:

        def following(page: int) -> MemoryTable:
            return table.with_regions([(Region(0, PAGE, 0, page * PAGE), fd.dup())])

        for page in range(MAX_FORMER_REGIONS + 2):
            table = following(page)
            used.append(table.user_view(0, 1))
        with pytest.raises(PeerError, match=f"{MAX_FORMER_REGIONS + 1} regions of former"):
            following(0)
        del used[5]
        table = following(0)
        used.clear()
        for page in range(2 * MAX_FORMER_REGIONS):
            table = following(page % MAX_FORMER_REGIONS)


FILES: dict[str, Callable[[], int]] = {
    "disk": lambda: os.open(__file__, os.O_RDWR),
    "device": lambda: os.open("/dev/zero", os.O_RDWR),
    "directory": lambda: os.open("/dev/shm", os.O_RDONLY),
    "path": lambda: os.open("/dev/shm", os.O_PATH),
}


@pytest.mark.parametrize("name", FILES)
def test_memory_in_other_files_is_refused(name: str) -> None:
    with Fd(FILES[name]()) as fd, pytest.raises(PeerError) as caught:
        MemoryTable().with_regions([(Region(0, PAGE, 0, 0), fd)])
    assert "memory region 0x0+0x1000: sharing memory in a file: Wrong medium type" in str(
        caught.value
    )
    assert "memory-backend-memfd" in str(caught.value)


@pytest.mark.parametrize("name", FILES)
def test_a_table_does_without_other_files(name: str) -> None:
    """As of a PCI device that is passed through, or an NVDIMM: the rest is memory."""
    odd = FILES[name]()
    sent = Fd(os.dup(odd))
    os.close(odd)
    with sparse(2 * PAGE) as fd:
        regions = [
            (Region(0, PAGE, 0, 0), fd.dup()),
            (Region(PAGE, PAGE, PAGE, 0), sent),
            (Region(2 * PAGE, PAGE, 2 * PAGE, PAGE), fd.dup()),
        ]
        table = MemoryTable().with_regions(regions)
    assert sent.closed
    (reason,) = table.left_out
    assert reason.startswith("memory region 0x1000+0x1000: ")
    assert [region.guest_phys_addr for region in table.files()] == [0, 2 * PAGE]
    assert table.read(2 * PAGE, PAGE) == table.read(0, PAGE) == bytes(PAGE)
    for address, length in ((PAGE, 1), (0, PAGE + 1), (2 * PAGE - 1, 2)):
        with pytest.raises(GuestAddressError):
            table.read(address, length)
    with pytest.raises(GuestAddressError):
        table.user_view(PAGE, 16)
    table.release()


def test_a_file_on_tmpfs_is_memory() -> None:
    with Fd(os.open("/dev/shm", os.O_TMPFILE | os.O_RDWR)) as fd:
        os.truncate(fd.fileno(), PAGE)
        os.pwrite(fd.fileno(), b"here", 0)
        table = MemoryTable().with_regions([(Region(0, PAGE, 0, 0), fd.dup())])
        assert table.read(0, 4) == b"here"


def test_a_filesystem_that_does_not_answer_is_not_asked() -> None:
    with silent_filesystem() as files, Fd(os.open(files.path, os.O_RDWR)) as fd:
        files.silence()
        begin = time.monotonic()
        closer = Closer()
        sent = ReceivedFd(fd.take(), closer)
        with pytest.raises(PeerError, match="Wrong medium type"):
            MemoryTable().with_regions([(Region(0, PAGE, 0, 0), sent)])
        assert sent.closed
        assert time.monotonic() - begin < 1
        files.end()
        asyncio.run(closer.finished())


def test_unmapping_frees_memory_in_a_thread() -> None:
    with sparse(GIB // 4) as fd:
        table = MemoryTable().with_regions([(Region(0, GIB // 4, 0, 0), fd.dup())])
        table.user_view(0, GIB // 4)[:] = 1
    table.release()
    begin = time.perf_counter()
    del table
    assert time.perf_counter() - begin < 0.005
    until(lambda: "memfd:sparse" not in Path("/proc/self/maps").read_text())


def test_ordinary_memory_is_mapped_whatever_other_sessions_have() -> None:
    sessions = []
    with sparse(MAX_TABLE_BYTES) as fd:
        for _ in range(10):
            table, size = MemoryTable(), MAX_TABLE_BYTES
            while size > ORDINARY_BYTES:
                try:
                    table = table.with_regions([(Region(0, size, 0, 0), fd.dup())])
                except PeerError:
                    size //= 2
                else:
                    break
            sessions.append(table)
        assert mapping.unused_addresses() >= RESERVED_BYTES
        ordinary = MemoryTable().with_regions([(Region(0, ORDINARY_BYTES, 0, 0), fd.dup())])
        assert ordinary.read(ORDINARY_BYTES - 1, 1) == b"\0"


def test_a_table_is_prepared_in_a_thread_and_takes_no_other_mapping() -> None:
    async def main() -> None:
        table = MemoryTable()
        with sparse(4 * PAGE) as fd:
            region = Region(0, 2 * PAGE, 0, PAGE)
            await table.prepare([(region, fd)])
            os.truncate(fd.fileno(), 0)  # nothing of it can be mapped any more
            table = table.with_regions([(region, fd.dup())])
            os.truncate(fd.fileno(), 4 * PAGE)
            os.pwrite(fd.fileno(), b"a", PAGE)
            assert table.read(0, 1) == b"a"
            await table.prepare([(region, fd)])  # it is mapped already
            assert table.with_regions([(region, fd.dup())]).read(0, 1) == b"a"
            with pytest.raises(PeerError, match=r"memory region 0x7\+0x4000: mmap of"):
                await table.prepare([(Region(7, 4 * PAGE, 0, PAGE), fd)])

    asyncio.run(main())
