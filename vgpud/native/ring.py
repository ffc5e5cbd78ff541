"""Split rings, several chains a call, and long chains: the facade of ring.c, for `vhost.ring` and
`vhost.split_ring`."""

from __future__ import annotations

from collections.abc import Iterator
from enum import IntEnum
from struct import Struct
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from vgpud.native._native import ffi, lib
from vgpud.native.arrays import address_of
from vgpud.native.spans import SPAN

#: A region of guest memory: `vgpud_region` of native.h.
REGION: Final = np.dtype([("start", "<u8"), ("size", "<u8"), ("address", "<u8")])
assert REGION.itemsize == ffi.sizeof("vgpud_region")

_CHAIN = Struct("=QIIIIII")
assert _CHAIN.size == ffi.sizeof("vgpud_chain")

_DESC_SIZE = 16

_UNUSUAL: Final[int] = lib.VGPUD_RING_UNUSUAL
_TAKE = lib.vgpud_ring_take
_ANSWER = lib.vgpud_ring_answer
_PUBLISH = lib.vgpud_ring_publish
_ENABLE_NOTIFICATIONS = lib.vgpud_ring_enable_notifications
_POLL = lib.vgpud_ring_poll
_NULL = ffi.NULL

BATCH: Final = 64
"""The most chains of one call: with more, the first of them would wait long for the last."""

_BUFFER: Final = 64 << 10

Taken = tuple[int, int, int, bytes]
"""A chain: its head, the guest-physical address and the size of its response's buffer (0 bytes if
it has none), and its request."""


class Stop(IntEnum):
    """Why a chain could not be followed further in its table.

    END: its last descriptor. TABLE: it continues in an indirect table. The others are errors: LOOP,
    more descriptors than there are; NEXT, one that is not in the table; ORDER, a device-readable
    buffer after a device-writable one; BAD_INDIRECT, an indirect table in another, or not at the
    end.
    """

    END = lib.VGPUD_CHAIN_END
    TABLE = lib.VGPUD_CHAIN_TABLE
    LOOP = lib.VGPUD_CHAIN_LOOP
    NEXT = lib.VGPUD_CHAIN_NEXT
    ORDER = lib.VGPUD_CHAIN_ORDER
    BAD_INDIRECT = lib.VGPUD_CHAIN_BAD_INDIRECT


class ChainWalk:
    """Follows one chain after the other; none has more than `room` buffers.

    After `through`, `index` is the descriptor that ended it, `following` its next, and with TABLE
    `table` and `table_bytes` are where the chain continues, in guest memory.
    """

    __slots__ = ("_buffers", "_pointer", "_room", "_walk")

    def __init__(self, room: int) -> None:
        self._room = room
        self._buffers = np.empty(room, SPAN)
        self._pointer = ffi.from_buffer("vgpud_span *", self._buffers)
        self._walk = ffi.new("vgpud_walk *")

    def begin(self) -> None:
        """Begin another chain."""
        self._walk.readable = self._walk.writable = 0

    def through(self, table: NDArray[np.void], first: int, *, indirect: bool) -> Stop:
        """Follow the chain through a table, of 16 bytes a descriptor, from the `first` on."""
        if not 0 <= first < len(table) or table.itemsize != _DESC_SIZE:
            raise ValueError(f"descriptor {first} in a table of {len(table)}")
        self._walk.index = first
        pointer = ffi.from_buffer("uint8_t *", table)
        return Stop(
            lib.vgpud_ring_walk(
                pointer, len(table), indirect, self._walk, self._pointer, self._room
            )
        )

    @property
    def index(self) -> int:
        return int(self._walk.index)

    @property
    def following(self) -> int:
        return int(self._walk.following)

    @property
    def table(self) -> int:
        return int(self._walk.table)

    @property
    def table_bytes(self) -> int:
        return int(self._walk.table_bytes)

    def buffers(self) -> tuple[NDArray[np.void], NDArray[np.void]]:
        """Return the device-readable and the device-writable buffers, as SPAN arrays with
        guest-physical addresses."""
        middle = self._walk.readable
        end = middle + self._walk.writable
        return self._buffers[:middle].copy(), self._buffers[middle:end].copy()


