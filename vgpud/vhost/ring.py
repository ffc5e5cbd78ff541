"""The device's side of a ring in guest memory: takes chains with their requests, and writes their
responses.

Two implementations share one set of indices, so that each can continue where the other stopped. The
fast path, native/ring.c, takes and answers many usual chains in one call. `vhost.split_ring` takes
the others one by one, reports every error, and does all writes while the front-end logs them.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from io import BytesIO

import numpy as np
from numpy.typing import NDArray

from vgpud.native.arrays import address_of
from vgpud.native.ring import FastPath, FastRing
from vgpud.vhost.memory_table import MemoryTable
from vgpud.vhost.ring_views import RingAddress, ring_views
from vgpud.vhost.split_ring import (
    F_EVENT_IDX,
    F_INDIRECT_DESC,
    BufferList,
    Chain,
    RingViews,
    SplitRing,
)

REQUEST_LIMIT = 8 << 20
"""Bytes of one request. The largest a driver makes is a list of backing pages: 8 MiB list 2 GiB of
them singly. A program in the guest can make longer ones, which the device has to answer: it gets
their first `CUT` bytes."""

CUT = 4096
"""Bytes that are read at once of a request that is long, or too long: room for a header and what
follows it."""

AT_ONCE = 64 << 10
"""Bytes of a request that is read at once, which takes less than 50 microseconds."""

BUFFERS_AT_ONCE = 2048
"""Buffers that are read at once, which takes a fraction of a millisecond: what Linux needs for its
longest requests."""

STEP = 256 << 10
"""Bytes of a longer request that are read at a time."""

_RING = 4  # bytes of flags and index before both the available and the used ring


class Ring:
    """A ring of `num` descriptors at `address` in `memory`, from the available index `base` on.

    `features` are those that the driver has acknowledged; `in_flight` is as for a `SplitRing`.
    Raises `RingError` and `GuestAddressError` for a ring that can't be at this address.
    """

    def __init__(
        self,
        memory: MemoryTable,
        address: RingAddress,
        num: int,
        *,
        base: int = 0,
        features: int,
        in_flight: NDArray[np.uint8] | None = None,
    ) -> None:
        self._num = num
        self._features = features
        self._memory = memory
        views = ring_views(memory, address, num)
        log_used = _log_used(memory, address)
        self._split = SplitRing(
            views, memory, base=base, features=features, in_flight=in_flight, log_used=log_used
        )
        self._indices = self._split.indices
        self._fast = self._bind(views)
        self.served = 0
        """How many chains the last `take` had the fast path answer."""

    def relocate(self, memory: MemoryTable, address: RingAddress) -> None:
        """Continue at another address; raise `RingError` or `GuestAddressError` as on creation."""
        views = ring_views(memory, address, self._num)
        self._memory = memory
        self._split.move(views, memory, log_used=_log_used(memory, address))
        self._fast = self._bind(views)

    @property
    def next_avail(self) -> int:
        """The index of the next available entry, as for GET_VRING_BASE."""
        return self._indices.next_avail

    @property
    def unpublished(self) -> int:
        """How many chains were answered since the last `publish`."""
        return (self._indices.next_used - self._indices.signalled_used) & 0xFFFF

    def take(self, fast_path: FastPath | None = None) -> list[tuple[Chain, bytes]]:
        """Take the next chains, as many as can be taken quickly, with their requests; none if the
        driver has made no more available.

        With `fast_path`, the first requests are executed and answered at once, as far as it can:
        `served` is how many, and if there are any, the list may be empty before the ring is.

        The `readable` of the chains is empty, because it has been read. A long request still has
        it: only its beginning has been read, and the rest is for `read_steps`. Of one that is too
        long, `cut`, the rest is not read at all. Raises `RingError` where the next chain is
        malformed, and `GuestAddressError` where its request is not guest memory.
        """
        if self._split.log_used is not None or self._memory.tracking.log is not None:
            fast_path = None
        at = self._indices
        taken, unusual = self._fast.take(at.next_avail, at.next_used, fast_path)
        self.served = 0
        if fast_path is not None and (served := fast_path.served):
            self.served = served
            at.next_avail = (at.next_avail + served) & 0xFFFF
            at.next_used = (at.next_used + served) & 0xFFFF
        if taken:
            at.next_avail = (at.next_avail + len(taken)) & 0xFFFF
            return [
                (Chain(head, (), ((address, room),) if room else ()), request)
                for head, address, room, request in taken
            ]
        chain = self._split.pop() if unusual else None
        if chain is None:
            return []
        readable = BufferList.of(chain.readable)
        size = readable.size
        if size <= AT_ONCE and len(readable) <= BUFFERS_AT_ONCE:
            return [(chain._replace(readable=()), self._gather(readable))]
        begin = self._gather(readable.part(0, CUT, BUFFERS_AT_ONCE))
        if size > REQUEST_LIMIT:
            return [(Chain(chain.head, (), chain.writable, cut=True), begin)]
        return [(chain, begin)]

    def read_steps(self, chain: Chain, begin: bytes, size: int) -> Generator[None, None, bytes]:
        """Read more of a long request in steps, and return its first `size` bytes, or all if it is
        shorter.

        `begin` is what `take` has read of it. Raises `GuestAddressError` where a part is not guest
        memory.
        """
        readable = BufferList.of(chain.readable)
        size = min(size, readable.size)
        # Makes bytes of it without a copy, and is of the full size: to grow it is to move it.
        request = BytesIO(bytes(size))
        request.write(begin[:size])
        while (at := request.tell()) < size:
            part = readable.part(at, min(size - at, STEP), BUFFERS_AT_ONCE)
            request.write(self._gather(part))
            yield
        return request.getvalue()

    def put_back(self, heads: Sequence[int]) -> None:
        """Return the chains taken last to the ring, for the next start."""
        self._split.put_back(heads)

    def answer(self, chain: Chain, response: bytes) -> None:
        """Write a response into its chain, as far as it fits, and the chain into the used ring;
        the driver sees it after `publish`.

        Raises `GuestAddressError` where the buffers of the chain are not guest memory.
        """
        at = self._indices
        if (
            len(chain.writable) == 1
            and self._split.log_used is None
            and self._memory.tracking.log is None
        ):
            [(address, room)] = chain.writable
            if self._fast.answer(at.next_used, chain.head, address, room, response) >= 0:
                at.next_used = (at.next_used + 1) & 0xFFFF
                return
        writable = BufferList.of(chain.writable)
        written = min(writable.size, len(response))
        if written:
            writable, data = writable.first(written), response[:written]
            if len(writable) == 1:
                [(address, _)] = writable
                self._memory.write(address, data)
            else:
                self._memory.resolve(writable.entries).write(0, data)
        self._split.put(chain.head, written)

    def publish(self) -> bool:
        """Publish what was answered; return whether the driver wants an interrupt for it."""
        if self._split.log_used is not None:
            return self._split.publish()
        at = self._indices
        old, at.signalled_used = at.signalled_used, at.next_used
        return old != at.next_used and self._fast.publish(old, at.next_used)

    def disable_notifications(self) -> None:
        """Ask the driver not to kick while the ring is being drained; kicks may still come."""
        self._split.disable_notifications()

    def enable_notifications(self) -> bool:
        """Ask for kicks again; return whether chains came meanwhile, which must be taken before
        waiting for a kick."""
        if self._split.log_used is not None:
            return self._split.enable_notifications()
        return self._fast.enable_notifications(self._indices.next_avail)

    def poll(self, seconds: float) -> bool:
        """Sleep for much less than a second, unless a chain is available already; return whether
        one is available then."""
        return self._fast.poll(self._indices.next_avail, int(seconds * 1e9))

    def _bind(self, views: RingViews) -> FastRing:
        return FastRing(
            address_of(views.descriptors),
            address_of(views.available) - _RING,
            address_of(views.used) - _RING,
            self._num,
            in_flight=self._split.in_flight,
            event_idx=bool(self._features & F_EVENT_IDX),
            indirect=bool(self._features & F_INDIRECT_DESC),
            regions=self._memory.regions(),
        )

    def _gather(self, readable: BufferList) -> bytes:
        if len(readable) == 1:
            [(address, length)] = readable
            return self._memory.read(address, length) if length else b""
        extents = self._memory.resolve(readable.entries)
        return extents.read(0, extents.size).tobytes()


def _log_used(memory: MemoryTable, address: RingAddress) -> Callable[[int, int], None] | None:
    log = address.log
    if log is None:
        return None
    return lambda offset, length: memory.tracking.mark_dirty(log + offset, length)
