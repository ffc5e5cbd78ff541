"""What a front-end says of a ring before it starts: SET_VRING_*."""

from __future__ import annotations

from dataclasses import dataclass, field

from vgpud.unix.fd import Fd
from vgpud.vhost.split_ring import Chain
from vgpud.vhost.vring import RingAddress


@dataclass(slots=True)
class RingSetup:
    """What the front-end has said of a ring so far."""

    num: int = 0
    address: RingAddress | None = None
    base: int = 0
    fresh: bool = False
    enabled: bool = False
    kick: Fd | None = None
    polled: bool = False
    call: Fd | None = None
    err: Fd | None = None
    finished: list[tuple[Chain, bytes]] = field(default_factory=list)
