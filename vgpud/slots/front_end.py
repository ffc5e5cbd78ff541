"""The window's mappings by the front-end: SHMEM_MAP and SHMEM_UNMAP.

Implements `gpu.ports.BarSlots`, on whatever back-end channel the front-end has given us last.
Source: the vhost-user specification, VHOST_USER_BACKEND_SHMEM_MAP and SHMEM_UNMAP.
"""

from __future__ import annotations

import asyncio
import errno

from vgpud.errors import HostError
from vgpud.gpu.wire.protocol import ShmId
from vgpud.unix.fd import Fd
from vgpud.vhost.back_end_channel import BackEndLink, Request
from vgpud.vhost.wire.back_end_channel import ConfigChange, ShmemMap, ShmemUnmap

PATIENCE = 30.0
"""Seconds that a front-end may take for a mapping: it does so in its main loop, which may be busy
with much else."""


class FrontendSlots:
    """Mappings made by the VMM that is our vhost-user front-end."""

    def __init__(self) -> None:
        self._link: BackEndLink | None = None
        self._unmaps: dict[tuple[int, int], Request] = {}
        self.mapped: dict[int, int] = {}
        """What the front-end has mapped: lengths by offset in the window."""

    def connect(self, link: BackEndLink | None) -> None:
        """Takes a channel in place of the former one, which is closed."""
        if self._link is not None:
            self._link.close()
        self._link = link
        self.forget()

    def forget(self) -> None:
        """The device was reset: the front-end has taken back all mappings itself."""
        self._unmaps.clear()
        self.mapped.clear()

    async def map(
        self, fd: Fd, fd_offset: int, bar_offset: int, length: int, *, flags: int = 0
    ) -> None:
        operation = f"SHMEM_MAP of {length:#x} at {bar_offset:#x}"
        if flags:  # the message has no place for them, and without them a promise would not hold
            advice = f"a front-end can't set slot flags ({flags:#x}); use a slot agent"
            raise HostError(operation, OSError(errno.EOPNOTSUPP, ""), advice)
        link = self._connected(operation)
        self._unmaps.pop((bar_offset, length), None)
        message = ShmemMap(ShmId.HOST_VISIBLE, fd_offset, bar_offset, length, writable=True)
        request = link.post(message, fd.dup())
        done = False
        try:
            await _answer(operation, request)
            done = True
            self.mapped[bar_offset] = length
        finally:
            if not done and not request.refused:
                # Given up in mid-flight, and whoever asked may ask anew. The order of the channel
                # puts the undoing in between.
                link.post(ShmemUnmap(ShmId.HOST_VISIBLE, bar_offset, length))

    async def unmap(self, bar_offset: int, length: int) -> None:
        operation = f"SHMEM_UNMAP of {length:#x} at {bar_offset:#x}"
        link = self._connected(operation)
        # One that was given up is under way all the same: asked again, its answer is the answer.
        request = self._unmaps.get((bar_offset, length))
        if request is None:
            request = link.post(ShmemUnmap(ShmId.HOST_VISIBLE, bar_offset, length))
            self._unmaps[bar_offset, length] = request
        try:
            await _answer(operation, request)
        except asyncio.CancelledError:
            raise
        except BaseException:
            if request.answered.done():  # else its answer is late, and no second may cross it
                self._unmaps.pop((bar_offset, length), None)
            raise
        self._unmaps.pop((bar_offset, length), None)
        self.mapped.pop(bar_offset, None)

    def config_changed(self) -> None:
        """Tells the front-end that the configuration space reads differently now."""
        if self._link is not None:
            self._link.post(ConfigChange())

    async def confirm_config_change(self) -> None:
        """The same, and waits until the front-end has taken note; raises HostError if it does
        not."""
        operation = "CONFIG_CHANGE_MSG"
        await _answer(operation, self._connected(operation).post(ConfigChange()))

    def _connected(self, operation: str) -> BackEndLink:
        if self._link is None or not self._link.open:
            advice = "the front-end has given us no back-end channel"
            raise HostError(operation, OSError(errno.ENOTCONN, ""), advice)
        return self._link


async def _answer(operation: str, request: Request) -> None:
    try:
        async with asyncio.timeout(PATIENCE):
            status = await asyncio.shield(request.answered)
    except TimeoutError:
        advice = f"the front-end did not answer in {PATIENCE:.0f} s: is the VMM stopped, or stuck?"
        raise HostError(operation, OSError(errno.ETIMEDOUT, ""), advice) from None
    if status is None:
        raise HostError(operation, OSError(errno.EPIPE, ""), "the front-end closed the channel")
    if status != 0:
        advice = f"the front-end refused it with status {status}: the VMM's own log may say why"
        raise HostError(operation, OSError(errno.EREMOTEIO, ""), advice)
