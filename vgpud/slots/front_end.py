"""The window's mappings by the front-end: SHMEM_MAP and SHMEM_UNMAP.

They go through the back-end channel that the front-end has given us last. Source: the vhost-user
specification, VHOST_USER_BACKEND_SHMEM_MAP and SHMEM_UNMAP.
"""

from __future__ import annotations

import asyncio
import errno

from vgpud.errors import HostError
from vgpud.unix.fd import Fd
from vgpud.vhost.back_end_channel import BackEndChannel, BackEndRequest
from vgpud.vhost.wire.back_end_channel import ShmemMap, ShmemUnmap


class FrontEndSlots:
    """Mappings made by the VMM that is our vhost-user front-end, in its region `shmid`."""

    def __init__(self, shmid: int) -> None:
        self._shmid = shmid
        self._link: BackEndChannel | None = None
        self._unmaps: dict[tuple[int, int], BackEndRequest] = {}
        self.mapped: dict[int, int] = {}
        """What the front-end has mapped: lengths by offset in the window."""

    def connect(self, link: BackEndChannel | None) -> None:
        """Use a channel in place of the former one, which is closed."""
        if self._link is not None:
            self._link.close()
        self._link = link
        self.forget()

    def forget(self) -> None:
        """Forget all mappings: on a reset of the device the front-end has taken them back."""
        self._unmaps.clear()
        self.mapped.clear()

    async def map(
        self, fd: Fd, fd_offset: int, bar_offset: int, length: int, *, flags: int = 0
    ) -> None:
        operation = f"SHMEM_MAP of {length:#x} at {bar_offset:#x}"
        if flags:  # the message has no field for them, and without them a promise would not hold
            advice = f"a front-end can't set slot flags ({flags:#x}); use a slot agent"
            raise HostError(operation, OSError(errno.EOPNOTSUPP, ""), advice)
        link = self._connected(operation)
        self._unmaps.pop((bar_offset, length), None)
        message = ShmemMap(self._shmid, fd_offset, bar_offset, length, writable=True)
        request = link.post(message, fd.dup())
        done = False
        try:
            await link.answer(operation, request)
            done = True
            self.mapped[bar_offset] = length
        finally:
            if not done and not request.refused:
                # Given up before the answer, and the caller may ask again. The order of the channel
                # puts the undoing in between.
                link.post(ShmemUnmap(self._shmid, bar_offset, length))

    async def unmap(self, bar_offset: int, length: int) -> None:
        operation = f"SHMEM_UNMAP of {length:#x} at {bar_offset:#x}"
        link = self._connected(operation)
        # One that was given up was sent all the same: if asked again, wait for its answer.
        request = self._unmaps.get((bar_offset, length))
        if request is None:
            request = link.post(ShmemUnmap(self._shmid, bar_offset, length))
            self._unmaps[bar_offset, length] = request
        try:
            await link.answer(operation, request)
        except asyncio.CancelledError:
            raise
        except BaseException:
            # Else its answer is still to come, and a second request must not cross it.
            if request.answered.done():
                self._unmaps.pop((bar_offset, length), None)
            raise
        self._unmaps.pop((bar_offset, length), None)
        self.mapped.pop(bar_offset, None)

    def _connected(self, operation: str) -> BackEndChannel:
        if self._link is None or not self._link.open:
            advice = "the front-end has given us no back-end channel"
            raise HostError(operation, OSError(errno.ENOTCONN, ""), advice)
        return self._link
