"""The memory table: the guest's memory that the front-end shares.

A table holds the mappings of its regions, and translates guest-physical and front-end virtual
addresses. Addresses outside the regions are refused. Source: the vhost-user specification, "Memory
region description" and VHOST_USER_SET_MEM_TABLE.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from itertools import pairwise
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from vgpud.errors import GuestAddressError, PeerError, stored
from vgpud.memory.dirty_log import DirtyLog
from vgpud.memory.extents import PLAIN, Extents, GuestPages, MemoryAccess
from vgpud.native.ring import REGION
from vgpud.native.spans import SPAN
from vgpud.unix.fd import Fd
from vgpud.unix.received_fd import close_all
from vgpud.vhost.region_mappings import MappedRegion, NoMemoryError, Region, RegionMappings

# How often all entries of one list together cross from one region into the next. A list names each
# page about once, and there are up to 31 borders.
MAX_CROSSING: Final = 1024


class RegionFile(NamedTuple):
    """The file of a region: `size` bytes from `offset`. It is open until the table is released."""

    guest_phys_addr: int
    size: int
    fd: Fd
    offset: int


class DirtyTracking:
    """The dirty log in use, if there is one.

    All the tables of a session share it: a copy that began under one table is logged as soon as the
    front-end wants it, whichever table is in force then.
    """

    __slots__ = ("log",)

    def __init__(self) -> None:
        self.log: DirtyLog | None = None

    def mark_dirty(self, guest_phys_addr: int, length: int) -> None:
        """Mark a range as written in the log, if there is one."""
        if self.log is not None:
            self.log.set(guest_phys_addr, length)


class MemoryTable:
    """An immutable memory table, by default an empty one, as before the front-end has sent any.

    `with_regions` makes the next one; `left_out` says which of its regions are not in it, and why.
    Views and `Extents` of an old table stay mapped and can be used safely, but may no longer be the
    guest's memory. `tracking` logs what is written.
    """

    __slots__ = (
        *("__weakref__", "_columns", "_mappings", "_regions", "_starts"),
        *("left_out", "tracking"),
    )

    def __init__(
        self,
        regions: Sequence[MappedRegion] = (),
        tracking: DirtyTracking | None = None,
        mappings: RegionMappings | None = None,
        left_out: Sequence[str] = (),
    ) -> None:
        self._regions = tuple(regions)
        self._mappings = RegionMappings() if mappings is None else mappings
        self._starts = [one.start for one in self._regions]
        self._columns = _columns(self._regions)
        self.tracking = DirtyTracking() if tracking is None else tracking
        self.left_out = tuple(left_out)

    async def prepare(self, regions: Sequence[tuple[Region, Fd]]) -> None:
        """Map regions in a thread for `with_regions`, which comes next; raise PeerError."""
        await self._mappings.prepare(regions, self._regions)

    def with_regions(self, regions: Sequence[tuple[Region, Fd]]) -> MemoryTable:
        """Return a table of other regions, with the same tracking; every fd is taken.

        A region that is the same range of the same file keeps its mapping. One in a file that is
        no memory, such as the registers of a PCI device that is passed through, is left out: its
        addresses are not guest memory here. Raises PeerError if no other one is left, for regions
        that are empty, overlap, wrap or can't be mapped, for more than the limits of
        `region_mappings` allow, and where the log is too short.
        """
        mapped: list[MappedRegion] = []
        left_out: list[NoMemoryError] = []
        with ExitStack() as sent, ExitStack() as failed:
            sent.callback(close_all, [fd for _, fd in regions])
            failed.callback(lambda: MemoryTable(mapped).release(self))
            self._mappings.check([region for region, _ in regions], self._regions)
            for region, fd in regions:
                try:
                    mapped.append(self._mappings.map(region, fd, self._regions))
                except NoMemoryError as error:
                    left_out.append(stored(error))
            if left_out and not mapped:
                raise left_out[0]
            mapped.sort(key=lambda one: one.start)
            self._check(mapped)
            failed.pop_all()
        return MemoryTable(mapped, self.tracking, self._mappings, [*map(str, left_out)])

    def _check(self, mapped: Sequence[MappedRegion]) -> None:
        for one, following in pairwise(mapped):
            if following.start < one.end:
                raise PeerError(
                    f"memory regions overlap at guest address 0x{following.start:x}: "
                    f"0x{one.start:x}+0x{one.size:x}"
                )
        if self.tracking.log is not None:
            _check_log(self.tracking.log, mapped)

    def track(self, log: DirtyLog | None) -> None:
        """Log writes under any table of the session from now on; with None, stop logging.

        Raises PeerError for a log that ends before the memory does.
        """
        if log is not None:
            _check_log(log, self._regions)
        self.tracking.log = log

    @property
    def faulted(self) -> bool:
        """Whether the front-end truncated its memory, or the log, while it was in use.

        It was replaced by zeros; the session has to end.
        """
        log = self.tracking.log
        if log is not None and log.faulted:
            return True
        return any(region.mapping.faulted for region in self._regions)

    @property
    def any_faulted(self) -> bool:
        """Whether the memory of this table, or what is in use of former ones, was truncated."""
        return self.faulted or self._mappings.faulted

    def regions(self) -> NDArray[np.void]:
        """Return the mapped regions in the order of guest addresses, (regions,) of REGION, for
        native code that checks addresses."""
        table = self._columns
        regions = np.empty(table.start.size, REGION)
        regions["start"], regions["size"] = table.start, table.size
        regions["address"] = table.address
        return regions

    def release(self, following: MemoryTable | None = None) -> None:
        """Close the files of the regions, except those that the following table shares."""
        kept = {one.fd for one in following.files()} if following is not None else set()
        for region in self._regions:
            if region.fd not in kept:
                region.fd.close()

    def files(self) -> Iterator[RegionFile]:
        """Yield the file of each region, for a process that maps guest memory by itself."""
        for region in self._regions:
            yield RegionFile(region.start, region.size, region.fd, region.file[2])

    def user_view(self, userspace_addr: int, length: int) -> NDArray[np.uint8]:
        """Return a view of a range by its address in the front-end, (length,) of uint8.

        Raises GuestAddressError if it is not wholly in one region. A caller that writes to the view
        calls `tracking.mark_dirty` afterwards.
        """
        for region in self._regions:
            offset = userspace_addr - region.userspace_addr
            if offset >= 0 and 0 <= length <= region.size - offset:
                return region.array[offset : offset + length]
        raise GuestAddressError(
            f"{length} bytes at front-end address 0x{userspace_addr:x} are in no memory region"
        )

    def read(self, guest_phys_addr: int, length: int) -> bytes:
        """Return a copy of a range, which may cross from one region into the next.

        Raises GuestAddressError if any of it is not guest memory.
        """
        view = self._view(guest_phys_addr, length)
        if view is not None:
            return view.tobytes()
        return b"".join(part.tobytes() for _, part in self._views(guest_phys_addr, length))

    def write(self, guest_phys_addr: int, data: bytes | bytearray | memoryview) -> None:
        """Write a range, which may cross from one region into the next, and log it.

        `data` is contiguous. Raises GuestAddressError, and writes nothing, if any of the range is
        not guest memory.
        """
        rest = np.frombuffer(data, np.uint8)
        length = rest.size
        view = self._view(guest_phys_addr, length)
        if view is not None:
            view[:] = rest
        else:
            for _, part in self._views(guest_phys_addr, length):
                part[:] = rest[: part.size]
                rest = rest[part.size :]
        self.tracking.mark_dirty(guest_phys_addr, length)

    def resolve(self, entries: NDArray[np.void], *, access: MemoryAccess = PLAIN) -> Extents:
        """Return the extents of a guest's scatter-gather list.

        `entries` has the fields `addr` and `length`, in bytes; an entry may cross from one region
        into the next. Raises GuestAddressError, naming the entry that is not guest memory.
        """
        addresses = entries["addr"].astype(np.uint64)
        lengths = entries["length"].astype(np.uint64)
        used = lengths != 0
        if not used.all():
            addresses, lengths = addresses[used], lengths[used]
        if not addresses.size:
            return Extents(np.empty(0, SPAN), (), access=access)
        index, inside, guests = self._locate(addresses, lengths)
        if not guests.all():
            bad = int(np.flatnonzero(~guests)[0])
            number = int(np.flatnonzero(entries["length"])[bad])
            error = _outside(int(addresses[bad]), int(lengths[bad]))
            raise GuestAddressError(f"entry {number} of {len(entries)}: {error}")
        if not inside.all():
            addresses, lengths = self._split(addresses, lengths)
            index, _, _ = self._locate(addresses, lengths)
        # Pages that follow each other in one region are one span.
        joined = (addresses[1:] == addresses[:-1] + lengths[:-1]) & (index[1:] == index[:-1])
        first = np.concatenate(([0], np.flatnonzero(~joined) + 1))
        table = self._columns
        spans = np.empty(first.size, SPAN)
        region = index[first]
        spans["address"] = table.address[region] + (addresses[first] - table.start[region])
        spans["length"] = np.add.reduceat(lengths, first)
        owners = tuple(
            self._regions[one].array for one in np.flatnonzero(np.bincount(index)).tolist()
        )
        return Extents(
            spans, owners, access=access, guest=GuestPages(self.tracking, addresses[first])
        )

    def _view(self, guest_phys_addr: int, length: int) -> NDArray[np.uint8] | None:
        index = bisect_right(self._starts, guest_phys_addr) - 1
        if index >= 0:
            region = self._regions[index]
            offset = guest_phys_addr - region.start
            if 0 <= length <= region.size - offset:
                return region.array[offset : offset + length]
        return None

    def _views(self, guest_phys_addr: int, length: int) -> Iterator[tuple[int, NDArray[np.uint8]]]:
        """Yield the parts of a range, one a region; raise GuestAddressError if any is outside."""
        index = bisect_right(self._starts, guest_phys_addr) - 1
        if index < 0 or length < 0:
            raise _outside(guest_phys_addr, length)
        end = guest_phys_addr + length
        last = index
        while end > self._regions[last].end:
            last += 1
            if last == len(self._regions) or self._starts[last] != self._regions[last - 1].end:
                raise _outside(guest_phys_addr, length)
        if guest_phys_addr > self._regions[index].end:
            raise _outside(guest_phys_addr, length)
        for region in self._regions[index : last + 1]:
            begin = max(guest_phys_addr, region.start)
            stop = min(end, region.end)
            yield begin, region.array[begin - region.start : stop - region.start]

    def _locate(
        self, addresses: NDArray[np.uint64], lengths: NDArray[np.uint64]
    ) -> tuple[NDArray[np.int64], NDArray[np.bool_], NDArray[np.bool_]]:
        """Return ranges' regions by index, whether each is wholly in it, and whether it is guest
        memory."""
        table = self._columns
        index = table.start.searchsorted(addresses, "right") - 1
        if not self._regions:
            nowhere = np.zeros(index.shape, np.bool_)
            return index, nowhere, nowhere
        region = np.maximum(index, 0)
        # This may wrap for ranges that are not guest memory, whose results are masked out.
        offset = addresses - table.start[region]
        size, run = table.size[region], table.run[region]
        known = (index >= 0) & (offset < run)
        inside = known & (offset < size) & (lengths <= size - offset)
        return index, inside, known & (lengths <= run - offset)

    def _split(
        self,
        addresses: NDArray[np.uint64],
        lengths: NDArray[np.uint64],
    ) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
        """Split the ranges that cross from one region into the next at the borders."""
        table = self._columns
        last = addresses + (lengths - np.uint64(1))  # bytes, since the end may be 2**64
        first_region = table.start.searchsorted(addresses, "right") - 1
        parts = table.start.searchsorted(last, "right") - first_region
        total = int(parts.sum())
        check_crossings(total - parts.size)
        entry = np.repeat(np.arange(parts.size), parts)
        nth = np.arange(total) - np.repeat(parts.cumsum() - parts, parts)
        region = first_region[entry] + nth
        begin = np.maximum(addresses[entry], table.start[region])
        end = np.minimum(last[entry], table.start[region] + (table.size[region] - np.uint64(1)))
        return begin, end - begin + np.uint64(1)


class _Columns(NamedTuple):
    """The regions as arrays, to look up many addresses at once; `run` is the number of bytes from a
    region's start to the next gap."""

    start: NDArray[np.uint64]
    size: NDArray[np.uint64]
    address: NDArray[np.uint64]
    run: NDArray[np.uint64]


def _columns(regions: Sequence[MappedRegion]) -> _Columns:
    rows: list[tuple[int, int, int, int]] = []
    for one in reversed(regions):
        adjacent = rows and rows[-1][0] == one.end
        run = one.size + (rows[-1][3] if adjacent else 0)
        rows.append((one.start, one.size, one.address, run))
    return _Columns(*np.array(rows[::-1], np.uint64).reshape(-1, 4).T.copy())


def check_crossings(count: int) -> None:
    """Raise GuestAddressError for a list whose entries cross from one region into the next too
    often."""
    if count > MAX_CROSSING:
        raise GuestAddressError(f"{count} crossings of borders between memory regions")


def _check_log(log: DirtyLog, regions: Sequence[MappedRegion]) -> None:
    for region in regions:
        if region.end > log.limit:
            raise PeerError(
                f"the dirty log ends at guest address 0x{log.limit:x}, "
                f"before memory region 0x{region.start:x}+0x{region.size:x} does"
            )


def _outside(guest_phys_addr: int, length: int) -> GuestAddressError:
    return GuestAddressError(f"{length} bytes at 0x{guest_phys_addr:x} are not guest memory")
