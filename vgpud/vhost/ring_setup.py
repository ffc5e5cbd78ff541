"""What a front-end says of a ring before it starts: SET_VRING_*; and a ring as a value."""

from __future__ import annotations

from dataclasses import dataclass

from vgpud.unix.fd import Fd
from vgpud.vhost.ring_views import RingAddress
from vgpud.vhost.split_ring import Chain


@dataclass(frozen=True, slots=True)
class RingState:
    """A stopped ring, but for its descriptors, which the front-end gives again.

    `base` is the available index to go on from. What the device had published is in the used ring,
    in guest memory. `finished` are answers that have not been written there yet.
    """

    num: int
    address: RingAddress | None
    base: int
    fresh: bool
    features: int
    finished: tuple[tuple[Chain, bytes], ...]


@dataclass(slots=True)
class RingSetup:
    """What the front-end has said of a ring so far.

    `base` is the available index to start from, and `fresh` tells that a driver starts there which
    has used nothing of the ring yet. `polled`: the front-end gives no kick descriptor.
    """

    num: int = 0
    address: RingAddress | None = None
    base: int = 0
    fresh: bool = False
    enabled: bool = False
    kick: Fd | None = None
    polled: bool = False
    call: Fd | None = None
    err: Fd | None = None

    @property
    def complete(self) -> bool:
        """Whether all has been said that it takes to start."""
        notified = self.kick is not None or self.polled
        return bool(self.num and self.address and self.enabled and notified)

    def close(self) -> None:
        """Close the descriptors."""
        for fd in (self.kick, self.call, self.err):
            if fd is not None:
                fd.close()
