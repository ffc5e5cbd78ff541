"""The requests of a vhost-user front-end: one class for each, with its layout and its reply.

File descriptors are not part of a value: they travel with its bytes. A request is here if a
front-end may send it to a back-end that offers MQ, LOG_SHMFD, REPLY_ACK, BACKEND_REQ, CONFIG,
BACKEND_SEND_FD, RESET_DEVICE and SHMEM. Source: vhost-user.rst, "Payload" and "Front-end message
types".
"""

from __future__ import annotations

from dataclasses import dataclass
from struct import Struct
from typing import Final, Self

from vgpud.errors import PeerError
from vgpud.memory.addresses import Gpa, Uva
from vgpud.vhost.wire.header import named
from vgpud.vhost.wire.protocol import (
    MAX_CONFIG_SIZE,
    MAX_MEM_REGIONS,
    VRING_F_LOG,
    VRING_IDX_MASK,
    VRING_NOFD,
    FrontEndRequest,
    ProtocolFeature,
)
from vgpud.vhost.wire.replies import (
    ConfigReply,
    EmptyReply,
    ShmemConfig,
    U64Reply,
    VringState,
)
from vgpud.vhost.wire.requests import Request, request

# -- Features --------------------------------------------------------------------------------------


@request(FrontEndRequest.GET_FEATURES, reply=U64Reply)
@dataclass(frozen=True, slots=True)
class GetFeatures(Request):
    """Ask which virtio and vhost features are offered."""


@request(FrontEndRequest.SET_FEATURES, "=Q")
@dataclass(frozen=True, slots=True)
class SetFeatures(Request):
    """Set the features in use from now on; sent at each start of the guest's driver."""

    features: int


@request(FrontEndRequest.GET_PROTOCOL_FEATURES, reply=U64Reply)
@dataclass(frozen=True, slots=True)
class GetProtocolFeatures(Request):
    """Ask which extensions of the protocol are offered."""


@request(FrontEndRequest.SET_PROTOCOL_FEATURES, "=Q")
@dataclass(frozen=True, slots=True)
class SetProtocolFeatures(Request):
    """Set the extensions of the protocol in use from now on."""

    features: ProtocolFeature

    @classmethod
    def unpack(cls, payload: bytes) -> Self:
        """Return the value of a payload, whatever bits it has."""
        return cls(ProtocolFeature(*cls.layout.unpack(payload)))


@request(FrontEndRequest.GET_QUEUE_NUM, reply=U64Reply)
@dataclass(frozen=True, slots=True)
class GetQueueNum(Request):
    """Ask how many virtqueues there are at most."""


@request(FrontEndRequest.SET_OWNER)
@dataclass(frozen=True, slots=True)
class SetOwner(Request):
    """Take ownership of the session; QEMU sends it once, after the protocol features."""


@request(FrontEndRequest.RESET_OWNER)
@dataclass(frozen=True, slots=True)
class ResetOwner(Request):
    """Give the ownership up. Deprecated: ignore it, or disable all rings."""


@request(FrontEndRequest.RESET_DEVICE)
@dataclass(frozen=True, slots=True)
class ResetDevice(Request):
    """Disable all rings and bring the device back to its initial state; the session goes on."""


# -- Memory and its dirty log ----------------------------------------------------------------------

_MEM_REGION: Final = Struct("=QQQQ")  # the fields of MemRegion


@dataclass(frozen=True, slots=True)
class MemRegion:
    """One region of guest memory; all four in bytes, none of them checked here for wrapping.

    `mmap_offset` is where the region starts in its file.
    """

    guest_phys_addr: Gpa
    memory_size: int
    userspace_addr: Uva
    mmap_offset: int


