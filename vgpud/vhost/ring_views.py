"""A split ring in the front-end's memory: numpy views of its three parts, native accessors of its
indices.

Source: virtio 1.3, 2.7 "Split Virtqueues" for the layout; the vhost-user specification,
VHOST_USER_SET_VRING_ADDR, for the addresses, which are the front-end's own.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vgpud.errors import GuestAddressError, RingError
from vgpud.native.arrays import address_of
from vgpud.native.shared_words import SharedU16, full_fence
from vgpud.vhost.memory_table import MemoryTable
from vgpud.vhost.split_ring import DESC, MAX_QUEUE_SIZE, USED_ELEM, RingViews

_FLAGS, _IDX, _RING = 0, 2, 4  # bytes into both the available and the used ring
_DESC_ALIGN, _AVAIL_ALIGN, _USED_ALIGN = 16, 2, 4


@dataclass(frozen=True, slots=True)
class RingAddress:
    """The front-end virtual addresses of a ring's parts.

    `log` is the used ring's guest-physical address if writes to it are to be logged.
    """

    desc: int
    avail: int
    used: int
    log: int | None = None


def ring_views(memory: MemoryTable, address: RingAddress, num: int) -> RingViews:
    """Return the views of a ring of `num` descriptors, which keep its memory mapped.

    Raises `RingError` for a size or an alignment that 2.7 does not allow, and for addresses outside
    guest memory.
    """
    if not 0 < num <= MAX_QUEUE_SIZE or num & (num - 1):
        raise RingError(
            f"a queue of {num} descriptors; it must be a power of two up to {MAX_QUEUE_SIZE}"
        )
    ring_end = _RING + 2 * num
    used_end = _RING + USED_ELEM.itemsize * num
    desc = _view(memory, address.desc, DESC.itemsize * num, _DESC_ALIGN)
    avail = _view(memory, address.avail, ring_end + 2, _AVAIL_ALIGN)
    used = _view(memory, address.used, used_end + 2, _USED_ALIGN)
    return RingViews(
        descriptors=desc.view(DESC),
        available=avail[_RING:ring_end].view(np.uint16),
        used=used[_RING:used_end].view(USED_ELEM),
        avail_flags=SharedU16(avail, _FLAGS),
        avail_idx=SharedU16(avail, _IDX),
        used_event=SharedU16(avail, ring_end),
        used_flags=SharedU16(used, _FLAGS),
        used_idx=SharedU16(used, _IDX),
        avail_event=SharedU16(used, used_end),
        fence=full_fence,
    )


def _view(memory: MemoryTable, address: int, length: int, align: int) -> NDArray[np.uint8]:
    try:
        view = memory.user_view(address, length)
    except GuestAddressError as error:
        raise RingError(str(error)) from error
    # Also the address in this process: a region may begin at any byte of its file.
    if address % align or address_of(view) % align:
        raise RingError(f"a part of the ring at {address:#x} is not aligned to {align}")
    return view
