"""The split virtqueue: takes descriptor chains, writes used elements.

Everything that a driver wrote to the ring is checked here. Source: virtio 1.3, 2.7 "Split
Virtqueues" (2.7.5.3 indirect descriptors, 2.7.7 and 2.7.8 notification suppression).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from vgpud.errors import GuestAddressError, RingError
from vgpud.native.ring import ChainWalk, Stop
from vgpud.native.spans import SPAN

DESC = np.dtype([("addr", "<u8"), ("len", "<u4"), ("flags", "<u2"), ("next", "<u2")])
USED_ELEM = np.dtype([("id", "<u4"), ("len", "<u4")])
BUFFER = np.dtype([("addr", "<u8"), ("length", "<u8")])
assert DESC.itemsize == 16
assert USED_ELEM.itemsize == 8
assert BUFFER.itemsize == SPAN.itemsize

DESC_F_NEXT = 1
DESC_F_WRITE = 2
DESC_F_INDIRECT = 4
AVAIL_F_NO_INTERRUPT = 1
USED_F_NO_NOTIFY = 1

F_INDIRECT_DESC = 1 << 28
F_EVENT_IDX = 1 << 29

MAX_QUEUE_SIZE = 32768  # 2.7: "The maximum Queue Size value is 32768"
MAX_INDIRECT = 4096
"""Descriptors in an indirect table, or as many as the queue has. Linux makes tables longer than the
queue (a large ATTACH_BACKING has one for each page of its list, 2048 for the longest), so the
queue's own size is not the limit that 2.7.5.3.1 asks drivers to keep to."""


class Index(Protocol):
    """A little-endian u16 in shared memory that the other side reads or writes at the same time."""

    def load(self) -> int:
        """Load with acquire ordering."""

    def store(self, value: int) -> None:
        """Store with release ordering."""


class Memory(Protocol):
    """Guest-physical memory, as far as a ring needs it."""

    def read(self, gpa: int, length: int) -> bytes:
        """Return a copy of `length` bytes; raise `GuestAddressError` where the range is not guest
        memory."""


@dataclass(frozen=True, slots=True)
class RingViews:
    """The memory of one virtqueue, as mapped in this process.

    Shapes: `descriptors` (num,) of `DESC`; `available` (num,) of <u2, the avail.ring array; `used`
    (num,) of `USED_ELEM`, the used.ring array. `used_event` and `avail_event` are the two words
    that VIRTIO_F_EVENT_IDX adds.
    """

    descriptors: NDArray[np.void]
    available: NDArray[np.uint16]
    used: NDArray[np.void]
    avail_flags: Index
    avail_idx: Index
    used_event: Index
    used_flags: Index
    used_idx: Index
    avail_event: Index
    fence: Callable[[], None]


class BufferList:
    """Buffers in guest memory, in order: 16 bytes each, so that chains which wait cost little.

    `entries` is (buffers,) of BUFFER. It is equal to any sequence of the same (guest-physical
    address, length in bytes).
    """

    __slots__ = ("entries",)
    __hash__ = None  # type: ignore[assignment]

    def __init__(self, entries: NDArray[np.void]) -> None:
        self.entries = entries

    @classmethod
    def of(cls, buffers: Buffers) -> BufferList:
        """Return a list of these buffers."""
        return buffers if isinstance(buffers, cls) else cls(np.array([*buffers], BUFFER))

    def __len__(self) -> int:
        return len(self.entries)

    def __iter__(self) -> Iterator[tuple[int, int]]:
        return iter(self.entries.tolist())

    def __eq__(self, other: object) -> bool:
        if isinstance(other, BufferList | tuple):
            return [*self] == [*other]
        return NotImplemented

    @property
    def size(self) -> int:
        """The number of bytes in all buffers."""
        return int(self.entries["length"].sum())

    def first(self, size: int) -> BufferList:
        """Return the buffers of the first `size` bytes, without empty ones."""
        return self.part(0, size, len(self))

    def part(self, begin: int, size: int, most: int) -> BufferList:
        """Return the buffers of up to `size` bytes from byte `begin` on, without empty ones, and
        no more than `most` buffers."""
        used = self.entries["length"] != 0
        entries = self.entries if used.all() else self.entries[used]
        ends = entries["length"].cumsum()
        first = int(ends.searchsorted(begin, "right"))  # the buffer that has the first byte
        last = min(int(ends.searchsorted(begin + size)), first + most - 1, len(ends) - 1)
        part = entries[first : last + 1].copy()
        if len(part):
            part["length"][-1] -= max(int(ends[last]) - begin - size, 0)
            skipped = begin - (int(ends[first - 1]) if first else 0)
            part["addr"][0] += skipped
            part["length"][0] -= skipped
        return BufferList(part)


