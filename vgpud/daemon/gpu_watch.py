"""Watches the host's GPUs come and go, and says so.

Owns the monitor on the event loop. The list itself is `memory.render_nodes`; what becomes of
buffers is for those who made them (`memory.gem`). Source: libudev; the kernel's own announcements
(NETLINK_KOBJECT_UEVENT) are what is listened to, since those of udev do not reach a service that
has a network namespace of its own, and a node is there before the kernel announces it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from typing import Protocol

import pyudev

from vgpud.control.events import Events
from vgpud.memory.render_nodes import SUBSYSTEM, Gpu, RenderNodes, udev

log = logging.getLogger(__name__)

SETTLE = 0.1
"""Seconds from the first announcement to the look at what has changed: a GPU's nodes come and go
one after the other."""


class Announcement(Protocol):
    """A device that has come, gone or changed."""

    @property
    def action(self) -> str | None:
        """Such as "add" and "remove"."""

    @property
    def sys_name(self) -> str:
        """Its name in /sys, such as "card0"."""


class Monitor(Protocol):
    """A `pyudev.Monitor`, as far as it is needed."""

    def fileno(self) -> int:
        """What can be read while there are announcements."""

    def poll(self, timeout: float | None = None) -> Announcement | None:
        """The next announcement; None if there is none in time."""


def kernel_monitor() -> Monitor:
    """Announcements of the kernel about GPUs; raises ImportError without libudev, OSError where
    there is no such socket to be had."""
    monitor = pyudev.Monitor.from_netlink(udev(), source="kernel")
    monitor.filter_by(subsystem=SUBSYSTEM)
    monitor.start()
    return monitor  # type: ignore[no-any-return]  # pyudev has no types


class GpuWatch:
    """The GPUs as they are now, in `nodes`, once `run` is at work.

    `users` names the devices of the daemon that have to do with a GPU: an event each.
    """

    def __init__(
        self,
        events: Events,
        *,
        nodes: RenderNodes | None = None,
        users: Callable[[Gpu], Sequence[str]] = lambda _: (),
        monitor: Callable[[], Monitor] = kernel_monitor,
    ) -> None:
        self.nodes = nodes if nodes is not None else RenderNodes()
        self._events = events
        self._users = users
        self._open = monitor
        self._lost: set[str] = set()
        self._changed = asyncio.Event()

    async def run(self) -> None:
        """Watches until cancelled, or returns where that can't be done."""
        try:
            monitor = self._open()
        except (ImportError, OSError) as error:
            log.warning(
                "GPUs are not watched, those of now (%d) are all that are used: %s"
                "; install libudev1, and have RestrictAddressFamilies= allow AF_NETLINK",
                len(self.nodes.gpus),
                error,
            )
            return
        loop = asyncio.get_running_loop()
        loop.add_reader(monitor.fileno(), self._listen, monitor)
        try:
            self._look()  # at what came before the monitor did
            while True:
                await self._changed.wait()
                await asyncio.sleep(SETTLE)
                self._look()
        finally:
            loop.remove_reader(monitor.fileno())

    def _listen(self, monitor: Monitor) -> None:
        try:
            while (announced := monitor.poll(timeout=0)) is not None:
                self._changed.set()  # it also wakes us for what the filter then leaves out
                if announced.action == "remove":
                    self._lost.add(announced.sys_name)
        except OSError as error:  # such as ENOBUFS: some were missed, and the look is what counts
            log.debug("announcements of GPUs missed: %s", error)
            self._changed.set()

    def _look(self) -> None:
        self._changed.clear()
        lost, self._lost = self._lost, set()
        users = {gpu: self._users(gpu) for gpu in self.nodes.gpus}
        changes = self.nodes.refresh(lost)
        for gpu in changes.removed:
            self._tell("gpu.removed", gpu, users[gpu], "is gone, and what was in its buffers")
        for gpu in changes.added:
            self._tell("gpu.added", gpu, self._users(gpu), "is here")

    def _tell(self, kind: str, gpu: Gpu, users: Sequence[str], what: str) -> None:
        level = logging.WARNING if users and kind == "gpu.removed" else logging.INFO
        for device in users or (None,):
            if device is None:
                log.info("GPU %s: %s", kind.removeprefix("gpu."), gpu)
            else:
                log.log(level, "GPU %s device=%s: %s", kind.removeprefix("gpu."), device, gpu)
            self._events.publish(
                kind,
                f"GPU {gpu} {what}",
                device=device,
                gpu=gpu.name,
                driver=gpu.driver,
                nodes=list(gpu.nodes),
            )