@request(FrontEndRequest.SET_MEM_TABLE, "=I4x", max_fds=MAX_MEM_REGIONS)
@dataclass(frozen=True, slots=True)
class SetMemTable(Request):
    """Replace all of guest memory; one fd a region, in the same order."""

    regions: tuple[MemRegion, ...]

    @classmethod
    def can_have(cls, size: int) -> bool:
        """Return whether `size` bytes can be the count and as many regions as a table can have."""
        count, rest = divmod(size - cls.layout.size, _MEM_REGION.size)
        return not rest and 0 <= count <= MAX_MEM_REGIONS

    @classmethod
    def unpack(cls, payload: bytes) -> Self:
        """Return the value of a payload. Raises `PeerError` if the regions are miscounted."""
        (count,) = cls.layout.unpack_from(payload)
        table = payload[cls.layout.size :]
        if count * _MEM_REGION.size != len(table):
            raise PeerError(
                f"{named(cls.request_id)} has num regions {count} and {len(table)} bytes of regions"
            )
        return cls(
            tuple(
                MemRegion(Gpa(guest), size, Uva(user), offset)
                for guest, size, user, offset in _MEM_REGION.iter_unpack(table)
            )
        )

    def pack(self) -> bytes:
        """Return the payload of this value."""
        return self.layout.pack(len(self.regions)) + b"".join(
            _MEM_REGION.pack(r.guest_phys_addr, r.memory_size, r.userspace_addr, r.mmap_offset)
            for r in self.regions
        )

    def fd_count(self) -> int:
        """Return the number of regions."""
        return len(self.regions)


@request(FrontEndRequest.SET_LOG_BASE, "=QQ", max_fds=1, reply=EmptyReply)
@dataclass(frozen=True, slots=True)
class SetLogBase(Request):
    """Set the dirty log, one fd: `size` bytes from `offset` in it."""

    size: int
    offset: int


@request(FrontEndRequest.SET_LOG_FD, max_fds=1)
@dataclass(frozen=True, slots=True)
class SetLogFd(Request):
    """Set an eventfd, one fd, that the back-end may signal when the log has changed."""


# -- Vrings ----------------------------------------------------------------------------------------


@request(FrontEndRequest.SET_VRING_NUM, "=II")
@dataclass(frozen=True, slots=True)
class SetVringNum(Request):
    """Set the size of ring `index` to `num` descriptors."""

    index: int
    num: int


@request(FrontEndRequest.SET_VRING_ADDR, "=IIQQQQ")
@dataclass(frozen=True, slots=True)
class SetVringAddr(Request):
    """Set where ring `index` is, in front-end addresses.

    `log` is the used ring's address in the log.

    The guest chooses these addresses, so what they point at, and how they are aligned, is not
    checked here: a bad one must cost the guest its ring, not its session.
    """

    index: int
    flags: int
    desc: Uva
    used: Uva
    avail: Uva
    log: Gpa

    @classmethod
    def unpack(cls, payload: bytes) -> Self:
        """Return the value of a payload. Raises `PeerError` for an undefined flag."""
        message = cls(*cls.layout.unpack(payload))
        if message.flags & ~VRING_F_LOG:
            raise PeerError(
                f"{named(cls.request_id)} has flags {message.flags:#x}: "
                f"only {VRING_F_LOG:#x} is defined"
            )
        return message


@request(FrontEndRequest.SET_VRING_BASE, "=II")
@dataclass(frozen=True, slots=True)
class SetVringBase(Request):
    """Set the next entry of ring `index`'s available ring to take."""

    index: int
    base: int


@request(FrontEndRequest.GET_VRING_BASE, "=I4x", reply=VringState)
@dataclass(frozen=True, slots=True)
class GetVringBase(Request):
    """Stop ring `index` and ask for the next entry of its available ring."""

    index: int


@dataclass(frozen=True, slots=True)
class _VringFd(Request):
    index: int
    has_fd: bool

    @classmethod
    def unpack(cls, payload: bytes) -> Self:
        """Return the value of a payload. Raises `PeerError` for an undefined bit."""
        (value,) = cls.layout.unpack(payload)
        if value & ~(VRING_IDX_MASK | VRING_NOFD):
            raise PeerError(f"{named(cls.request_id)} has {value:#x}: only bits 0 to 8 are defined")
        return cls(value & VRING_IDX_MASK, not value & VRING_NOFD)

    def pack(self) -> bytes:
        """Return the payload of this value."""
        return self.layout.pack(self.index | (0 if self.has_fd else VRING_NOFD))

    def fd_count(self) -> int:
        """Return 1 if the ring has an eventfd."""
        return int(self.has_fd)


