"""The guest's memory, as the front-end's memory table shares it.

Owns the mappings of the regions and the translation of guest-physical and front-end virtual
addresses; nothing outside of the regions is ever reachable through it. Source: the vhost-user
specification, "Memory region description" and VHOST_USER_SET_MEM_TABLE.
"""

from __future__ import annotations

import os
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import pairwise
from typing import Final, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from vgpud.errors import GuestAddressError, HostError, PeerError
from vgpud.memory.dirty_log import DirtyLog
from vgpud.memory.extents import PLAIN, Extents, GuestPages, MemoryAccess
from vgpud.memory.mapping import Mapping, map_file
from vgpud.native.arrays import address_of
from vgpud.native.ring import REGION
from vgpud.native.spans import SPAN
from vgpud.unix.fd import Fd, SharedFd

_ADDRESS_SPACE: Final = 1 << 64

# Entries of one list that go on from one region into the next. A list names each page about once,
# and there are few borders; each costs a few microseconds.
MAX_CROSSING: Final = 1024


class Region(Protocol):
    """One entry of a memory table: `memory_size` bytes from `mmap_offset` of the fd with it."""

    @property
    def guest_phys_addr(self) -> int:
        """Where the guest sees it."""

    @property
    def memory_size(self) -> int:
        """Its bytes."""

    @property
    def userspace_addr(self) -> int:
        """Where the front-end sees it."""

    @property
    def mmap_offset(self) -> int:
        """Where it begins in the file."""


@dataclass(frozen=True, slots=True, eq=False)
class _Mapped:
    start: int
    size: int
    userspace_addr: int
    file: tuple[int, int, int]  # st_dev, st_ino, offset
    fd: SharedFd
    mapping: Mapping
    array: NDArray[np.uint8]
    address: int

    @property
    def end(self) -> int:
        return self.start + self.size


class RegionFile(NamedTuple):
    """Where the memory of a region comes from: `size` bytes from `offset` of a file, which stays
    open until the table is released."""

    guest_phys_addr: int
    size: int
    fd: Fd
    offset: int


class DirtyTracking:
    """Where writes to the guest's memory are noted at the moment, if anywhere.

    One for all the tables of a session: a copy that began under one table is logged as soon as
    the front-end wants it, whatever table is in force then.
    """

    __slots__ = ("log",)

    def __init__(self) -> None:
        self.log: DirtyLog | None = None

    def mark_dirty(self, guest_phys_addr: int, length: int) -> None:
        """Note in the log, if there is one, that a range was written."""
        if self.log is not None:
            self.log.set(guest_phys_addr, length)


