"""Mappings that the front-end makes in the window: SHMEM_MAP and SHMEM_UNMAP.

The requests go through the back-end channel that the front-end has sent last. Source: the
vhost-user specification, VHOST_USER_BACKEND_SHMEM_MAP and SHMEM_UNMAP.
"""

from __future__ import annotations

import asyncio
import errno

from vgpud.errors import HostError
from vgpud.unix.fd import Fd
from vgpud.vhost.back_end_channel import BackEndChannel, BackEndRequest
from vgpud.vhost.wire.back_end_channel import ShmemMap, ShmemUnmap


class FrontEndSlots:
    """Mappings that the vhost-user front-end makes in its shared-memory region `shmid`."""

    def __init__(self, shmid: int) -> None:
        self._shmid = shmid
        self._channel: BackEndChannel | None = None
        self._unmaps: dict[tuple[int, int], BackEndRequest] = {}
        self.mapped: dict[int, int] = {}
        """The front-end's mappings: lengths by offset in the window."""

    def connect(self, channel: BackEndChannel | None) -> None:
        """Use this channel instead of the former one, which is closed."""
        if self._channel is not None:
            self._channel.close()
        self._channel = channel
        self.forget()

    def forget(self) -> None:
        """Forget all mappings: on a reset of the device the front-end has removed them."""
        self._unmaps.clear()
        self.mapped.clear()

    async def map(
        self, fd: Fd, fd_offset: int, bar_offset: int, length: int, *, flags: int = 0
    ) -> None:
        operation = f"SHMEM_MAP of {length:#x} at {bar_offset:#x}"
        if flags:  # the message has no field for them, and map_info would be wrong without them
            advice = f"a front-end can't set slot flags ({flags:#x}); use a slot agent"
            raise HostError(operation, OSError(errno.EOPNOTSUPP, ""), advice)
        channel = self._connected(operation)
        self._unmaps.pop((bar_offset, length), None)
        message = ShmemMap(self._shmid, fd_offset, bar_offset, length, writable=True)
        request = channel.post(message, fd.dup())
        done = False
        try:
            await channel.answer(operation, request)
            done = True
            self.mapped[bar_offset] = length
        finally:
            if not done and not request.refused:
                # Cancelled before the answer, and the caller may map again: the channel's order
                # puts this unmap before that.
                channel.post(ShmemUnmap(self._shmid, bar_offset, length))

    async def unmap(self, bar_offset: int, length: int) -> None:
        operation = f"SHMEM_UNMAP of {length:#x} at {bar_offset:#x}"
        channel = self._connected(operation)
        # A cancelled unmap was sent all the same: a second call waits for its answer.
        request = self._unmaps.get((bar_offset, length))
        if request is None:
            request = channel.post(ShmemUnmap(self._shmid, bar_offset, length))
            self._unmaps[bar_offset, length] = request
        try:
            await channel.answer(operation, request)
        except asyncio.CancelledError:
            raise
        except BaseException:
            # Without an answer it stays: a second request must wait for that answer.
            if request.answered.done():
                self._unmaps.pop((bar_offset, length), None)
            raise
        self._unmaps.pop((bar_offset, length), None)
        self.mapped.pop(bar_offset, None)

    def _connected(self, operation: str) -> BackEndChannel:
        if self._channel is None or not self._channel.open:
            advice = "the front-end has sent no back-end channel"
            raise HostError(operation, OSError(errno.ENOTCONN, ""), advice)
        return self._channel