@request(FrontEndRequest.SET_VRING_KICK, "=Q", max_fds=1)
@dataclass(frozen=True, slots=True)
class SetVringKick(_VringFd):
    """Set the eventfd by which the guest kicks ring `index`; without one, poll."""


@request(FrontEndRequest.SET_VRING_CALL, "=Q", max_fds=1)
@dataclass(frozen=True, slots=True)
class SetVringCall(_VringFd):
    """Set the eventfd that signals used buffers in ring `index` to the guest, or none."""


@request(FrontEndRequest.SET_VRING_ERR, "=Q", max_fds=1)
@dataclass(frozen=True, slots=True)
class SetVringErr(_VringFd):
    """Set the eventfd that signals to the front-end that ring `index` is broken, or none."""


@request(FrontEndRequest.SET_VRING_ENABLE, "=II")
@dataclass(frozen=True, slots=True)
class SetVringEnable(Request):
    """Enable or disable ring `index`."""

    index: int
    enable: bool

    @classmethod
    def unpack(cls, payload: bytes) -> Self:
        """Return the value of a payload. Raises `PeerError` for a state other than 0 and 1."""
        index, enable = cls.layout.unpack(payload)
        if enable not in (0, 1):
            raise PeerError(
                f"{named(cls.request_id)} has num {enable:#x} for ring {index}, not 0 or 1"
            )
        return cls(index, bool(enable))


# -- The device ------------------------------------------------------------------------------------


@request(FrontEndRequest.SET_BACKEND_REQ_FD, max_fds=1)
@dataclass(frozen=True, slots=True)
class SetBackendReqFd(Request):
    """Set the socket of the back-end channel; one fd."""


@dataclass(frozen=True, slots=True)
class _Config(Request):
    @classmethod
    def can_have(cls, size: int) -> bool:
        """Return whether `size` bytes can be the numbers and as much data as a message can have."""
        return 0 <= size - cls.layout.size <= MAX_CONFIG_SIZE

    @classmethod
    def _split(cls, payload: bytes) -> tuple[int, int, bytes]:
        offset, size, flags = cls.layout.unpack_from(payload)
        data = payload[cls.layout.size :]
        if size != len(data):
            raise PeerError(
                f"{named(cls.request_id)} has size {size} and {len(data)} bytes of config space"
            )
        return offset, flags, data


@request(FrontEndRequest.GET_CONFIG, "=III", reply=ConfigReply)
@dataclass(frozen=True, slots=True)
class GetConfig(_Config):
    """Read `size` bytes of config space from `offset`."""

    offset: int
    size: int
    flags: int

    @classmethod
    def unpack(cls, payload: bytes) -> Self:
        """Return the value of a payload. Raises `PeerError` if its size field is wrong."""
        offset, flags, data = cls._split(payload)
        return cls(offset, len(data), flags)

    def pack(self) -> bytes:
        """Return the payload of this value, with room for the answer, as QEMU does."""
        return self.layout.pack(self.offset, self.size, self.flags) + bytes(self.size)


@request(FrontEndRequest.SET_CONFIG, "=III")
@dataclass(frozen=True, slots=True)
class SetConfig(_Config):
    """Write `data` to config space at `offset`; `flags` 1 means that a migration does it."""

    offset: int
    flags: int
    data: bytes

    @classmethod
    def unpack(cls, payload: bytes) -> Self:
        """Return the value of a payload. Raises `PeerError` if its size field is wrong."""
        return cls(*cls._split(payload))

    def pack(self) -> bytes:
        """Return the payload of this value."""
        return self.layout.pack(self.offset, len(self.data), self.flags) + self.data


@request(FrontEndRequest.GPU_SET_SOCKET, max_fds=1)
@dataclass(frozen=True, slots=True)
class GpuSetSocket(Request):
    """Set the socket of the display protocol; one fd. May come again on the same session."""


@request(FrontEndRequest.GET_SHMEM_CONFIG, reply=ShmemConfig)
@dataclass(frozen=True, slots=True)
class GetShmemConfig(Request):
    """Ask which shared-memory regions the device has."""
