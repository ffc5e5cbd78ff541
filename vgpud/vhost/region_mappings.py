"""The mappings of the memory that a front-end shares, and how much it may have mapped.

A mapping lasts as long as anything uses it, also when its memory table is no longer in force:
scatter-gather lists that were looked up in that table, and work in progress. Source: the vhost-user
specification, "Memory region description".
"""

from __future__ import annotations

import errno
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Final, NamedTuple, Protocol, TypeAlias
from weakref import WeakSet

import numpy as np
from numpy.typing import NDArray

from vgpud.errors import HostError, PeerError
from vgpud.memory.mapping import (
    Mapping,
    map_received_file,
    received_file,
    unused_addresses,
)
from vgpud.memory.own_thread import in_own_thread
from vgpud.native.arrays import address_of
from vgpud.unix.fd import Fd, SharedFd

_ADDRESS_SPACE: Final = 1 << 64

_File: TypeAlias = tuple[int, int, int]

MAX_TABLE_BYTES: Final = 16 << 40
"""Bytes of one memory table. All devices share this process's 128 TiB of addresses."""

ORDINARY_BYTES: Final = 1 << 40
"""Bytes that a session may have mapped whatever others have."""

RESERVED_BYTES: Final = 64 << 40
"""Bytes of addresses that sessions with more than that leave for those with less: half of all."""

MAX_FORMER_REGIONS: Final = 256
"""Regions of former tables that may be in use. A front-end changes its table when memory is plugged
or a blob is mapped, and few regions change each time. All devices share vm.max_map_count."""


class NoMemoryError(PeerError):
    """A region is in a file that is no memory, so that an access to it could wait for ever."""


class Region(Protocol):
    """One entry of a memory table: `memory_size` bytes from `mmap_offset` of its file."""

    @property
    def guest_phys_addr(self) -> int:
        """The region's guest-physical address."""

    @property
    def memory_size(self) -> int:
        """The region's size in bytes."""

    @property
    def userspace_addr(self) -> int:
        """The region's address in the front-end."""

    @property
    def mmap_offset(self) -> int:
        """The region's offset in the file, in bytes."""


@dataclass(frozen=True, slots=True, eq=False)
class MappedRegion:
    """A region with its mapping, `size` bytes at `address` in this process.

    `file` is its device, its inode number, and the region's offset in it.
    """

    start: int
    size: int
    userspace_addr: int
    file: tuple[int, int, int]
    fd: SharedFd
    mapping: Mapping
    array: NDArray[np.uint8]
    address: int

    @property
    def end(self) -> int:
        """The first guest-physical address after the region."""
        return self.start + self.size