class FastPath:
    """The fast path of a queue: requests that a device executes in C.

    `execute` is a function of native.h of type vgpud_execute, `device` its first argument. Both are
    cffi pointers; the fast path keeps `device` alive.
    """

    __slots__ = ("_device", "native")

    def __init__(self, execute: Any, device: Any) -> None:
        self._device = device
        self.native = ffi.new("vgpud_fast_path *", (execute, device, 0))

    @property
    def served(self) -> int:
        """How many chains the last `FastRing.take` executed and answered."""
        served: int = self.native.served
        return served


class FastRing:
    """A mapped ring, and the guest memory that its chains may be in.

    `descriptors`, `available` and `used` are addresses of the parts of a ring of `num` descriptors;
    `in_flight`, of uint8, is set for the head of each chain that was taken and is not answered, and
    `regions` is a REGION array. The caller has checked them and keeps all of it mapped. What the
    driver writes into the ring is checked here, each time.
    """

    __slots__ = (
        "_buffer",
        "_chains",
        "_count",
        "_in_flight",
        "_native",
        "_pointer",
        "_regions",
        "_ring",
        "_view",
    )

    def __init__(
        self,
        descriptors: int,
        available: int,
        used: int,
        num: int,
        *,
        in_flight: NDArray[np.uint8],
        event_idx: bool,
        indirect: bool,
        regions: NDArray[np.void],
    ) -> None:
        if num <= 0 or num & (num - 1):
            raise ValueError(f"a ring of {num} descriptors")
        if regions.dtype != REGION or regions.ndim != 1:
            raise ValueError("regions must be a one-dimensional REGION array")
        if in_flight.dtype != np.uint8 or in_flight.size < num:
            raise ValueError(f"in_flight must be {num} bytes")
        self._in_flight = in_flight
        heads = address_of(in_flight)
        self._ring = ffi.new(
            "vgpud_ring *", (descriptors, available, used, heads, num, event_idx, indirect)
        )
        self._regions = regions.copy()
        self._pointer = ffi.from_buffer("vgpud_region *", self._regions)
        self._count = len(regions)
        self._native = ffi.new("vgpud_chain[]", BATCH)
        self._chains = memoryview(ffi.buffer(self._native))
        self._buffer = ffi.new("uint8_t[]", _BUFFER)
        self._view = memoryview(ffi.buffer(self._buffer))

    def take(
        self, next_avail: int, next_used: int, fast_path: FastPath | None
    ) -> tuple[list[Taken], bool]:
        """Take up to `BATCH` chains from an index on; return them and whether the next is unusual.

        With `fast_path`, up to `BATCH` chains at the beginning are executed and answered at once,
        from the used index `next_used` on; they are not returned, `fast_path.served` counts them.
        """
        taken: int = _TAKE(
            self._ring,
            self._pointer,
            self._count,
            next_avail,
            self._native,
            BATCH,
            self._buffer,
            _BUFFER,
            next_used,
            _NULL if fast_path is None else fast_path.native,
        )
        count = taken & ~_UNUSUAL
        return list(self._chains_of(count)) if count else [], count != taken

    def _chains_of(self, count: int) -> Iterator[Taken]:
        view = self._view
        for response, head, room, _, at, length, _ in _CHAIN.iter_unpack(
            self._chains[: count * _CHAIN.size]
        ):
            yield head, response, room, view[at : at + length].tobytes()

    def answer(self, next_used: int, head: int, address: int, room: int, response: bytes) -> int:
        """Write a response and the used element at an index, without publishing it.

        Return the bytes written, or -1, with nothing written, if the response's buffer is not in
        one region.
        """
        written: int = _ANSWER(
            self._ring,
            self._pointer,
            self._count,
            next_used,
            head,
            address,
            room,
            response,
            len(response),
        )
        return written

    def publish(self, signalled: int, next_used: int) -> bool:
        """Publish the used elements before an index; return whether to send the driver a call.

        That is so if the driver wants to be interrupted for those since `signalled`.
        """
        return bool(_PUBLISH(self._ring, signalled, next_used))

    def enable_notifications(self, next_avail: int) -> bool:
        """Ask for a kick at the chain at an index; return whether it is available already."""
        return bool(_ENABLE_NOTIFICATIONS(self._ring, next_avail))

    def poll(self, next_avail: int, nanoseconds: int) -> bool:
        """Sleep unless the chain at an index is available already; return whether it is then.

        `nanoseconds` is less than a second.
        """
        return bool(_POLL(self._ring, next_avail, nanoseconds))
