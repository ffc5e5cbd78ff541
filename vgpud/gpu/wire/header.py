"""The header that every command and every response starts with, and the rectangle and box in them.

Specification: virtio 1.3, 5.7.6.7 `struct virtio_gpu_ctrl_hdr`.
"""

from __future__ import annotations

from struct import Struct
from typing import Final, TypeAlias

from vgpud.gpu.wire.protocol import NO_CONTEXT, ContextId, Flag
from vgpud.gpu.wire.value import value

Bytes: TypeAlias = bytes | bytearray | memoryview
"""What a decoder reads. A memoryview must be of single bytes and contiguous."""

_LAYOUT = Struct("<IIQIB3x")

HEADER_SIZE: Final = _LAYOUT.size
assert HEADER_SIZE == 24

# Plain ints: an IntFlag's operators look up a member each time, too slow to do for every command.
_FENCE = int(Flag.FENCE)
_INFO_RING_IDX = int(Flag.INFO_RING_IDX)


@value
class Header:
    """The header of a command or response: its type, flags, fence, context and ring.

    `type` is a plain int: it may be one that is not known. Unknown bits of `flags` are kept.
    """

    type: int
    flags: int = 0
    fence_id: int = 0
    ctx_id: ContextId = NO_CONTEXT
    ring_idx: int = 0

    @property
    def fenced(self) -> bool:
        """Whether the response may come only when the work itself is done."""
        return bool(self.flags & _FENCE)

    @property
    def ring(self) -> tuple[ContextId, int] | None:
        """The timeline that the command's fence belongs to; None for the device's own."""
        return (self.ctx_id, self.ring_idx) if self.flags & _INFO_RING_IDX else None

    def pack(self) -> bytes:
        """Return the header's 24 bytes."""
        return _LAYOUT.pack(self.type, self.flags, self.fence_id, self.ctx_id, self.ring_idx)


@value
class Rect:
    """A rectangle in pixels, exactly as sent: it may be empty, or wrap when added up in u32."""

    x: int
    y: int
    width: int
    height: int


@value
class Box:
    """A box in texels, exactly as sent. Source: `struct virtio_gpu_box`."""

    x: int
    y: int
    z: int
    w: int
    h: int
    d: int


def decode_header(message: Bytes) -> Header | None:
    """Read the header of a request or response; None if it is shorter than a header.

    Unlike `decode` it takes any command, so that one that can't be decoded gets its fence back.
    """
    if len(message) < HEADER_SIZE:
        return None
    return Header(*_LAYOUT.unpack_from(message))


def echo(header: Header, response_type: int) -> bytes:
    """Make the header of the response to the command that came with `header`, as its 24 bytes.

    A fence is echoed with its context and, if the command named one, its ring; a response to an
    unfenced command carries nothing but its type. Source: 5.7.6.7, on VIRTIO_GPU_FLAG_FENCE.
    """
    flags = header.flags
    if not flags & _FENCE:
        return _LAYOUT.pack(response_type, 0, 0, 0, 0)
    ring_idx = header.ring_idx if flags & _INFO_RING_IDX else 0
    kept = flags & (_FENCE | _INFO_RING_IDX)
    return _LAYOUT.pack(response_type, kept, header.fence_id, header.ctx_id, ring_idx)