class RegionMappings:
    """The mappings of all memory tables of one session, as long as they are in use."""

    __slots__ = ("_mappings", "_ready")

    def __init__(self) -> None:
        self._mappings: WeakSet[Mapping] = WeakSet()
        self._ready: list[_Ready] = []  # for the next table

    @property
    def faulted(self) -> bool:
        """Whether the front-end has truncated a file that is in use."""
        return any(mapping.faulted for mapping in self._mappings)

    def check(self, regions: Sequence[Region], present: Iterable[MappedRegion]) -> None:
        """Raise PeerError if a table of these regions would be too large, or if too many regions
        are in use that the present table does not have."""
        size = sum(region.memory_size for region in regions)
        if size > MAX_TABLE_BYTES:
            raise PeerError(f"a memory table of {size} bytes; {MAX_TABLE_BYTES} is the most")
        former = set(self._mappings).difference(region.mapping for region in present)
        if len(former) > MAX_FORMER_REGIONS:
            raise PeerError(
                f"{len(former)} regions of former memory tables are still in use; "
                f"{MAX_FORMER_REGIONS} is the most"
            )
        size += sum(len(mapping) for mapping in former)
        if size > 2 * MAX_TABLE_BYTES:
            raise PeerError(
                f"{size} bytes of this memory table, and of former ones that are still in use; "
                f"{2 * MAX_TABLE_BYTES} is the most"
            )
        own = sum(len(mapping) for mapping in self._mappings)
        own += sum(ready.size for ready in self._ready)
        if size > ORDINARY_BYTES and unused_addresses() + own - size < RESERVED_BYTES:
            raise PeerError(
                f"{size} bytes of memory tables, and other devices have much memory: "
                f"{ORDINARY_BYTES} is the most then"
            )

    async def prepare(
        self, regions: Sequence[tuple[Region, Fd]], present: Sequence[MappedRegion]
    ) -> None:
        """Map the regions that `present` lacks in a thread, so that `map` finds them mapped.

        Raises PeerError where files of memory can't be mapped. What is wrong otherwise, `map` says.
        """
        self._ready = []
        self.check([region for region, _ in regions], present)
        wanted: list[_Wanted] = []
        with ExitStack() as undo:
            for region, fd in regions:
                size = region.memory_size
                try:
                    file = (*received_file(fd), region.mmap_offset)
                except HostError:
                    continue  # `map` says why
                if 0 < size < _ADDRESS_SPACE and _former(present, file, size) is None:
                    own = undo.enter_context(fd.dup())
                    wanted.append(_Wanted(file, size, own, _name(region)))
            undo.pop_all()
        if wanted:
            self._ready = await in_own_thread(partial(_map_all, wanted))

    def map(self, region: Region, fd: Fd, present: Iterable[MappedRegion]) -> MappedRegion:
        """Map a region; the fd is taken if that succeeds.

        A region that is the same range of the same file as a present one keeps its mapping. Raises
        PeerError for one that is empty, wraps or can't be mapped: NoMemoryError for its file.
        """
        start, size = region.guest_phys_addr, region.memory_size
        where = _name(region)
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
            file = (*received_file(fd), region.mmap_offset)
            former = _former(present, file, size)
            if former is None:
                mapping, shared = self._map(file, fd, size), SharedFd(fd.take())
                self._mappings.add(mapping)
            else:
                mapping, shared = former.mapping, former.fd
        except HostError as error:
            kind = NoMemoryError if error.errno == errno.EMEDIUMTYPE else PeerError
            raise kind(f"{where}: {error}") from error
        array = mapping.array
        address = address_of(array)
        return MappedRegion(
            start, size, region.userspace_addr, file, shared, mapping, array, address
        )

    def _map(self, file: _File, fd: Fd, size: int) -> Mapping:
        for number, ready in enumerate(self._ready):
            if (ready.file, ready.size) == (file, size):
                del self._ready[number]
                return ready.mapping
        return map_received_file(fd, size, file[2])


class _Wanted(NamedTuple):
    """A part of a file to be mapped, for a region of this name."""

    file: _File
    size: int
    fd: Fd
    name: str


class _Ready(NamedTuple):
    """A part of a file that was mapped."""

    file: _File
    size: int
    mapping: Mapping


def _map_all(wanted: Sequence[_Wanted]) -> list[_Ready]:
    """Map parts of files and close the files, on any thread; raise PeerError."""
    ready = []
    with ExitStack() as closing:
        for one in wanted:
            closing.enter_context(one.fd)
        for file, size, fd, name in wanted:
            try:
                ready.append(_Ready(file, size, map_received_file(fd, size, file[2])))
            except HostError as error:
                raise PeerError(f"{name}: {error}") from error
    return ready


def _name(region: Region) -> str:
    return f"memory region 0x{region.guest_phys_addr:x}+0x{region.memory_size:x}"


def _former(
    present: Iterable[MappedRegion], file: tuple[int, int, int], size: int
) -> MappedRegion | None:
    # The inode number can't have been reused, as the mapping keeps the file alive.
    for old in present:
        if old.file == file and old.size == size and not old.mapping.faulted:
            return old
    return None
