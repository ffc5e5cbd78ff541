"""The two more sockets that a front-end may give a session: its back-end channel and its display.

Owns their tasks: each is replaced by the next of its kind, and all end with the session. Source:
the vhost-user specification, VHOST_USER_SET_BACKEND_REQ_FD; QEMU, docs/interop/vhost-user-gpu.rst,
VHOST_USER_GPU_SET_SOCKET.
"""

from __future__ import annotations

import asyncio
import logging

from vgpud.errors import PeerError
from vgpud.gpu.display.channel import DisplayLink
from vgpud.gpu.gpu import Gpu
from vgpud.slots.front_end import FrontendSlots
from vgpud.unix.fd import Fd
from vgpud.unix.stream_socket import FdSocket
from vgpud.vhost.back_end_channel import BackEndLink

log = logging.getLogger(__name__)


class Links:
    """Of one session, whose tasks they are."""

    def __init__(
        self, device: str, gpu: Gpu, slots: FrontendSlots, tasks: asyncio.TaskGroup
    ) -> None:
        self._device = device
        self._gpu = gpu
        self._slots = slots
        self._tasks = tasks
        self._back_end: asyncio.Task[None] | None = None
        self._display: asyncio.Task[None] | None = None

    def connect_back_end(self, fd: Fd, *, reply_ack: bool) -> None:
        """Make requests of the front-end through this socket; raises `PeerError` if it is none."""
        if self._back_end is not None:
            self._back_end.cancel()
        link = BackEndLink(FdSocket.of(fd), reply_ack=reply_ack)
        self._slots.connect(link)
        self._back_end = self._tasks.create_task(link.run())

    def connect_display(self, fd: Fd) -> None:
        """Show the scanouts through this socket; raises `PeerError` if it is none."""
        if self._display is not None:
            self._display.cancel()
        gpu = self._gpu
        socket = FdSocket.of(fd)
        link = DisplayLink(self._device, socket, gpu.scanouts, gpu.quota, gpu.counters)
        gpu.attach_display(link)
        self._display = self._tasks.create_task(self._show(link))

    def cancel(self) -> None:
        """End both."""
        for task in (self._display, self._back_end):
            if task is not None:
                task.cancel()

    async def _show(self, link: DisplayLink) -> None:
        try:
            await link.run()
        except* PeerError as errors:
            # The guest goes on without: its scanouts can still be read, and a new socket may come.
            log.warning("display closed device=%s: %s", self._device, errors.exceptions[0])
        finally:
            self._gpu.detach_display(link)
