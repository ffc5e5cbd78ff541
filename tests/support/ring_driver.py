"""A guest, as far as a back-end can tell: memory in memfds, and a driver for split rings in it.

It uses the standard library only. It shares nothing with the daemon's ring and memory code on
purpose: it is what that code is tested with. Used by `tests.support.front_end`.

Source: virtio 1.3, 2.7 "Split Virtqueues".
"""

from __future__ import annotations

import mmap
import os
import select
import struct
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass

TIMEOUT = 5.0
"""Seconds that anything here waits before a test fails."""

F_INDIRECT_DESC = 1 << 28
F_EVENT_IDX = 1 << 29

DESC_F_NEXT = 1
DESC_F_WRITE = 2
DESC_F_INDIRECT = 4

_DESC = struct.Struct("<QIHH")
_USED_ELEM = struct.Struct("<II")
# "@" and not "<": with a byte order struct stores byte by byte, natively it stores the whole u16.
_U16 = struct.Struct("@H")
_FENCE = threading.Lock()


def full_fence() -> None:
    """Stores before this are seen before loads after it: taking a lock is an atomic operation."""
    with _FENCE:
        pass


@dataclass(frozen=True, slots=True)
class RamRegion:
    """One memfd, mapped; guest memory starts `offset` bytes into it."""

    gpa: int
    size: int
    uva: int
    offset: int
    fd: int
    map: mmap.mmap


