"""The watch on the host's GPUs: it keeps the list of render nodes current and publishes changes.

The list itself is `memory.render_nodes`; buffers of a lost GPU are handled by `memory.gem`. The
watch listens to the kernel's uevents (NETLINK_KOBJECT_UEVENT): those of udev do not reach a service
that has a network namespace of its own, and the kernel creates a node before it announces it.
Source: libudev.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from typing import Protocol

import pyudev

from vgpud.control.events import Events
from vgpud.memory.render_nodes import SUBSYSTEM, HostGpu, RenderNodes, udev

log = logging.getLogger(__name__)

SETTLE = 0.1
"""Seconds from the first uevent to the refresh of the list: a GPU's nodes come and go one after the
other."""


class Uevent(Protocol):
    """A kernel event about a device that was added, removed or changed."""

    @property
    def action(self) -> str | None:
        """The action, such as "add" or "remove"."""

    @property
    def sys_name(self) -> str:
        """The device's name in /sys, such as "card0"."""


class Monitor(Protocol):
    """The part of `pyudev.Monitor` that is used."""

    def fileno(self) -> int:
        """Return the descriptor that is readable while there are events."""

    def poll(self, timeout: float | None = None) -> Uevent | None:
        """Return the next event, or None if there is none in time."""


def kernel_monitor() -> Monitor:
    """Open a monitor of the kernel's uevents about GPUs.

    Raises ImportError without libudev, and OSError if there can be no such socket.
    """
    monitor = pyudev.Monitor.from_netlink(udev(), source="kernel")
    monitor.filter_by(subsystem=SUBSYSTEM)
    monitor.start()
    return monitor  # type: ignore[no-any-return]  # pyudev has no types


class GpuWatch:
    """A task that keeps `nodes` current while `run` runs, and publishes changes.

    `users` returns the names of the daemon's devices that use a GPU. Each gets an event.
    """

    def __init__(
        self,
        events: Events,
        *,
        nodes: RenderNodes | None = None,
        users: Callable[[HostGpu], Sequence[str]] = lambda _: (),
        monitor: Callable[[], Monitor] = kernel_monitor,
    ) -> None:
        self.nodes = nodes if nodes is not None else RenderNodes()
        self._events = events
        self._users = users
        self._open = monitor
        self._lost: set[str] = set()
        self._changed = asyncio.Event()

    async def run(self) -> None:
        """Watch until cancelled, or return where GPUs can't be watched."""
        try:
            monitor = self._open()
        except (ImportError, OSError) as error:
            log.warning(
                "GPUs are not watched, only the present ones (%d) are used: %s"
                "; install libudev1, and have RestrictAddressFamilies= allow AF_NETLINK",
                len(self.nodes.gpus),
                error,
            )
            return
        loop = asyncio.get_running_loop()
        loop.add_reader(monitor.fileno(), self._listen, monitor)
        try:
            self._refresh()  # for changes from before the monitor was open
            while True:
                await self._changed.wait()
                await asyncio.sleep(SETTLE)
                self._refresh()
        finally:
            loop.remove_reader(monitor.fileno())

    def _listen(self, monitor: Monitor) -> None:
        try:
            while (event := monitor.poll(timeout=0)) is not None:
                self._changed.set()  # the descriptor is also readable for events of other devices
                if event.action == "remove":
                    self._lost.add(event.sys_name)
        except OSError as error:  # such as ENOBUFS: some were missed, but the refresh sees all
            log.debug("uevents of GPUs missed: %s", error)
            self._changed.set()

    def _refresh(self) -> None:
        self._changed.clear()
        lost, self._lost = self._lost, set()
        users = {gpu: self._users(gpu) for gpu in self.nodes.gpus}
        changes = self.nodes.refresh(lost)
        for gpu in changes.removed:
            self._report("gpu.removed", gpu, users[gpu], "was removed; its buffers are lost")
        for gpu in changes.added:
            self._report("gpu.added", gpu, self._users(gpu), "was added")

    def _report(self, kind: str, gpu: HostGpu, users: Sequence[str], what: str) -> None:
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