Buffers: TypeAlias = "tuple[tuple[int, int], ...] | BufferList"


class Chain(NamedTuple):  # one is made for every command: a tuple is the quickest to make
    """A descriptor chain: (guest-physical address, length in bytes) of the buffers that the device
    reads, then of those that it writes.

    `readable` is empty once the request has been read. `cut`: only its beginning was, because it
    is longer than a request may be.
    """

    head: int
    readable: Buffers
    writable: Buffers
    cut: bool = False


@dataclass(slots=True, eq=False)
class RingIndices:
    """The device's position in the ring: the next available entry to take, the next used element to
    write, and the used index at the last check for a notification; all modulo 65536."""

    next_avail: int
    next_used: int
    signalled_used: int


class SplitRing:
    """The device's side of one split virtqueue.

    `features` are those that the driver has acknowledged: EVENT_IDX and INDIRECT_DESC count here.
    `in_flight`, of a uint8 for each descriptor, is set for the heads of chains that were taken and
    are not answered, also by a device that served this ring before; by default there are none.
    `log_used` is called with (byte offset in the used ring, bytes) after each store there, for a
    front-end that tracks dirty pages.
    """

    def __init__(
        self,
        views: RingViews,
        memory: Memory,
        *,
        base: int = 0,
        in_flight: NDArray[np.uint8] | None = None,
        features: int = 0,
        log_used: Callable[[int, int], None] | None = None,
    ) -> None:
        self._views = views
        self._memory = memory
        self._num = len(views.descriptors)
        self._event_idx = bool(features & F_EVENT_IDX)
        self._indirect = bool(features & F_INDIRECT_DESC)
        self._max_indirect = max(MAX_INDIRECT, self._num)
        self._follow = ChainWalk(self._num + self._max_indirect)
        self.in_flight = np.zeros(self._num, np.uint8) if in_flight is None else in_flight
        self.log_used = log_used
        # 0 on a new ring; on one that is started again, what the device has published before.
        used = views.used_idx.load()
        self.indices = RingIndices(base & 0xFFFF, used, used)

    def move(
        self,
        views: RingViews,
        memory: Memory,
        *,
        log_used: Callable[[int, int], None] | None = None,
    ) -> None:
        """Continue at another mapping of the same ring, in another memory table."""
        self._views = views
        self._memory = memory
        self.log_used = log_used

    def pop(self) -> Chain | None:
        """Take the next available chain; return None if the driver has made no more available.

        The chain has been copied and then checked completely. Raises `RingError` where the ring is
        malformed.
        """
        waiting = (self._views.avail_idx.load() - self.indices.next_avail) & 0xFFFF
        if waiting == 0:
            return None
        if waiting > self._num:
            raise RingError(f"avail.idx is {waiting} entries ahead, in a queue of {self._num}")
        head = int(self._views.available[self.indices.next_avail % self._num])
        chain = self._walk(head)
        self.in_flight[head] = True
        self.indices.next_avail = (self.indices.next_avail + 1) & 0xFFFF
        return chain

    def put_back(self, heads: Sequence[int]) -> None:
        """Return the chains popped last to the ring, for the next start."""
        self.in_flight[list(heads)] = False
        self.indices.next_avail = (self.indices.next_avail - len(heads)) & 0xFFFF

    def put(self, head: int, written: int) -> None:
        """Write a used element for a chain with `written` bytes in its writable buffers; the driver
        sees it after `publish`."""
        slot = self.indices.next_used % self._num
        self._views.used[slot] = (head, written)
        self.in_flight[head] = False
        self.indices.next_used = (self.indices.next_used + 1) & 0xFFFF
        if self.log_used is not None:
            self.log_used(4 + slot * USED_ELEM.itemsize, USED_ELEM.itemsize)

    def publish(self) -> bool:
        """Publish the used elements; return whether the driver wants an interrupt for them."""
        if self.indices.next_used != self.indices.signalled_used:
            self._store_used()
        return self.should_notify()

    def should_notify(self) -> bool:
        """Return whether the driver wants an interrupt for the used elements since the last
        call."""
        old, new = self.indices.signalled_used, self.indices.next_used
        if old == new:
            return False
        self.indices.signalled_used = new
        # The used index must be visible before the driver's flag or event index is read, or both
        # sides could wait for each other.
        self._views.fence()
        if not self._event_idx:
            return not self._views.avail_flags.load() & AVAIL_F_NO_INTERRUPT
        event = self._views.used_event.load()
        return (new - event - 1) & 0xFFFF < (new - old) & 0xFFFF

    def disable_notifications(self) -> None:
        """Ask the driver not to kick while the ring is being drained; kicks may still come."""
        if not self._event_idx:  # with EVENT_IDX, an avail_event that is not updated does
            self._set_used_flags(USED_F_NO_NOTIFY)

    def enable_notifications(self) -> bool:
        """Ask for kicks again; return whether chains came meanwhile, which must be popped before
        waiting for a kick."""
        if self._event_idx:
            self._views.avail_event.store(self.indices.next_avail)
            if self.log_used is not None:
                self.log_used(4 + self._num * USED_ELEM.itemsize, 2)
        else:
            self._set_used_flags(0)
        # If a driver did not see the request, its available index is visible after this fence.
        self._views.fence()
        return self._views.avail_idx.load() != self.indices.next_avail

    def _store_used(self) -> None:
        self._views.used_idx.store(self.indices.next_used)
        if self.log_used is not None:
            self.log_used(2, 2)

    def _set_used_flags(self, flags: int) -> None:
        self._views.used_flags.store(flags)
        if self.log_used is not None:
            self.log_used(0, 2)

    def _walk(self, head: int) -> Chain:
        if head >= self._num:
            raise RingError(f"head {head} is not in a queue of {self._num}")
        if self.in_flight[head]:  # the driver has not waited for its descriptors to be free
            raise RingError(f"head {head} is available again before it was used")
        walk, table = self._follow, self._views.descriptors
        walk.begin()
        stop = walk.through(table, head, indirect=False)
        if stop is Stop.TABLE:
            table = self._indirect_table(walk.table, walk.table_bytes)
            stop = walk.through(table, 0, indirect=True)
        match stop:
            case Stop.END:
                readable, writable = walk.buffers()
                return Chain(
                    head, BufferList(readable.view(BUFFER)), BufferList(writable.view(BUFFER))
                )
            case Stop.NEXT:
                raise RingError(f"next is {walk.following} in a table of {len(table)}")
            case Stop.ORDER:
                raise RingError(f"descriptor {walk.index} is to be read, after one to be written")
            case Stop.LOOP:
                raise RingError(f"the chain at {head} has a loop")
            case _:
                raise RingError(
                    f"descriptor {walk.index} is INDIRECT and not the last of its chain"
                )

    def _indirect_table(self, addr: int, length: int) -> NDArray[np.void]:
        if not self._indirect:
            raise RingError("INDIRECT descriptor, though INDIRECT_DESC was not negotiated")
        if length == 0 or length % DESC.itemsize or length > self._max_indirect * DESC.itemsize:
            raise RingError(f"an indirect table of {length} bytes")
        try:
            return np.frombuffer(self._memory.read(addr, length), DESC)
        except GuestAddressError as error:
            raise RingError(f"indirect table: {error}") from error