class GuestRam:
    """Guest memory: `layout` is (guest-physical address, size) of each region, in bytes.

    Regions that touch make one range for the guest, and still are two files at unrelated front-end
    addresses and offsets, as they are in a guest with hotplugged memory.
    """

    def __init__(self, layout: Sequence[tuple[int, int]] = ((0, 16 << 20), (16 << 20, 16 << 20))):
        self.regions: list[RamRegion] = []
        for index, (gpa, size) in enumerate(layout):
            offset = index * mmap.PAGESIZE
            fd = os.memfd_create(f"guest-ram-{index}", os.MFD_CLOEXEC)
            os.ftruncate(fd, offset + size)
            mapping = mmap.mmap(fd, offset + size)
            uva = 0x7F00_0000_0000 + (len(layout) - index) * (1 << 40)
            self.regions.append(RamRegion(gpa, size, uva, offset, fd, mapping))
        # Page 0 stays free, to catch null addresses.
        self._next = self.regions[0].gpa + mmap.PAGESIZE

    def alloc(self, size: int, align: int = 16) -> int:
        """Memory of the first region that nothing else uses, zeroed; never given back."""
        start = -(-self._next // align) * align
        self._next = start + size
        assert self._next <= self.regions[0].gpa + self.regions[0].size, "guest memory is used up"
        return start

    def read(self, gpa: int, length: int) -> bytes:
        """`length` bytes at `gpa`, over region borders too."""
        parts = [r.map[at : at + n] for r, at, n in self._pieces(gpa, length)]
        return b"".join(parts)

    def write(self, gpa: int, data: bytes) -> None:
        """Put `data` at `gpa`, over region borders too."""
        for region, at, length in self._pieces(gpa, len(data)):
            region.map[at : at + length] = data[:length]
            data = data[length:]

    def load_u16(self, gpa: int) -> int:
        """The u16 at `gpa` in one load."""
        ((region, at, _),) = self._pieces(gpa, 2)
        (value,) = _U16.unpack_from(region.map, at)
        return int(value)

    def store_u16(self, gpa: int, value: int) -> None:
        """Set the u16 at `gpa` in one store."""
        ((region, at, _),) = self._pieces(gpa, 2)
        # Not by struct.pack_into, which zeroes its target first: the device looks at any moment.
        with memoryview(region.map) as view, view.cast("H") as words:
            words[at // 2] = value & 0xFFFF

    def user_address(self, gpa: int) -> int:
        """The front-end address of `gpa`."""
        ((region, at, _),) = self._pieces(gpa, 1)
        return region.uva + at - region.offset

    def close(self) -> None:
        for region in self.regions:
            region.map.close()
            os.close(region.fd)
        self.regions.clear()

    def _pieces(self, gpa: int, length: int) -> list[tuple[RamRegion, int, int]]:
        pieces = []
        while length:
            region = next(r for r in self.regions if r.gpa <= gpa < r.gpa + r.size)
            here = min(length, region.gpa + region.size - gpa)
            pieces.append((region, region.offset + gpa - region.gpa, here))
            gpa += here
            length -= here
        return pieces


@dataclass(frozen=True, slots=True)
class Chain:
    """A chain that was made available: the descriptors it takes and where its answer goes."""

    head: int
    descriptors: tuple[int, ...]
    writable: tuple[tuple[int, int], ...]


class RingTimeoutError(AssertionError):
    """The device did not use a chain in time."""


class RingBrokenError(AssertionError):
    """The device says by the ring's err eventfd that it can't go on."""


class Driver:
    """The guest's driver of one ring, with real eventfds.

    `indirect` puts every chain in a table of its own; `event_idx` suppresses notifications by
    index, as both must be negotiated.
    """

    def __init__(
        self,
        ram: GuestRam,
        index: int,
        *,
        size: int = 64,
        indirect: bool = True,
        event_idx: bool = True,
        arena: int = 4 << 20,
    ) -> None:
        self.ram, self.index, self.size = ram, index, size
        self.indirect, self.event_idx = indirect, event_idx
        self.desc = ram.alloc(16 * size, 16)
        self.avail = ram.alloc(6 + 2 * size, 2)
        self.used = ram.alloc(6 + 8 * size, 4)
        self.kick = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self.call = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self.err = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self.kicks = 0
        self._arena = ram.alloc(arena, 4096)
        self._arena_end = self._arena + arena
        self.reset()

    def reset(self) -> None:
        """Forget everything and zero the ring, as a driver that starts anew does."""
        ring_end = self.used + 6 + 8 * self.size
        self.ram.write(self.desc, bytes(ring_end - self.desc))
        self._free = list(range(self.size))
        self._pending: dict[int, Chain] = {}
        self._done: dict[int, int] = {}
        self._avail_idx = 0
        self._decided_idx = 0
        self._used_idx = 0
        self._buffers = self._arena

    @property
    def last_used(self) -> int:
        """How many chains the device has given back, modulo 2**16."""
        return self._used_idx

    def submit(
        self,
        readable: bytes | Sequence[bytes],
        writable: int | Sequence[int] = (),
        *,
        kick: bool = True,
    ) -> int:
        """Make a chain available: a descriptor for each readable buffer and each writable size.

        The result is its head, by which `wait` finds it. With `kick` false the device is not told.
        """
        sources = [readable] if isinstance(readable, bytes) else list(readable)
        sizes = [writable] if isinstance(writable, int) else list(writable)
        buffers = [(self._buffer(len(data)), len(data), 0) for data in sources]
        for (gpa, _, _), data in zip(buffers, sources, strict=True):
            self.ram.write(gpa, data)
        answers = [(self._buffer(size), size) for size in sizes]
        for gpa, size in answers:
            self.ram.write(gpa, b"\xa5" * size)
        buffers += [(gpa, size, DESC_F_WRITE) for gpa, size in answers]
        descriptors = self._describe(buffers)
        chain = Chain(descriptors[0], descriptors, tuple(answers))
        self._pending[chain.head] = chain
        self.make_available(chain.head, kick=kick)
        return chain.head

    def make_available(self, head: int, *, kick: bool = True) -> None:
        """Put `head` into the available ring as it is, good or bad."""
        self.ram.store_u16(self.avail + 4 + 2 * (self._avail_idx % self.size), head)
        self._avail_idx = (self._avail_idx + 1) & 0xFFFF
        self.ram.store_u16(self.avail + 2, self._avail_idx)
        full_fence()
        if kick and self._wants_kick():
            self.notify()

    def notify(self) -> None:
        """Kick, wanted or not."""
        self.kicks += 1
        self._decided_idx = self._avail_idx
        os.eventfd_write(self.kick, 1)

    def wait(self, head: int, timeout: float = TIMEOUT) -> bytes:
        """The bytes that the device wrote for `head`.

        Raises `RingTimeoutError`, or `RingBrokenError` if the device gave the ring up.
        """
        deadline = time.monotonic() + timeout
        while head not in self._done:
            self._arm_call()
            if self.collect():
                continue
            left = deadline - time.monotonic()
            ready, _, _ = select.select([self.call, self.err], [], [], max(left, 0))
            if self.err in ready:
                raise RingBrokenError(f"ring {self.index} is broken, chain {head} was not used")
            if not ready:
                raise RingTimeoutError(f"ring {self.index}: chain {head} was not used")
            os.eventfd_read(self.call)
        chain, length = self._pending.pop(head), self._done.pop(head)
        self._free += chain.descriptors
        written = b"".join(self.ram.read(gpa, size) for gpa, size in chain.writable)[:length]
        if not self._pending:
            self._buffers = self._arena
        return written

    def interrupts(self) -> int:
        """How often the call eventfd was signalled since it was last read, here or by `wait`."""
        try:
            return os.eventfd_read(self.call)
        except BlockingIOError:
            return 0

    def collect(self) -> int:
        """Take what the used ring has; the number of chains."""
        count = 0
        while self.ram.load_u16(self.used + 2) != self._used_idx:
            at = self.used + 4 + 8 * (self._used_idx % self.size)
            head, length = _USED_ELEM.unpack(self.ram.read(at, 8))
            assert head in self._pending, f"ring {self.index}: {head} was used, not available"
            assert head not in self._done, f"ring {self.index}: {head} was used twice"
            self._done[head] = length
            self._used_idx = (self._used_idx + 1) & 0xFFFF
            count += 1
        return count

    def command(self, request: bytes, response_size: int, timeout: float = TIMEOUT) -> bytes:
        """Submit, and wait for the answer."""
        return self.wait(self.submit(request, response_size), timeout)

    def close(self) -> None:
        for fd in (self.kick, self.call, self.err):
            os.close(fd)

    def _buffer(self, size: int) -> int:
        # 8 and not 16: devices must take any alignment, and this one tests that they do.
        start, self._buffers = self._buffers, self._buffers + -(-size // 8) * 8
        assert self._buffers <= self._arena_end, "the ring's buffers are used up"
        return start

    def _describe(self, buffers: Sequence[tuple[int, int, int]]) -> tuple[int, ...]:
        if self.indirect:
            table = self._buffer(16 * len(buffers))
            self._write_descriptors(table, buffers, range(len(buffers)))
            head = self._free.pop(0)
            entry = _DESC.pack(table, 16 * len(buffers), DESC_F_INDIRECT, 0)
            self.ram.write(self.desc + 16 * head, entry)
            return (head,)
        slots = tuple(self._free.pop(0) for _ in buffers)
        self._write_descriptors(self.desc, buffers, slots)
        return slots

    def _write_descriptors(
        self, table: int, buffers: Sequence[tuple[int, int, int]], slots: Sequence[int]
    ) -> None:
        for position, (gpa, size, flags) in enumerate(buffers):
            last = position == len(buffers) - 1
            follows = 0 if last else slots[position + 1]
            entry = _DESC.pack(gpa, size, flags | (0 if last else DESC_F_NEXT), follows)
            self.ram.write(table + 16 * slots[position], entry)

    def _wants_kick(self) -> bool:
        # All that was made available since this was last decided counts, not the last chain alone.
        old, self._decided_idx = self._decided_idx, self._avail_idx
        if not self.event_idx:
            return not self.ram.load_u16(self.used) & 1
        event = self.ram.load_u16(self.used + 4 + 8 * self.size)
        new = self._avail_idx
        return ((new - event - 1) & 0xFFFF) < ((new - old) & 0xFFFF)

    def _arm_call(self) -> None:
        if self.event_idx:
            self.ram.store_u16(self.avail + 4 + 2 * self.size, self._used_idx)
            full_fence()