class MemoryTable:
    """One memory table: immutable, and empty until a front-end has sent one.

    `with_regions` makes the next one. Views and `Extents` of an old one stay mapped and harmless,
    but may no longer be the guest's. `tracking` notes what is written.
    """

    __slots__ = ("_columns", "_regions", "_starts", "tracking")

    def __init__(
        self, regions: Sequence[_Mapped] = (), tracking: DirtyTracking | None = None
    ) -> None:
        self._regions = tuple(regions)
        self._starts = [one.start for one in self._regions]
        self._columns = _columns(self._regions)
        self.tracking = DirtyTracking() if tracking is None else tracking

    def with_regions(self, regions: Sequence[tuple[Region, Fd]]) -> MemoryTable:
        """Return the table of other regions, with the same tracking; every fd is taken.

        A region that is the same range of the same file keeps its mapping. Raises PeerError for
        regions that are empty, overlap, wrap or can't be mapped, and where the log is too short.
        """
        with ExitStack() as stack:
            for _, fd in regions:
                stack.enter_context(fd)
            mapped = sorted(
                (self._map(region, fd) for region, fd in regions), key=lambda one: one.start
            )
        for one, following in pairwise(mapped):
            if following.start < one.end:
                raise PeerError(
                    f"memory regions overlap at guest address 0x{following.start:x}: "
                    f"0x{one.start:x}+0x{one.size:x}"
                )
        if self.tracking.log is not None:
            _check_log(self.tracking.log, mapped)
        return MemoryTable(mapped, self.tracking)

    def track(self, log: DirtyLog | None) -> None:
        """Note writes in a log from now on, or with None nowhere, under any table of the session.

        Raises PeerError for a log that ends before the memory does.
        """
        if log is not None:
            _check_log(log, self._regions)
        self.tracking.log = log

    @property
    def faulted(self) -> bool:
        """Whether the front-end truncated its memory, or the log, under us.

        Zeros have taken the place of what was lost; the session is over for good.
        """
        log = self.tracking.log
        if log is not None and log.faulted:
            return True
        return any(region.mapping.faulted for region in self._regions)

    def regions(self) -> NDArray[np.void]:
        """Return where the regions are mapped, (regions,) of REGION, by guest address.

        For native code that checks against it.
        """
        table = self._columns
        regions = np.empty(table.start.size, REGION)
        regions["start"], regions["size"] = table.start, table.size
        regions["address"] = table.address
        return regions

    def release(self, following: MemoryTable | None = None) -> None:
        """Close the files of the regions, but for those that a following table has, too."""
        kept = {one.fd for one in following.files()} if following is not None else set()
        for region in self._regions:
            if region.fd not in kept:
                region.fd.close()

    def files(self) -> Iterator[RegionFile]:
        """Give the file of each region, for what maps guest memory in another process."""
        for region in self._regions:
            yield RegionFile(region.start, region.size, region.fd, region.file[2])

    def view(self, guest_phys_addr: int, length: int) -> NDArray[np.uint8]:
        """Return a range as it is in memory, (length,) of uint8.

        Raises GuestAddressError if it is not wholly in one region. A caller that writes to the
        view calls `tracking.mark_dirty` afterwards.
        """
        view = self._view(guest_phys_addr, length)
        if view is None:
            raise _outside(guest_phys_addr, length)
        return view

    def user_view(self, userspace_addr: int, length: int) -> NDArray[np.uint8]:
        """Return a range by its address in the front-end, as ring addresses are given."""
        for region in self._regions:
            offset = userspace_addr - region.userspace_addr
            if offset >= 0 and 0 <= length <= region.size - offset:
                return region.array[offset : offset + length]
        raise GuestAddressError(
            f"{length} bytes at front-end address 0x{userspace_addr:x} are in no memory region"
        )

    def read(self, guest_phys_addr: int, length: int) -> bytes:
        """Return a copy of a range, which may go on from one region into the next."""
        view = self._view(guest_phys_addr, length)
        if view is not None:
            return view.tobytes()
        return b"".join(part.tobytes() for _, part in self._views(guest_phys_addr, length))

    def write(self, guest_phys_addr: int, data: bytes | bytearray | memoryview) -> None:
        """Write a range, which may go on from one region into the next, and note it in the log.

        Nothing is written if any of it is outside. `data` is contiguous.
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
        """Return the buffer that a guest's list of pages makes.

        `entries` has the fields `addr` and `length`, in bytes; an entry may go on from one region
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
            addresses, lengths = self._split(addresses, lengths, inside)
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

    def _map(self, region: Region, fd: Fd) -> _Mapped:
        start, size = region.guest_phys_addr, region.memory_size
        where = f"memory region 0x{start:x}+0x{size:x}"
        if size == 0:
            raise PeerError(f"{where} is empty")
        for name, value in (
            ("guest address", start),
            ("front-end address", region.userspace_addr),
            ("file offset", region.mmap_offset),
        ):
            if value + size > _ADDRESS_SPACE:
                raise PeerError(f"{where} wraps: {name} 0x{value:x}")
        try:
            status = os.fstat(fd.fileno())
            file = status.st_dev, status.st_ino, region.mmap_offset
            former = self._former(file, size)
            if former is not None:
                shared, mapping = former.fd, former.mapping
            else:
                mapping = map_file(fd, size, region.mmap_offset)
                shared = SharedFd(fd.take())
        except OSError as error:
            raise PeerError(f"{where}: {error.strerror}") from error
        except HostError as error:
            raise PeerError(f"{where}: {error}") from error
        array = mapping.array
        return _Mapped(
            start, size, region.userspace_addr, file, shared, mapping, array, address_of(array)
        )

    def _former(self, file: tuple[int, int, int], size: int) -> _Mapped | None:
        # Same inode while we hold a mapping of it: the number can't have been given to another.
        for old in self._regions:
            if old.file == file and old.size == size and not old.mapping.faulted:
                return old
        return None

    def _view(self, guest_phys_addr: int, length: int) -> NDArray[np.uint8] | None:
        index = bisect_right(self._starts, guest_phys_addr) - 1
        if index >= 0:
            region = self._regions[index]
            offset = guest_phys_addr - region.start
            if 0 <= length <= region.size - offset:
                return region.array[offset : offset + length]
        return None

    def _views(self, guest_phys_addr: int, length: int) -> Iterator[tuple[int, NDArray[np.uint8]]]:
        """Give the parts of a range, one a region; GuestAddressError first if one is outside."""
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
        """Find ranges' regions: index, whether each is wholly in it, whether it is guest memory."""
        table = self._columns
        index = table.start.searchsorted(addresses, "right") - 1
        if not self._regions:
            nowhere = np.zeros(index.shape, np.bool_)
            return index, nowhere, nowhere
        region = np.maximum(index, 0)
        # Nothing here wraps where the range is guest memory, and elsewhere nobody looks.
        offset = addresses - table.start[region]
        size, run = table.size[region], table.run[region]
        known = (index >= 0) & (offset < run)
        inside = known & (offset < size) & (lengths <= size - offset)
        return index, inside, known & (lengths <= run - offset)

    def _split(
        self,
        addresses: NDArray[np.uint64],
        lengths: NDArray[np.uint64],
        inside: NDArray[np.bool_],
    ) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
        """Cut the ranges that go on from one region into the next where they do."""
        crossing = np.flatnonzero(~inside)
        if crossing.size > MAX_CROSSING:
            raise GuestAddressError(f"{crossing.size} entries cross borders of memory regions")
        pieces: list[NDArray[np.uint64]] = []
        done = 0
        both = np.stack((addresses, lengths), axis=1)
        for at in crossing.tolist():
            cut = [(a, v.size) for a, v in self._views(int(addresses[at]), int(lengths[at]))]
            pieces += [both[done:at], np.array(cut, np.uint64)]
            done = at + 1
        parts = np.concatenate([*pieces, both[done:]])
        return parts[:, 0], parts[:, 1]


class _Columns(NamedTuple):
    """The regions as arrays, to look up many addresses at once; `run` is the bytes from a region's
    start to the next gap."""

    start: NDArray[np.uint64]
    size: NDArray[np.uint64]
    address: NDArray[np.uint64]
    run: NDArray[np.uint64]


def _columns(regions: Sequence[_Mapped]) -> _Columns:
    rows: list[tuple[int, int, int, int]] = []
    for one in reversed(regions):
        goes_on = rows and rows[-1][0] == one.end
        run = one.size + (rows[-1][3] if goes_on else 0)
        rows.append((one.start, one.size, one.address, run))
    return _Columns(*np.array(rows[::-1], np.uint64).reshape(-1, 4).T.copy())


def _check_log(log: DirtyLog, regions: Sequence[_Mapped]) -> None:
    for region in regions:
        if region.end > log.limit:
            raise PeerError(
                f"the dirty log ends at guest address 0x{log.limit:x}, "
                f"before memory region 0x{region.start:x}+0x{region.size:x} does"
            )


def _outside(guest_phys_addr: int, length: int) -> GuestAddressError:
    return GuestAddressError(f"{length} bytes at 0x{guest_phys_addr:x} are not guest memory")
