"""What a vhost-user front-end asks and what it is answered, as values.

Owns the meaning of each message's fields; `requests` and `replies` own their bytes, `session` their
order. File descriptors are not part of a value: they travel beside it. A request is here if a
front-end may send it to a back-end that offers MQ, LOG_SHMFD, REPLY_ACK, BACKEND_REQ, CONFIG,
BACKEND_SEND_FD, RESET_DEVICE and SHMEM. Source: vhost-user.rst, "Payload" and "Front-end message
types".
"""

from __future__ import annotations

from dataclasses import dataclass

from vgpud.memory.addresses import Gpa, Uva
from vgpud.vhost.wire.protocol import ProtocolFeature

# -- Features --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class GetFeatures:
    """Which virtio and vhost features are offered? Answered with `U64Reply`."""


@dataclass(frozen=True, slots=True)
class SetFeatures:
    """The features in use from now on; sent anew at each start of the guest's driver."""

    features: int


@dataclass(frozen=True, slots=True)
class GetProtocolFeatures:
    """Which extensions of the protocol are offered? Answered with `U64Reply`."""


@dataclass(frozen=True, slots=True)
class SetProtocolFeatures:
    """The extensions of the protocol in use from now on."""

    features: ProtocolFeature


@dataclass(frozen=True, slots=True)
class GetQueueNum:
    """How many virtqueues are there at most? Answered with `U64Reply`."""


@dataclass(frozen=True, slots=True)
class SetOwner:
    """The sender owns the session; QEMU sends it once, after the protocol features."""


@dataclass(frozen=True, slots=True)
class ResetOwner:
    """Deprecated: ignore it, or disable all rings."""


@dataclass(frozen=True, slots=True)
class ResetDevice:
    """Disable all rings and bring the device back to its initial state; the session goes on."""


# -- Memory and its dirty log ----------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class MemRegion:
    """One region of guest memory; all four in bytes, none of them checked here for wrapping.

    `mmap_offset` is where the region starts in its file.
    """

    guest_phys_addr: Gpa
    memory_size: int
    userspace_addr: Uva
    mmap_offset: int


@dataclass(frozen=True, slots=True)
class SetMemTable:
    """All of guest memory, in place of what was there; one fd a region, in the same order."""

    regions: tuple[MemRegion, ...]


@dataclass(frozen=True, slots=True)
class SetLogBase:
    """The dirty log, one fd: `size` bytes from `offset` in it. Answered with `EmptyReply`."""

    size: int
    offset: int


@dataclass(frozen=True, slots=True)
class SetLogFd:
    """An eventfd to signal when the log has changed; doing so is up to the back-end. One fd."""


# -- Vrings ----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class SetVringNum:
    """The size of ring `index`: `num` descriptors."""

    index: int
    num: int


@dataclass(frozen=True, slots=True)
class SetVringAddr:
    """Where ring `index` lives, in front-end addresses; `log`: the used ring's place in the log.

    The guest chooses these addresses, so what they point at, and how they are aligned, is not
    checked here: a bad one must cost the guest its ring, not its session.
    """

    index: int
    flags: int
    desc: Uva
    used: Uva
    avail: Uva
    log: Gpa


@dataclass(frozen=True, slots=True)
class SetVringBase:
    """The next entry of ring `index`'s available ring to look at."""

    index: int
    base: int


@dataclass(frozen=True, slots=True)
class GetVringBase:
    """Stop ring `index` and say where it got to. Answered with `VringState`."""

    index: int


@dataclass(frozen=True, slots=True)
class SetVringKick:
    """The eventfd by which the guest says "look at ring `index`"; without one, poll."""

    index: int
    has_fd: bool


@dataclass(frozen=True, slots=True)
class SetVringCall:
    """The eventfd by which the guest is told that ring `index` has used buffers, or none."""

    index: int
    has_fd: bool


@dataclass(frozen=True, slots=True)
class SetVringErr:
    """The eventfd by which the front-end is told that ring `index` is broken, or none."""

    index: int
    has_fd: bool


@dataclass(frozen=True, slots=True)
class SetVringEnable:
    """Let ring `index` run, or hold it."""

    index: int
    enable: bool


# -- The device ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class SetBackendReqFd:
    """The socket for requests of the back-end's own; one fd."""


@dataclass(frozen=True, slots=True)
class GetConfig:
    """Read `size` bytes of config space from `offset`. Answered with `ConfigReply`."""

    offset: int
    size: int
    flags: int


@dataclass(frozen=True, slots=True)
class SetConfig:
    """Write `data` to config space at `offset`; `flags` 1 means that a migration does it."""

    offset: int
    flags: int
    data: bytes


@dataclass(frozen=True, slots=True)
class GpuSetSocket:
    """The socket of the display protocol; one fd. May come again on the same session."""


@dataclass(frozen=True, slots=True)
class GetShmemConfig:
    """Which shared-memory regions does the device have? Answered with `ShmemConfig`."""


Request = (
    GetFeatures
    | SetFeatures
    | GetProtocolFeatures
    | SetProtocolFeatures
    | GetQueueNum
    | SetOwner
    | ResetOwner
    | ResetDevice
    | SetMemTable
    | SetLogBase
    | SetLogFd
    | SetVringNum
    | SetVringAddr
    | SetVringBase
    | GetVringBase
    | SetVringKick
    | SetVringCall
    | SetVringErr
    | SetVringEnable
    | SetBackendReqFd
    | GetConfig
    | SetConfig
    | GpuSetSocket
    | GetShmemConfig
)
"""Any request that has an encoding."""


# -- Replies ---------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class U64Reply:
    """A number; as an acknowledgement (REPLY_ACK), 0 is success and all else failure."""

    value: int


@dataclass(frozen=True, slots=True)
class VringState:
    """Ring `index` has stopped; `base` is the next entry of its available ring."""

    index: int
    base: int


@dataclass(frozen=True, slots=True)
class ConfigReply:
    """`data` is the config space from `offset`, as long as was asked for."""

    offset: int
    flags: int
    data: bytes


@dataclass(frozen=True, slots=True)
class ShmemConfig:
    """The size in bytes of each shared-memory region, by shmid; 0 where there is none.

    A size must be a power of two (QEMU makes a PCI BAR of it). Decoded, the tuple ends at the last
    region.
    """

    sizes: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class EmptyReply:
    """A reply without a payload: SET_LOG_BASE is done, or GET_CONFIG failed."""


Reply = U64Reply | VringState | ConfigReply | ShmemConfig | EmptyReply
"""Any reply that has an encoding."""
