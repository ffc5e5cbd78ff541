"""A split ring that takes and answers usual chains natively, several at once.

Owns the choice between the two ways: uapi/ring.c for what is usual, `vhost.split_ring` for the rest
and for every error, and for all that is written while a front-end logs it. They keep one state, so
that each can go on where the other stopped.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Self

from vgpud.errors import RingError
from vgpud.native.core import address_of
from vgpud.native.ring import RingPlace
from vgpud.native.transfers import Transfers
from vgpud.vhost.guest_memory import GuestMemory
from vgpud.vhost.split_ring import F_EVENT_IDX, F_INDIRECT_DESC, Chain, RingViews, SplitRing
from vgpud.vhost.vring import RingAddress, ring_views

REQUEST_LIMIT = 8 << 20
"""Bytes of one request. The largest a driver makes is a list of backing pages: 8 MiB list 2 GiB of
them singly."""

_RING = 4  # bytes of flags and index before both the available and the used ring


class NativeRing(SplitRing):
    """The device's side of a ring in `memory`, with the requests read and the responses written.

    As `SplitRing` otherwise, which does the same, chain by chain.
    """

    def __init__(
        self,
        views: RingViews,
        memory: GuestMemory,
        *,
        base: int = 0,
        features: int = 0,
        log_used: Callable[[int, int], None] | None = None,
    ) -> None:
        super().__init__(views, memory, base=base, features=features, log_used=log_used)
        self._guest = memory
        self._features = features
        self.served = 0
        self._bind()

    @classmethod
    def open(
        cls, memory: GuestMemory, address: RingAddress, num: int, *, base: int, features: int
    ) -> Self:
        """The ring of `num` descriptors at an address; raises `RingError` and `GuestAddressError`
        where none can be."""
        views = ring_views(memory, address, num)
        log_used = _log_used(memory, address)
        return cls(views, memory, base=base, features=features, log_used=log_used)

    def relocate(self, address: RingAddress) -> None:
        """Goes on where the ring is mapped now; raises as `open` does."""
        self.log_used = _log_used(self._guest, address)
        self.move(ring_views(self._guest, address, self._num))

    def move(self, views: RingViews) -> None:
        """Goes on at another mapping of the same memory."""
        super().move(views)
        self._bind()

    def take(self, transfers: Transfers | None = None) -> list[tuple[Chain, bytes]]:
        """Takes the next chains, as many as are quickly taken, with their requests; none if the
        driver has made no more available.

        With `transfers`, commands that come first and that it does are done and answered instead:
        `served` is how many, and if there are any, the list may be empty before the ring is.

        Their `readable` is empty: it has been read. Raises `RingError` where the next chain is
        malformed or too long, and `GuestAddressError` where its request is not guest memory.
        """
        if self._generation != self._guest.generation:
            self._bind()
        if transfers is not None and (self.log_used is not None or self._guest.log is not None):
            transfers = None
        taken, unusual = self._place.take(self._next_avail, self._next_used, transfers)
        self.served = 0
        if transfers is not None and (served := transfers.served):
            self.served = served
            self._next_avail = (self._next_avail + served) & 0xFFFF
            self._next_used = (self._next_used + served) & 0xFFFF
        if taken:
            self._next_avail = (self._next_avail + len(taken)) & 0xFFFF
            return [
                (Chain(head, (), ((address, room),) if room else ()), request)
                for head, address, room, request in taken
            ]
        chain = self.pop() if unusual else None
        return [] if chain is None else [(chain, self._gather(chain))]

    def answer(self, chain: Chain, response: bytes) -> None:
        """Writes a response into its chain, as much as there is room for, and the chain into the
        used ring; the driver finds it there after `publish`.

        Raises `GuestAddressError` where the chain's buffers are not guest memory.
        """
        memory = self._guest
        if self._generation != memory.generation:
            self._bind()
        if len(chain.writable) == 1 and self.log_used is None and memory.log is None:
            [(address, room)] = chain.writable
            if self._place.answer(self._next_used, chain.head, address, room, response) >= 0:
                self._next_used = (self._next_used + 1) & 0xFFFF
                return
        written = 0
        for address, length in chain.writable:
            part = response[written : written + length]
            if part:
                memory.write(address, part)
                written += len(part)
        self.put(chain.head, written)

    def publish(self) -> bool:
        """Publishes what was answered; True if the driver wants an interrupt for it."""
        if self.log_used is not None:
            return super().publish()
        old, self._signalled_used = self._signalled_used, self._next_used
        return old != self._next_used and self._place.publish(old, self._next_used)

    def enable_kicks(self) -> bool:
        """Asks for kicks again; True if chains came meanwhile, so that they must be taken before
        waiting."""
        if self.log_used is not None:
            return super().enable_kicks()
        return self._place.rest(self._next_avail)

    @property
    def unpublished(self) -> int:
        """How many chains were answered since the last `publish`."""
        return (self._next_used - self._signalled_used) & 0xFFFF

    def nap(self, seconds: float) -> bool:
        """Sleeps for a while, much less than a second, unless a chain is there already; True if one
        is there then."""
        return self._place.nap(self._next_avail, int(seconds * 1e9))

    def _bind(self) -> None:
        views, features = self._views, self._features
        self._generation = self._guest.generation
        self._place = RingPlace(
            address_of(views.descriptors),
            address_of(views.available) - _RING,
            address_of(views.used) - _RING,
            len(views.descriptors),
            event_idx=bool(features & F_EVENT_IDX),
            indirect=bool(features & F_INDIRECT_DESC),
            regions=self._guest.regions(),
        )

    def _gather(self, chain: Chain) -> bytes:
        if sum(length for _, length in chain.readable) > REQUEST_LIMIT:
            raise RingError(f"a request of more than {REQUEST_LIMIT} bytes")
        if len(chain.readable) == 1:
            return self._guest.read(*chain.readable[0])
        return b"".join(self._guest.read(address, length) for address, length in chain.readable)


def _log_used(memory: GuestMemory, address: RingAddress) -> Callable[[int, int], None] | None:
    log = address.log
    if log is None:
        return None
    return lambda offset, length: memory.mark_dirty(log + offset, length)
