"""A ring's setup, which the front-end makes with SET_VRING_* requests, and its saved state."""

from __future__ import annotations

from dataclasses import dataclass

from vgpud.unix.fd import Fd
from vgpud.vhost.ring_views import RingAddress
from vgpud.vhost.split_ring import Chain


@dataclass(frozen=True, slots=True)
class RingState:
    """The state of a stopped ring, without its file descriptors, which the front-end sets again.

    `base` is the available index to continue from. What the device has published is in the used
    ring, in guest memory. `finished` are responses that have not been written there yet.
    """

    num: int
    address: RingAddress | None
    base: int
    fresh: bool
    features: int
    finished: tuple[tuple[Chain, bytes], ...]


@dataclass(slots=True)
class RingSetup:
    """What the front-end has set of a ring so far.

    `base` is the available index to start from; `fresh` is set if the driver has not used the ring
    yet. `polled`: the front-end gives no kick descriptor.
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
        """Whether everything is set that a start needs."""
        notified = self.kick is not None or self.polled
        return bool(self.num and self.address and self.enabled and notified)

    def close(self) -> None:
        """Close the descriptors."""
        for fd in (self.kick, self.call, self.err):
            if fd is not None:
                fd.close()
