"""Mappings that the front-end makes in the window: SHMEM_MAP and SHMEM_UNMAP.

The requests go through the back-end channel that the front-end has sent last. Source: the
vhost-user specification, VHOST_USER_BACKEND_SHMEM_MAP and SHMEM_UNMAP.
"""

from __future__ import annotations

import asyncio
import errno

from vgpud.errors import HostError
from vgpud.sorted_numbers import SortedNumbers
from vgpud.unix.fd import Fd
from vgpud.vhost.back_end_channel import BackEndChannel, BackEndRequest
from vgpud.vhost.wire.back_end_channel import ShmemMap, ShmemUnmap


class FrontEndMappings:
    """The mappings that a front-end has: their lengths by offset in the window, in bytes."""

    def __init__(self) -> None:
        self._lengths: dict[int, int] = {}
        self._offsets = SortedNumbers()

    def __len__(self) -> int:
        return len(self._lengths)

    def add(self, offset: int, length: int) -> None:
        """Add a mapping; at the offset of another one, it replaces that."""
        if offset not in self._lengths:
            self._offsets.add(offset)
        self._lengths[offset] = length

    def remove(self, offset: int) -> None:
        """Remove the mapping at an offset, if there is one."""
        if self._lengths.pop(offset, None) is not None:
            self._offsets.remove(offset)

    def part(self, start: int, stop: int) -> list[tuple[int, int]]:
        """Return a part of the mappings, in the order of their offsets: offset and length."""
        return [(offset, self._lengths[offset]) for offset in self._offsets.part(start, stop)]


class FrontEndSlots:
    """Mappings that the vhost-user front-end makes in its shared-memory region `shmid`."""

    def __init__(self, shmid: int) -> None:
        self._shmid = shmid
        self._channel: BackEndChannel | None = None
        self._unmaps: dict[tuple[int, int], BackEndRequest] = {}
        self.mapped = FrontEndMappings()

    def connect(self, channel: BackEndChannel | None) -> None:
        """Use this channel instead of the former one, which is closed."""
        if self._channel is not None:
            self._channel.close()
        self._channel = channel
        self.forget()

    def forget(self) -> None:
        """Forget all mappings: on a reset of the device the front-end has removed them."""
        self._unmaps.clear()
        self.mapped = FrontEndMappings()

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
            await channel.caught_up()
            done = True
            self.mapped.add(bar_offset, length)
        finally:
            if not (done or request.refused or request.withdrawn):
                # Cancelled before it was done, and the caller may map again: the channel's order
                # puts this unmap before that.
                channel.post(ShmemUnmap(self._shmid, bar_offset, length), undo=True)

    async def unmap(self, bar_offset: int, length: int) -> None:
        operation = f"SHMEM_UNMAP of {length:#x} at {bar_offset:#x}"
        channel = self._connected(operation)
        # A cancelled unmap may have been sent: a second call then waits for its answer.
        request = self._unmaps.get((bar_offset, length))
        if request is None:
            request = channel.post(ShmemUnmap(self._shmid, bar_offset, length))
            self._unmaps[bar_offset, length] = request
        try:
            await channel.answer(operation, request)
        except BaseException as error:
            # Without an answer it stays: a second request must wait for that answer.
            failed = request.answered.done() and not isinstance(error, asyncio.CancelledError)
            if failed or request.withdrawn:
                self._unmaps.pop((bar_offset, length), None)
            raise
        self._unmaps.pop((bar_offset, length), None)
        self.mapped.remove(bar_offset)

    def _connected(self, operation: str) -> BackEndChannel:
        if self._channel is None or not self._channel.open:
            advice = "the front-end has sent no back-end channel"
            raise HostError(operation, OSError(errno.ENOTCONN, ""), advice)
        if self._channel.held:
            advice = (
                "the guest's driver does not run, as while the VM boots or is paused, and QEMU"
                " would die of the request: try again when it runs"
            )
            raise HostError(operation, OSError(errno.EAGAIN, ""), advice)
        return self._channel
